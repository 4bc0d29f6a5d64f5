package edge

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// TestTruncatedBodies: a body that breaks off is not stored, and its readers notice.
func TestTruncatedBodies(t *testing.T) {
	t.Parallel()
	for _, length := range []string{"", "10"} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, sut.EdgeConfig{}, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Cache-Control", "max-age=60")
				if length != "" {
					w.Header().Set("Content-Length", length)
				}
				_, _ = io.WriteString(w, "01234")
				_ = http.NewResponseController(w).Flush()
				time.Sleep(time.Second)
				panic(http.ErrAbortHandler)
			})
			answers, _ := r.together(10, func(int) answer { return r.get("/a") })
			for _, a := range answers {
				if !a.aborted || a.body != "01234" {
					t.Errorf("length %q: got %+v", length, a)
				}
			}
			r.expect(1, "together")
			if f := r.figures(); f.Entries != 0 || f.Stored != 0 || f.Bytes != 0 {
				t.Errorf("length %q: figures %+v", length, f)
			}
		})
	}
}

// TestStreaming: all readers get bytes as they arrive.
func TestStreaming(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sut.EdgeConfig{}, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Cache-Control", "max-age=60")
			for i := range 5 {
				_, _ = fmt.Fprint(w, i)
				_ = http.NewResponseController(w).Flush()
				time.Sleep(time.Second)
			}
		})
		answers, took := r.together(6, func(i int) answer {
			time.Sleep(time.Duration(i) * 900 * time.Millisecond)
			return r.get("/a")
		})
		for _, a := range answers {
			if a.body != "01234" {
				t.Errorf("got %+v", a)
			}
		}
		r.expect(1, "together")
		if took != 5*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

// TestLargeBodies: a body that is too large for the store passes in bounded memory, with and without a length.
func TestLargeBodies(t *testing.T) {
	t.Parallel()
	content := pattern(3 << 20)
	for _, length := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			var r *rig
			r = newRig(t, sut.EdgeConfig{MaxBytes: 1 << 20}, func(w http.ResponseWriter, _ *http.Request) {
				time.Sleep(time.Second) // until all requests wait
				w.Header().Set("Cache-Control", "max-age=60")
				if length {
					w.Header().Set("Content-Length", fmt.Sprint(len(content)))
				}
				for part := content; len(part) > 0; part = part[min(len(part), 100_000):] {
					_, _ = w.Write(part[:min(len(part), 100_000)])
					if f := r.figures(); f.Bytes > f.MaxBytes {
						t.Errorf("%d bytes in memory", f.Bytes)
					}
				}
			})
			answers, _ := r.together(4, func(int) answer { return r.get("/a") })
			for i, a := range answers {
				if a.body != string(content) || a.aborted {
					t.Errorf("length %v: request %d got %d bytes, aborted: %v", length, i, len(a.body), a.aborted)
				}
			}
			if f := r.figures(); f.Entries != 0 || f.Bytes != 0 {
				t.Errorf("length %v: figures %+v", length, f)
			}
			if !length {
				r.expect(1, "shared until it was too large")
			}
		})
	}
}

// eager sends a request as soon as it has all bytes of a response, as a client that knows the length can.
type eager struct {
	http.ResponseWriter
	missing int
	then    func()
}

func (e *eager) Write(p []byte) (int, error) {
	n, err := e.ResponseWriter.Write(p)
	if e.missing -= n; e.missing == 0 {
		e.then()
	}
	return n, err
}

// TestStoredBeforeTheEnd: a client that has all bytes of a response finds it stored.
func TestStoredBeforeTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sut.EdgeConfig{}, cacheable("max-age=60", "0123456789"))
		for i := range 1000 {
			url := fmt.Sprintf("/%d", i)
			w := &eager{ResponseWriter: httptest.NewRecorder(), missing: 10, then: func() {
				if a := r.get(url, "Range: bytes=1-"); a.body != "123456789" || a.status() != "hit; ttl=60" {
					t.Errorf("%s: got %q with %q", url, a.body, a.status())
				}
			}}
			r.edge.serve(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, url, nil))
			if w.missing != 0 {
				t.Fatalf("%s: %d bytes are missing", url, w.missing)
			}
		}
	})
}

// TestSlowReader: a client that does not read a large body is broken off, and the others go on.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBody(func(int) {})
		slow, quick := b.join(), b.join()
		copy(b.room(8), "0123")
		b.extend(4)
		b.drop()
		if b.join() != nil {
			t.Error("a reader joins a body whose beginning may be lost")
		}
		expired := make(chan struct{})
		time.AfterFunc(time.Minute, func() { close(expired) })
		go func() {
			part, _, _ := quick.next(t.Context(), nil)
			quick.advance(len(part))
		}()
		if got := b.drain(t.Context(), expired); got != 1 {
			t.Errorf("%d readers remain, want 1", got)
		}
		if _, _, err := slow.next(t.Context(), nil); err != errTooSlow {
			t.Errorf("the slow reader got %v", err)
		}
		copy(b.room(8), "4567")
		b.end(4, nil)
		if part, last, err := quick.next(t.Context(), nil); string(part) != "4567" || !last || err != nil {
			t.Errorf("got %q, %v, %v", part, last, err)
		}
	})
}

// TestSecondHit: a response is stored from the second request on.
func TestSecondHit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sut.EdgeConfig{Admit: sut.AdmitSecondHit}, cacheable("max-age=60", "x"))
		want := []string{"fwd=uri-miss; fwd-status=200", "fwd=uri-miss; fwd-status=200; stored", "hit; ttl=60"}
		for i, want := range want {
			if a := r.get("/a"); a.status() != want {
				t.Errorf("request %d: %q, want %q", i, a.status(), want)
			}
		}
		// Two requests at the same time are two requests.
		r.together(2, func(int) answer { return r.get("/b") })
		if a := r.get("/b"); !strings.HasPrefix(a.status(), "hit") {
			t.Errorf("after two requests: %q", a.status())
		}
	})
}
