package edge

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// step is one request at a time after the start, and what it gets.
type step struct {
	at      time.Duration
	lines   []string
	code    int
	body    string
	status  string // prefix of Cache-Status
	age     string
	fetched int64 // requests at the origin until then, those in the background included
}

// run sends the requests.
func (r *rig) run(name string, steps []step) {
	r.t.Helper()
	began := time.Now()
	for i, s := range steps {
		at := time.NewTimer(s.at - time.Since(began))
		<-at.C // in the time of the bubble
		a := r.get("/a", s.lines...)
		synctest.Wait() // for the fills in the background
		if a.code != s.code || a.body != s.body || !strings.HasPrefix(a.status(), s.status) || a.header.Get("Age") != s.age {
			r.t.Errorf("%s: request %d: got %d %q, %q, Age %q", name, i, a.code, a.body, a.status(), a.header.Get("Age"))
		}
		r.expect(s.fetched, fmt.Sprintf("%s: request %d", name, i))
	}
}

// TestFreshness: the ages at which a stored response is used, validated, and replaced.
func TestFreshness(t *testing.T) {
	t.Parallel()
	const s = time.Second
	unstored := errorBody("there is no stored response that can be used")
	for _, test := range []struct {
		control string
		ttl     time.Duration
		steps   []step
	}{
		{"max-age=10", 0, []step{
			{0, nil, 200, "1", "fwd=uri-miss; fwd-status=200; stored", "", 1},
			{9 * s, nil, 200, "1", "hit; ttl=1", "9", 1},
			{10 * s, nil, 200, "2", "fwd=stale; fwd-status=200; stored", "", 2},
			{19 * s, nil, 200, "2", "hit; ttl=1", "9", 2},
		}},
		{"max-age=10", 60 * s, []step{
			{0, nil, 200, "1", "fwd=uri-miss", "", 1},
			{59 * s, nil, 200, "1", "hit; ttl=1", "59", 1},
			{60 * s, nil, 200, "2", "fwd=stale", "", 2},
		}},
		{"max-age=10, stale-while-revalidate=5", 0, []step{
			{0, nil, 200, "1", "fwd=uri-miss", "", 1},
			{15 * s, nil, 200, "1", "hit; ttl=-5", "15", 2},
			{16 * s, nil, 200, "2", "hit; ttl=9", "1", 2},
			{31 * s, nil, 200, "3", "fwd=stale", "", 3}, // 1 s after the window
		}},
		{"max-age=10, s-maxage=5, stale-while-revalidate=50", 0, []step{
			{0, nil, 200, "1", "fwd=uri-miss", "", 1},
			{5 * s, nil, 200, "2", "fwd=stale", "", 2},
		}},
		{"max-age=10", 0, []step{
			{0, nil, 200, "1", "fwd=uri-miss", "", 1},
			{1 * s, []string{"Cache-Control: no-cache"}, 200, "2", "fwd=request; fwd-status=200; stored", "", 2},
			{2 * s, nil, 200, "2", "hit; ttl=9", "1", 2},
			{3 * s, []string{"Cache-Control: only-if-cached"}, 200, "2", "hit", "2", 2},
			{12 * s, []string{"Cache-Control: only-if-cached"}, 504, unstored, "fwd=request", "", 2},
			{12 * s, []string{"Cache-Control: max-stale"}, 200, "2", "hit; ttl=-1", "11", 2},
		}},
		{"no-store", 10 * s, []step{
			{0, nil, 200, "1", "fwd=uri-miss; fwd-status=200", "", 1},
			{0, nil, 200, "2", "fwd=uri-miss; fwd-status=200", "", 2},
		}},
	} {
		synctest.Test(t, func(t *testing.T) {
			n := 0
			r := newRig(t, sut.EdgeConfig{TTL: test.ttl}, func(w http.ResponseWriter, req *http.Request) {
				n++
				cacheable(test.control, fmt.Sprint(n))(w, req)
			})
			r.run(test.control, test.steps)
		})
	}
}

func errorBody(text string) string { return `{"error":"` + text + `"}` + "\n" }

// TestErrors: what clients get while the origin fails.
func TestErrors(t *testing.T) {
	t.Parallel()
	const s = time.Second
	lost := errorBody("the origin sent no valid answer")
	for _, test := range []struct {
		name    string
		control string
		code    int // of the origin from the second request on; 0 = it breaks the connection
		steps   []step
	}{
		{"stale-sie-503", "max-age=10, stale-if-error=20", 503, []step{
			{0, nil, 200, "1", "fwd=uri-miss", "", 1},
			{30 * s, nil, 200, "1", "fwd=stale; fwd-status=503", "30", 2},
			{30*s + 500*time.Millisecond, nil, 200, "1", "fwd=stale; fwd-status=503; collapsed", "30", 2},
			{32 * s, nil, 503, "bad", "fwd=stale; fwd-status=503", "", 3},
		}},
		{"no stale-if-error", "max-age=10", 503, []step{
			{0, nil, 200, "1", "fwd=uri-miss", "", 1},
			{10 * s, nil, 503, "bad", "fwd=stale; fwd-status=503", "", 2},
		}},
		{"stale-sie-close", "max-age=10, stale-if-error=20", 0, []step{
			{0, nil, 200, "1", "fwd=uri-miss", "", 1},
			{30 * s, nil, 200, "1", "fwd=stale", "30", 2},
			{32 * s, nil, 502, lost, "fwd=stale", "", 3},
		}},
		{"stale-close", "max-age=10", 0, []step{
			{0, nil, 200, "1", "fwd=uri-miss", "", 1},
			{time.Hour, nil, 200, "1", "fwd=stale", "3600", 2},
			{48 * time.Hour, nil, 502, lost, "fwd=stale", "", 3},
		}},
		{"stale-close-must-revalidate", "max-age=10, must-revalidate", 0, []step{
			{0, nil, 200, "1", "fwd=uri-miss", "", 1},
			{time.Hour, nil, 504, lost, "fwd=stale", "", 2},
		}},
		{"stale-close-s-maxage", "s-maxage=10, stale-if-error=9999", 0, []step{
			{0, nil, 200, "1", "fwd=uri-miss", "", 1},
			{time.Hour, nil, 504, lost, "fwd=stale", "", 2},
		}},
	} {
		synctest.Test(t, func(t *testing.T) {
			n := 0
			r := newRig(t, sut.EdgeConfig{}, func(w http.ResponseWriter, req *http.Request) {
				n++
				switch {
				case n == 1:
					w.Header().Set("Connection", "close") // otherwise the transport sends the next request twice
					cacheable(test.control, "1")(w, req)
				case test.code == 0:
					panic(http.ErrAbortHandler)
				default:
					w.WriteHeader(test.code)
					_, _ = io.WriteString(w, "bad")
				}
			})
			r.run(test.name, test.steps)
		})
	}
}

// TestValidation: a 304 makes a stored response fresh again and changes its header.
func TestValidation(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := 0
		r := newRig(t, sut.EdgeConfig{}, func(w http.ResponseWriter, req *http.Request) {
			n++
			time.Sleep(100 * time.Millisecond)
			w.Header().Set("Cache-Control", "max-age=10")
			w.Header().Set("Etag", `"tag"`)
			w.Header().Set("N", fmt.Sprint(n))
			if req.Header.Get("If-None-Match") == `"tag"` && req.Header.Get("Range") == "" {
				w.WriteHeader(http.StatusNotModified)
				return
			}
			w.Header().Set("Once", "1")
			_, _ = io.WriteString(w, "0123456789")
		})
		r.get("/a")
		time.Sleep(20 * time.Second)
		lines := [][]string{nil, {`If-None-Match: "tag"`}, {"Range: bytes=2-3"}, {`If-None-Match: "other"`}}
		answers, _ := r.together(40, func(i int) answer { return r.get("/a", lines[i%4]...) })
		r.expect(2, "after the validation")
		for i, a := range answers {
			code := []int{200, 304, 206, 200}[i%4]
			body := []string{"0123456789", "", "23", "0123456789"}[i%4]
			if a.code != code || a.body != body || a.header.Get("N") != map[bool]string{true: "2"}[code != 304] ||
				!strings.HasPrefix(a.status(), "fwd=stale; fwd-status=304") || a.header.Get("Etag") != `"tag"` {
				t.Errorf("request %d: %+v", i, a)
			}
		}
		a := r.get("/a")
		if !strings.HasPrefix(a.status(), "hit; ttl=10") || a.header.Get("Once") != "1" || a.header.Get("N") != "2" {
			t.Errorf("afterwards: %+v", a)
		}
		if f := r.figures(); f.Stored != 1 || f.Entries != 1 {
			t.Errorf("figures: %+v", f)
		}
	})
}

// TestForeign304: a 304 about another version does not make the stored response fresh.
func TestForeign304(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sut.EdgeConfig{}, func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Cache-Control", "max-age=10")
			if req.Header.Get("If-None-Match") != "" {
				w.Header().Set("Etag", `"b"`)
				w.WriteHeader(http.StatusNotModified)
				return
			}
			tag := map[bool]string{true: `"a"`, false: `"b"`}[time.Now().Year() < 2001]
			w.Header().Set("Etag", tag)
			_, _ = io.WriteString(w, tag)
		})
		r.get("/a")
		time.Sleep(2 * 366 * 24 * time.Hour)
		if a := r.get("/a"); a.code != http.StatusOK || a.body != `"b"` {
			t.Errorf("got %+v", a)
		}
	})
}

// TestReplacedByUncacheable: when the origin replaces a stored response by one that must not be stored, the stored
// one is not used any more.
func TestReplacedByUncacheable(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := 0
		r := newRig(t, sut.EdgeConfig{}, func(w http.ResponseWriter, req *http.Request) {
			n++
			control := "max-age=10, stale-while-revalidate=100"
			if n > 1 {
				control = "no-store"
			}
			cacheable(control, fmt.Sprint(n))(w, req)
		})
		r.run("replaced", []step{
			{0, nil, 200, "1", "fwd=uri-miss", "", 1},
			{20 * time.Second, nil, 200, "1", "hit; ttl=-10", "20", 2},
			{21 * time.Second, nil, 200, "3", "fwd=uri-miss", "", 3},
		})
		if f := r.figures(); f.Entries != 0 {
			t.Errorf("%d entries", f.Entries)
		}
	})
}
