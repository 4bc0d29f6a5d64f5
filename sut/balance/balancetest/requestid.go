package balancetest

import (
	"regexp"
	"strings"
	"testing"

	"github.com/stagebench/stagebench/sut"
)

// ownID is the form of an id that a balancer makes.
var ownID = regexp.MustCompile(`^[0-9a-f]{32}$`)

// testRequestIDs: the host and the client see the same id, once: the client's
// when it is one, else a new one.
func testRequestIDs(t *testing.T, start Start) {
	_, c := begin(t, start, 1, "round_robin", true)
	longest := strings.Repeat("x", 64)
	for _, sent := range []string{"17", "a-b_c.D", longest} {
		got := c.get("/id", sut.RequestIDHeader, sent)
		if ids := got.header[sut.RequestIDHeader]; got.body != sent || len(ids) != 1 || ids[0] != sent {
			t.Errorf("id %q came to the host as %q, and back as %q", sent, got.body, ids)
		}
	}
	known := map[string]bool{}
	for _, sent := range []string{"", "with space", "semi;colon", `quo"te`, longest + "x", "\u00e9", "none"} {
		var pairs []string
		if sent != "none" {
			pairs = []string{sut.RequestIDHeader, sent}
		}
		got := c.get("/id", pairs...)
		ids := got.header[sut.RequestIDHeader]
		if !ownID.MatchString(got.body) || len(ids) != 1 || ids[0] != got.body {
			t.Errorf("id %q came to the host as %q, and back as %q: want 32 hexadecimal digits", sent, got.body, ids)
		}
		if known[got.body] {
			t.Errorf("id %q was given twice", got.body)
		}
		known[got.body] = true
	}
	// A host that says nothing of ids changes nothing for the client.
	if got := c.get("/who", sut.RequestIDHeader, "17"); got.header.Get(sut.RequestIDHeader) != "17" {
		t.Errorf("id 17 came back as %q", got.header[sut.RequestIDHeader])
	}
}

// testErrorIDs: what the balancer says in its own name can be found in its log.
func testErrorIDs(t *testing.T, start Start) {
	hosts, c := begin(t, start, 1, "round_robin", false)
	if got, err := c.send(c.request("GET", "/abort", nil, sut.RequestIDHeader, "lost-17")); err != nil || got.header.Get(sut.RequestIDHeader) != "lost-17" {
		t.Errorf("status %d, %v, id %q, want lost-17", got.status, err, got.header[sut.RequestIDHeader])
	}
	hosts[0].kill()
	c.awaitUp(hosts[0], false)
	got := c.do("GET", "/who")
	if got.status != 503 || !ownID.MatchString(got.header.Get(sut.RequestIDHeader)) {
		t.Errorf("status %d, id %q", got.status, got.header[sut.RequestIDHeader])
	}
}
