package balancetest

import (
	"regexp"
	"strings"
	"testing"

	"github.com/stagebench/stagebench/sut"
)

// generatedID is the form of an id that a balancer generates.
var generatedID = regexp.MustCompile(`^[0-9a-f]{32}$`)

// testRequestIDs: the host and the client get the same single id: the client's if that is
// valid, else a generated one.
func testRequestIDs(t *testing.T, start Start) {
	_, c := begin(t, start, 1, "round_robin", true)
	longest := strings.Repeat("x", 64)
	for _, sent := range []string{"17", "a-b_c.D", longest} {
		got := c.get("/id", sut.RequestIDHeader, sent)
		if ids := got.header[sut.RequestIDHeader]; got.body != sent || len(ids) != 1 || ids[0] != sent {
			t.Errorf("for id %q the host got %q and the client got %q", sent, got.body, ids)
		}
	}
	seen := map[string]bool{}
	for _, sent := range []string{"", "with space", "semi;colon", `quo"te`, longest + "x", "\u00e9", "none"} {
		var pairs []string
		if sent != "none" {
			pairs = []string{sut.RequestIDHeader, sent}
		}
		got := c.get("/id", pairs...)
		ids := got.header[sut.RequestIDHeader]
		if !generatedID.MatchString(got.body) || len(ids) != 1 || ids[0] != got.body {
			t.Errorf("for id %q the host got %q and the client got %q: want 32 hexadecimal digits", sent, got.body, ids)
		}
		if seen[got.body] {
			t.Errorf("id %q was generated twice", got.body)
		}
		seen[got.body] = true
	}
	// The client gets the id even if the host does not return it.
	if got := c.get("/who", sut.RequestIDHeader, "17"); got.header.Get(sut.RequestIDHeader) != "17" {
		t.Errorf("for id 17 the client got %q", got.header[sut.RequestIDHeader])
	}
}

// testErrorIDs: the balancer's own errors have a request id, so they can be found in its
// log.
func testErrorIDs(t *testing.T, start Start) {
	hosts, c := begin(t, start, 1, "round_robin", false)
	got, err := c.send(c.request("GET", "/abort", nil, sut.RequestIDHeader, "lost-17"))
	if err != nil || got.header.Get(sut.RequestIDHeader) != "lost-17" {
		t.Errorf("status %d, %v, id %q, want lost-17", got.status, err, got.header[sut.RequestIDHeader])
	}
	hosts[0].kill()
	c.awaitUp(hosts[0], false)
	got = c.do("GET", "/who")
	if got.status != 503 || !generatedID.MatchString(got.header.Get(sut.RequestIDHeader)) {
		t.Errorf("status %d, id %q", got.status, got.header[sut.RequestIDHeader])
	}
}
