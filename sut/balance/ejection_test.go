package balance

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// misbehave has a host fail so many errands in a row.
func misbehave(p *pool, node string, times int) {
	for range times {
		u := p.acquire(p.routes.Load().all(), errand{held: node})
		p.release(u, failed, "500 Internal Server Error", time.Millisecond)
	}
}

func (p *pool) statusOf(t *testing.T, node string) sut.UpstreamStatus {
	t.Helper()
	list := p.status()
	i := slices.IndexFunc(list, func(s sut.UpstreamStatus) bool { return s.Node == node })
	if i < 0 {
		t.Fatalf("no %s in %+v", node, list)
	}
	return list[i]
}

// TestEjectionLastsLongerEachTime runs in a bubble of its own time.
func TestEjectionLastsLongerEachTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := poolOf(2, sut.PolicyRoundRobin)
		p.cfg.EjectAfter = 3
		for n := 1; n <= 4; n++ {
			misbehave(p, "web-1", 2)
			if !p.statusOf(t, "web-1").Up {
				t.Fatal("ejected after two failures")
			}
			misbehave(p, "web-1", 1)
			got := p.statusOf(t, "web-1")
			want := fmt.Sprintf("ejected for %ds after 3 failures in a row, the last: 500 Internal Server Error", n)
			if got.Up || !got.Ejected || got.Cause != want || got.Ejections != uint64(n) || got.WentDown != uint64(n) {
				t.Errorf("after ejection %d: %+v, want cause %q", n, got, want)
			}
			// A good check is no reason to come back: they were good all the time.
			p.checked(p.members[0], p.verdictsOf(p.members[0]), nil)
			time.Sleep(time.Duration(n)*time.Second - time.Millisecond)
			synctest.Wait()
			if p.statusOf(t, "web-1").Up {
				t.Errorf("ejection %d ended early", n)
			}
			time.Sleep(2 * time.Millisecond)
			synctest.Wait()
			if got := p.statusOf(t, "web-1"); !got.Up || got.Cause != "" || got.WentUp != uint64(n) {
				t.Errorf("after the end of ejection %d: %+v", n, got)
			}
		}
		// Twenty good seconds take two ejections back: the next is the third.
		time.Sleep(20 * time.Second)
		misbehave(p, "web-1", 3)
		if got := p.statusOf(t, "web-1"); !strings.HasPrefix(got.Cause, "ejected for 3s") {
			t.Errorf("after good behaviour: %q", got.Cause)
		}
		// It becomes unwell while it is ejected, and stays out at the end.
		p.checked(p.members[0], p.verdictsOf(p.members[0]), fmt.Errorf("sick"))
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := p.statusOf(t, "web-1"); got.Up || got.Ejected || got.Cause != "sick" {
			t.Errorf("unwell after its ejection: %+v", got)
		}
		p.close()
	})
}

func TestEjectionIsBounded(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 30: 30 * time.Second, 31: 30 * time.Second, 1 << 40: 30 * time.Second} {
		if got := ejectionTime(n); got != want {
			t.Errorf("ejection %d lasts %v, want %v", n, got, want)
		}
	}
	for _, test := range []struct {
		strikes int
		behaved time.Duration
		want    int
	}{{3, 9 * time.Second, 3}, {3, 10 * time.Second, 2}, {3, time.Hour, 0}, {0, 0, 0}} {
		if got := strikesAfter(test.strikes, test.behaved); got != test.want {
			t.Errorf("%d strikes and %v: %d, want %d", test.strikes, test.behaved, got, test.want)
		}
	}
}

// TestLastHostIsNeverEjected, of all or of a route: a bad host is better than none.
func TestLastHostIsNeverEjected(t *testing.T) {
	t.Parallel()
	p := poolOf(3, sut.PolicyRoundRobin)
	p.cfg.EjectAfter = 1
	defer p.close()
	peers := p.cfg.Peers
	p.become(sut.Upstreams{Peers: peers, Routes: []sut.Route{{Path: "/img/*", To: []string{"web-3"}}}})
	misbehave(p, "web-3", 5)
	if got := p.statusOf(t, "web-3"); !got.Up {
		t.Errorf("the only host of a route is out: %+v", got)
	}
	p.become(sut.Upstreams{Peers: peers})
	for _, node := range []string{"web-1", "web-2", "web-3"} {
		misbehave(p, node, 5)
	}
	up := 0
	for _, s := range p.status() {
		if s.Up {
			up++
		}
	}
	if up != 1 {
		t.Errorf("%d hosts are up, want the last one: %+v", up, p.status())
	}
}

func TestWhatCountsAsFailure(t *testing.T) {
	t.Parallel()
	for code, want := range map[int]verdict{
		200: succeeded, 301: succeeded, 404: succeeded, 429: succeeded, 501: succeeded,
		500: failed, 502: failed, 504: failed,
		503: noVerdict, // a host that is full says so
	} {
		if got, _ := judge(&http.Response{StatusCode: code, Status: fmt.Sprint(code)}); got != want {
			t.Errorf("status %d: verdict %d, want %d", code, got, want)
		}
	}
}

// TestBrokenAnswersCount: the headers were good, and the body broke off.
func TestBrokenAnswersCount(t *testing.T) {
	t.Parallel()
	breaks := hostOf(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100000")
		_, _ = w.Write(make([]byte, 50_000))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	works := hostOf(t, func(http.ResponseWriter, *http.Request) {})
	var log bytes.Buffer
	b := newBalancer(t, Config{Balancing: sut.Balancing{Sticky: true, EjectAfter: 2}, Log: slog.New(slog.NewJSONHandler(&log, nil))}, breaks, works)
	front := serve(t, b)
	for range 2 {
		req, err := http.NewRequest("GET", "http://"+front+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Cookie", "lb=web-1")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := new(bytes.Buffer).ReadFrom(res.Body); err == nil {
			t.Errorf("a whole answer of %d bytes", n)
		}
		_ = res.Body.Close()
	}
	if got := b.pool.statusOf(t, "web-1"); !got.Ejected {
		t.Errorf("after two answers that broke off: %+v", got)
	}
}

// TestRequestsAreLogged looks at the lines: which requests have one, and what
// it says.
func TestRequestsAreLogged(t *testing.T) {
	t.Parallel()
	type line struct {
		Level      string
		Msg        string
		RequestID  string `json:"request_id"`
		Method     string
		Path       string
		Status     int
		Upstream   string
		DurationNS int64 `json:"duration_ns"`
		Cause      string
	}
	host := hostOf(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/500":
			w.WriteHeader(http.StatusInternalServerError)
		case "/abort":
			panic(http.ErrAbortHandler)
		}
	})
	for _, test := range []struct {
		which string
		want  []string // of the paths
	}{
		{sut.LogFailed, []string{"/500", "/abort"}},
		{sut.LogAll, []string{"/200", "/500", "/abort"}},
		{sut.LogNone, nil},
	} {
		lines := make(chan line, 10)
		b := newBalancer(t, Config{Balancing: sut.Balancing{LogRequests: test.which}, Log: slog.New(slog.NewJSONHandler(writerFunc(func(p []byte) {
			var l line
			if err := json.Unmarshal(p, &l); err != nil {
				t.Error(err)
			}
			if l.Msg == "request" {
				lines <- l
			}
		}), nil))}, host)
		front := serve(t, b)
		for _, path := range []string{"/200", "/500", "/abort"} {
			raw(t, front, "GET "+path+"?secret=1 HTTP/1.1\r\nHost: h\r\nX-Request-Id: id-of-"+path[1:]+"\r\n\r\n")
		}
		for _, path := range test.want {
			select {
			case l := <-lines:
				if l.Path != path || l.RequestID != "id-of-"+path[1:] || l.Method != "GET" || l.Upstream != "web-1" || l.DurationNS <= 0 ||
					(path == "/abort") != (l.Cause != "") || (l.Level == "WARN") != (l.Status >= 500) {
					t.Errorf("%s: %+v, want a line for %s", test.which, l, path)
				}
			case <-time.After(time.Minute):
				t.Fatalf("%s: no line for %s", test.which, path)
			}
		}
		select {
		case l := <-lines:
			t.Errorf("%s: %+v was not to be logged", test.which, l)
		default:
		}
	}
}

// writerFunc takes what is logged, a line at a time.
type writerFunc func(p []byte)

func (f writerFunc) Write(p []byte) (int, error) {
	f(p)
	return len(p), nil
}
