package edge

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// TestColdRequestsShareOneFetch: 100 requests for a cold URL make one request to the origin.
func TestColdRequestsShareOneFetch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sut.EdgeConfig{}, func(w http.ResponseWriter, req *http.Request) {
			time.Sleep(200 * time.Millisecond)
			cacheable("max-age=60", "hello")(w, req)
		})
		answers, took := r.together(100, func(int) answer { return r.get("/a") })
		r.expect(1, "cold")
		collapsed := 0
		for _, a := range answers {
			if a.code != http.StatusOK || a.body != "hello" {
				t.Errorf("got %+v", a)
			}
			if strings.Contains(a.status(), "collapsed") {
				collapsed++
			}
		}
		if collapsed != 99 || took != 200*time.Millisecond {
			t.Errorf("%d requests collapsed, after %v", collapsed, took)
		}
		if a := r.get("/a"); a.status() != "hit; ttl=60" || a.header.Get("Age") != "0" {
			t.Errorf("afterwards: %q, Age %q", a.status(), a.header.Get("Age"))
		}
		f := r.figures()
		if f.Requests != 101 || f.Hits != 1 || f.Fetched != 1 || f.FetchedBytes != 5 || f.Stored != 1 || f.Entries != 1 {
			t.Errorf("figures: %+v", f)
		}
	})
}

// TestUncacheableDoesNotQueue: requests for a response that must not be stored go to the origin in parallel as soon
// as the header of the first one is there, and later at once.
func TestUncacheableDoesNotQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const latency = 200 * time.Millisecond
		early, storable := true, false
		r := newRig(t, sut.EdgeConfig{}, func(w http.ResponseWriter, req *http.Request) {
			if storable {
				w.Header().Set("Cache-Control", "max-age=60")
			} else {
				w.Header().Set("Cache-Control", "no-store")
			}
			if early {
				_ = http.NewResponseController(w).Flush()
			}
			time.Sleep(latency)
			_, _ = io.WriteString(w, "hello")
		})
		send := func(int) answer { return r.get("/a") }
		for _, step := range []struct {
			name             string
			earlyHeader      bool
			storable, forget bool
			fetched          int64
			took             time.Duration
		}{
			{"the header comes at once", true, false, true, 100, latency},
			{"the header comes late", false, false, true, 100, 2 * latency},
			{"known as uncacheable", false, false, false, 100, latency},
			{"a storable answer", false, true, false, 100, latency}, // known as uncacheable when they begin
			{"stored", false, true, false, 0, 0},
		} {
			early, storable = step.earlyHeader, step.storable
			if step.forget {
				r.edge.unqueued.remove("example.com/a")
			}
			before := r.fetched.Load()
			answers, took := r.together(100, send)
			for _, a := range answers {
				if a.code != http.StatusOK || a.body != "hello" {
					t.Fatalf("%s: got %+v", step.name, a)
				}
			}
			if got := r.fetched.Load() - before; got != step.fetched || took != step.took {
				t.Errorf("%s: %d requests at the origin, want %d, in %v, want %v", step.name, got, step.fetched, took, step.took)
			}
		}
		// The storable answer has lifted the mark: when it is stale, requests share one fetch again.
		time.Sleep(2 * time.Minute)
		before := r.fetched.Load()
		r.together(100, send)
		if got := r.fetched.Load() - before; got != 1 {
			t.Errorf("after a storable answer: %d requests at the origin, want 1", got)
		}
	})
}

// TestMarkExpires: 120 s after an uncacheable answer requests queue again.
func TestMarkExpires(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sut.EdgeConfig{}, cacheable("no-store", "x"))
		r.get("/a")
		key := "example.com/a"
		if !r.edge.unqueued.has(key, time.Now()) {
			t.Error("the key is not marked")
		}
		time.Sleep(unqueuedFor)
		if r.edge.unqueued.has(key, time.Now()) {
			t.Error("the mark does not expire")
		}
	})
}

// TestWaitersOfOtherVariants: a response is shared only by the requests that select it.
func TestWaitersOfOtherVariants(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sut.EdgeConfig{}, func(w http.ResponseWriter, req *http.Request) {
			time.Sleep(100 * time.Millisecond)
			w.Header().Set("Vary", "Foo")
			cacheable("max-age=60", "for "+req.Header.Get("Foo"))(w, req)
		})
		answers, took := r.together(100, func(i int) answer { return r.get("/a", fmt.Sprintf("Foo: %d", i%2)) })
		for i, a := range answers {
			if want := fmt.Sprintf("for %d", i%2); a.body != want {
				t.Errorf("request %d got %q, want %q", i, a.body, want)
			}
		}
		r.expect(2, "two variants")
		if took != 200*time.Millisecond {
			t.Errorf("took %v", took)
		}
		if a := r.get("/a", "Foo: 2"); !strings.HasPrefix(a.status(), "fwd=vary-miss; fwd-status=200") {
			t.Errorf("a third variant: %q", a.status())
		}
	})
}

// TestOwnRequests: requests with Authorization, Range or no-cache go to the origin themselves.
func TestOwnRequests(t *testing.T) {
	t.Parallel()
	for _, line := range []string{"Authorization: x", "Range: bytes=0-1", "Cache-Control: no-cache", `If-Match: "a"`} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, sut.EdgeConfig{}, func(w http.ResponseWriter, req *http.Request) {
				time.Sleep(time.Second)
				name, _, _ := strings.Cut(line, ":")
				cacheable("max-age=60", req.Header.Get(name))(w, req)
			})
			answers, _ := r.together(2, func(i int) answer {
				if i == 0 {
					return r.get("/a")
				}
				time.Sleep(500 * time.Millisecond)
				return r.get("/a", line)
			})
			_, value, _ := strings.Cut(line, ": ")
			if answers[0].body != "" || answers[1].body != value {
				t.Errorf("%s: got %q and %q", line, answers[0].body, answers[1].body)
			}
			r.expect(2, line)
		})
	}
}

// TestFailuresAreShared: while the origin fails, it gets one request per second for a URL.
func TestFailuresAreShared(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sut.EdgeConfig{}, func(http.ResponseWriter, *http.Request) {
			time.Sleep(100 * time.Millisecond)
			panic(http.ErrAbortHandler)
		})
		for round := range int64(3) {
			answers, took := r.together(50, func(int) answer { return r.get("/a") })
			answers = append(answers, r.get("/a"))
			for _, a := range answers {
				if a.code != http.StatusBadGateway || !strings.Contains(a.body, `"error"`) {
					t.Fatalf("got %+v", a)
				}
			}
			r.expect(round+1, "round")
			if took != 100*time.Millisecond {
				t.Errorf("took %v", took)
			}
			time.Sleep(failureTime)
		}
	})
}

// TestErrorAnswersAreShared: an error of the origin goes to all who wait for it, without its body.
func TestErrorAnswersAreShared(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sut.EdgeConfig{}, func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(100 * time.Millisecond)
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, "own")
		})
		for round := range int64(2) {
			answers, _ := r.together(50, func(int) answer { return r.get("/a") })
			own := 0
			for _, a := range answers {
				if a.body == "own" {
					own++
				} else if a.body != errorBody("the origin answered with 503 Service Unavailable") {
					t.Errorf("got %q", a.body)
				}
				if a.code != http.StatusServiceUnavailable || a.header.Get("Retry-After") != "7" {
					t.Errorf("got %+v", a)
				}
			}
			if own != 1 {
				t.Errorf("%d clients got the answer of the origin", own)
			}
			r.expect(2*round+1, "round")
			if a := r.get("/a"); a.body != "own" { // an answer that is not stored is not used later
				t.Errorf("a later request got %q", a.body)
			}
		}
	})
}

// TestLeaderLeaves: the fill goes on without the client that caused it.
func TestLeaderLeaves(t *testing.T) {
	t.Parallel()
	for _, moment := range []time.Duration{500 * time.Millisecond, 1500 * time.Millisecond} { // before, after the header
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, sut.EdgeConfig{}, func(w http.ResponseWriter, req *http.Request) {
				time.Sleep(time.Second)
				w.Header().Set("Cache-Control", "max-age=60")
				w.Header().Set("Content-Length", "10")
				_, _ = io.WriteString(w, "01234")
				_ = http.NewResponseController(w).Flush()
				time.Sleep(time.Second)
				_, _ = io.WriteString(w, "56789")
			})
			ctx, cancel := context.WithTimeout(t.Context(), moment)
			defer cancel()
			answers, _ := r.together(2, func(i int) answer {
				if i == 0 {
					return r.do(ctx, http.MethodGet, "/a", "")
				}
				time.Sleep(100 * time.Millisecond)
				return r.get("/a")
			})
			if !answers[0].aborted || answers[1].body != "0123456789" {
				t.Errorf("got %+v", answers)
			}
			if a := r.get("/a"); !strings.HasPrefix(a.status(), "hit") || a.body != "0123456789" {
				t.Errorf("afterwards: %+v", a)
			}
			r.expect(1, "all")
		})
	}
}

// TestWaiterHasItsOwnDeadline: a waiter that leaves does not disturb the others.
func TestWaiterHasItsOwnDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sut.EdgeConfig{}, func(w http.ResponseWriter, req *http.Request) {
			time.Sleep(time.Second)
			cacheable("max-age=60", "x")(w, req)
		})
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		answers, _ := r.together(3, func(i int) answer {
			time.Sleep(time.Duration(i) * time.Millisecond)
			if i == 1 {
				return r.do(ctx, http.MethodGet, "/a", "")
			}
			return r.get("/a")
		})
		if answers[0].body != "x" || !answers[1].aborted || answers[2].body != "x" {
			t.Errorf("got %+v", answers)
		}
	})
}

// TestPurgeDuringFill: a response that was requested before a purge is not stored after it, and later requests do not
// get it.
func TestPurgeDuringFill(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		site  string
		purge sut.Purge
	}{
		"url":           {"", sut.Purge{URLs: []string{"/a?v=1"}}},
		"url of a site": {"photos.test", sut.Purge{URLs: []string{"/a?v=1"}}},
		"group":         {"", sut.Purge{Groups: []string{"photo-1"}}},
	} {
		for _, moment := range []time.Duration{500 * time.Millisecond, 1500 * time.Millisecond} { // before, after the header
			synctest.Test(t, func(t *testing.T) {
				var version atomic.Int64
				r := newRig(t, sut.EdgeConfig{Site: test.site}, func(w http.ResponseWriter, req *http.Request) {
					body := fmt.Sprintf("version %d", version.Add(1))
					time.Sleep(time.Second)
					w.Header().Set("Cache-Control", "max-age=60")
					w.Header().Set("Cache-Groups", `"photo-1", "user-1"`)
					_ = http.NewResponseController(w).Flush()
					time.Sleep(time.Second)
					_, _ = io.WriteString(w, body)
				})
				answers, _ := r.together(2, func(i int) answer {
					if i == 0 {
						return r.get("/a?v=1")
					}
					time.Sleep(moment)
					if err := r.edge.Purge(t.Context(), test.purge); err != nil {
						t.Error(err)
					}
					return r.get("/a?v=1")
				})
				if answers[0].body != "version 1" || answers[1].body != "version 2" {
					t.Errorf("%s after %v: got %q and %q", name, moment, answers[0].body, answers[1].body)
				}
				if a := r.get("/a?v=1"); a.body != "version 2" || !strings.HasPrefix(a.status(), "hit") {
					t.Errorf("%s after %v: afterwards %q, %q", name, moment, a.body, a.status())
				}
			})
		}
	}
}
