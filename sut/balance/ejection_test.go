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

// misbehave makes consecutive requests to a host fail.
func misbehave(p *pool, node string, times int) {
	for range times {
		u := p.acquire(p.routes.Load().all(), pick{sticky: node})
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

// TestEjectionLastsLongerEachTime: each ejection is longer than the one before, and time
// without ejections shortens the next one.
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
			want := fmt.Sprintf("ejected for %ds after 3 consecutive failures, the last: 500 Internal Server Error", n)
			if got.Up || !got.Ejected || got.Cause != want || got.Ejections != uint64(n) || got.WentDown != uint64(n) {
				t.Errorf("after ejection %d: %+v, want cause %q", n, got, want)
			}
			// A good check does not end an ejection.
			p.checked(p.members[0], p.refusalsOf(p.members[0]), nil)
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
		// Twenty seconds without ejections subtract 2 from the multiplier 4.
		time.Sleep(20 * time.Second)
		misbehave(p, "web-1", 3)
		if got := p.statusOf(t, "web-1"); !strings.HasPrefix(got.Cause, "ejected for 3s") {
			t.Errorf("after a time without ejections: %q", got.Cause)
		}
		// A check fails during the ejection: the host stays down after its end.
		p.checked(p.members[0], p.refusalsOf(p.members[0]), fmt.Errorf("sick"))
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := p.statusOf(t, "web-1"); got.Up || got.Ejected || got.Cause != "sick" {
			t.Errorf("unhealthy after its ejection: %+v", got)
		}
		p.close()
	})
}

func TestEjectionIsBounded(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]time.Duration{
		1: time.Second, 2: 2 * time.Second, 30: 30 * time.Second, 31: 30 * time.Second, 1 << 40: 30 * time.Second,
	} {
		if got := ejectionTime(n); got != want {
			t.Errorf("multiplier %d: ejection of %v, want %v", n, got, want)
		}
	}
	for _, test := range []struct {
		multiplier int
		quiet      time.Duration
		want       int
	}{{3, 9 * time.Second, 3}, {3, 10 * time.Second, 2}, {3, time.Hour, 0}, {0, 0, 0}} {
		if got := decayMultiplier(test.multiplier, test.quiet); got != test.want {
			t.Errorf("multiplier %d after %v: %d, want %d", test.multiplier, test.quiet, got, test.want)
		}
	}
}

// TestLastHostIsNeverEjected: the last host that is up, of all hosts or of a route, is
// not ejected.
func TestLastHostIsNeverEjected(t *testing.T) {
	t.Parallel()
	p := poolOf(3, sut.PolicyRoundRobin)
	p.cfg.EjectAfter = 1
	defer p.close()
	peers := p.cfg.Peers
	p.setMembers(sut.Upstreams{Peers: peers, Routes: []sut.Route{{Path: "/img/*", To: []string{"web-3"}}}})
	misbehave(p, "web-3", 5)
	if got := p.statusOf(t, "web-3"); !got.Up {
		t.Errorf("the only host of a route is down: %+v", got)
	}
	p.setMembers(sut.Upstreams{Peers: peers})
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
		503: noVerdict, // the host is at capacity
	} {
		if got, _ := judge(&http.Response{StatusCode: code, Status: fmt.Sprint(code)}); got != want {
			t.Errorf("status %d: verdict %d, want %d", code, got, want)
		}
	}
}

// TestBrokenAnswersCount: an answer whose body breaks off counts as a failure.
func TestBrokenAnswersCount(t *testing.T) {
	t.Parallel()
	breaks := hostOf(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100000")
		_, _ = w.Write(make([]byte, 50_000))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	works := hostOf(t, func(http.ResponseWriter, *http.Request) {})
	b := newBalancer(t, Config{Balancing: sut.Balancing{Sticky: true, EjectAfter: 2}}, breaks, works)
	address := serve(t, b)
	for range 2 {
		req, err := http.NewRequest("GET", "http://"+address+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Cookie", "lb=web-1")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := new(bytes.Buffer).ReadFrom(res.Body); err == nil {
			t.Errorf("a complete answer of %d bytes, want one that breaks off", n)
		}
		_ = res.Body.Close()
	}
	if got := b.pool.statusOf(t, "web-1"); !got.Ejected {
		t.Errorf("after two answers that broke off: %+v", got)
	}
}

// logLine is one line of the balancer's log.
type logLine struct {
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

// logsRequestsTo returns a logger that sends each line about a request to a channel.
func logsRequestsTo(t *testing.T, lines chan<- logLine) *slog.Logger {
	return slog.New(slog.NewJSONHandler(writerFunc(func(p []byte) {
		var l logLine
		if err := json.Unmarshal(p, &l); err != nil {
			t.Error(err)
		}
		if l.Msg == "request" {
			lines <- l
		}
	}), nil))
}

// TestRequestsAreLogged checks which requests are logged and the content of the lines.
func TestRequestsAreLogged(t *testing.T) {
	t.Parallel()
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
		want  []string // paths
	}{
		{sut.LogFailed, []string{"/500", "/abort"}},
		{sut.LogAll, []string{"/200", "/500", "/abort"}},
		{sut.LogNone, nil},
	} {
		lines := make(chan logLine, 10)
		balancing := sut.Balancing{LogRequests: test.which}
		b := newBalancer(t, Config{Balancing: balancing, Log: logsRequestsTo(t, lines)}, host)
		address := serve(t, b)
		for _, path := range []string{"/200", "/500", "/abort"} {
			raw(t, address, "GET "+path+"?secret=1 HTTP/1.1\r\nHost: h\r\nX-Request-Id: id-of-"+path[1:]+"\r\n\r\n")
		}
		for _, path := range test.want {
			select {
			case l := <-lines:
				if l.Path != path || l.RequestID != "id-of-"+path[1:] || l.Method != "GET" || l.Upstream != "web-1" ||
					l.DurationNS <= 0 || (path == "/abort") != (l.Cause != "") ||
					(l.Level == "WARN") != (l.Status >= 500) {
					t.Errorf("%s: %+v, want a line for %s", test.which, l, path)
				}
			case <-time.After(time.Minute):
				t.Fatalf("%s: no line for %s", test.which, path)
			}
		}
		select {
		case l := <-lines:
			t.Errorf("%s: unexpected line %+v", test.which, l)
		default:
		}
	}
}

// writerFunc is a function as an io.Writer.
type writerFunc func(p []byte)

func (f writerFunc) Write(p []byte) (int, error) {
	f(p)
	return len(p), nil
}
