package haproxy_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stagebench/stagebench/internal/servertest"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/haproxy"
)

// startHosts starts n hosts that answer with their names.
func startHosts(t testing.TB, n int) []sut.Peer {
	t.Helper()
	var peers []sut.Peer
	for i := range n {
		name := fmt.Sprintf("web-%d", i+1)
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/fail" {
				w.WriteHeader(http.StatusInternalServerError)
			}
			_, _ = io.WriteString(w, name)
		}))
		t.Cleanup(server.Close)
		peers = append(peers, sut.Peer{Node: name, Address: server.Listener.Addr().String()})
	}
	return peers
}

// roundTrip sends a request on a new connection and returns the status and the name of the
// host that answered.
func roundTrip(t testing.TB, h *haproxy.Server, path, id string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+h.Address()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	req.Header.Set(sut.RequestIDHeader, id)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

// The server's lines about requests become lines of the node's log. They have the host's
// name, also for a host that was added while the server ran.
func TestLogsRequests(t *testing.T) {
	t.Parallel()
	install := haproxyInstalled(t)
	for logged, want := range map[string]string{
		sut.LogNone:   "",
		sut.LogFailed: "id-2 500 web-2\nid-last 500 web-2\n",
		sut.LogAll:    "id-1 200 web-2\nid-2 500 web-2\nid-last 500 web-2\n",
	} {
		t.Run(logged, func(t *testing.T) {
			t.Parallel()
			hosts := startHosts(t, 2)
			reader, writer := io.Pipe()
			h := newConfig(t, haproxy.Config{
				Balancing: sut.Balancing{
					Node: "lb-1", Upstreams: sut.Upstreams{Peers: hosts[:1]},
					LogRequests: logged, HealthInterval: 20 * time.Millisecond,
				},
				Log: slog.New(slog.NewJSONHandler(writer, nil)), Install: install,
			})
			p := servertest.Start(t, h, nil) // handled below
			if err := h.SetUpstreams(t.Context(), sut.Upstreams{Peers: hosts[1:]}); err != nil {
				t.Fatal(err)
			}
			servertest.Eventually(t, "the new host is up", func() bool {
				s, err := h.Status(t.Context())
				return err == nil && s.Upstreams[0].Up
			})
			long := "/" + strings.Repeat("long", 2000)
			for i, path := range []string{long, "/fail", "/fail"} {
				roundTrip(t, h, path, []string{"id-1", "id-2", "id-last"}[i])
			}
			if logged != sut.LogNone {
				servertest.Eventually(t, "the last line is printed", func() bool { return strings.Contains(p.Log(), `"id-last"`) })
			}
			go func() {
				for line := range strings.Lines(p.Log()) {
					h.HandleLogLine(strings.TrimSpace(line))
				}
				_ = writer.Close() // never fails for a pipe
			}()
			got := ""
			for lines := bufio.NewReader(reader); ; {
				line, err := lines.ReadBytes('\n')
				if errors.Is(err, io.EOF) {
					break
				}
				var entry struct {
					ID       string `json:"request_id"`
					Method   string `json:"method"`
					Path     string `json:"path"`
					Status   int    `json:"status"`
					Upstream string `json:"upstream"`
				}
				if err := json.Unmarshal(line, &entry); err != nil {
					t.Fatal(err)
				}
				if entry.Method != http.MethodGet || entry.Path != long && entry.Path != "/fail" {
					t.Errorf("logged %s", line)
				}
				got += fmt.Sprintf("%s %d %s\n", entry.ID, entry.Status, entry.Upstream)
			}
			if got != want {
				t.Errorf("logged\n%swant\n%s", got, want)
			}
		})
	}
}

// A request that is still in flight at the end of the drain is aborted with a 502.
func TestDrainIsBounded(t *testing.T) {
	t.Parallel()
	arrived := make(chan struct{})
	cfg := oneHost(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			close(arrived)
			<-r.Context().Done()
		}
	})
	cfg.Node = "lb-1"
	h := newConfig(t, haproxy.Config{Balancing: cfg, Install: haproxyInstalled(t), Drain: time.Second})
	p := servertest.Start(t, h, h.HandleLogLine)
	held := make(chan []string)
	go func() { held <- get(t, h.Address(), "/hold") }()
	<-arrived
	p.Signal(t, h.StopSignal())
	_ = p.Wait(t)
	if got := <-held; fmt.Sprint(got) != "[502]" {
		t.Errorf("the request ended with %v", got)
	}
}

// At layer 4, connections survive the removal of their host, and the host can be added
// again while they are open.
func TestConnectionOutlivesARemoval(t *testing.T) {
	t.Parallel()
	hosts := startHosts(t, 2)
	h := newHAProxy(t, haproxyInstalled(t), sut.Balancing{
		Upstreams: sut.Upstreams{Peers: hosts}, Layer: sut.Layer4, HealthInterval: 20 * time.Millisecond,
	})
	servertest.Start(t, h, h.HandleLogLine)
	conn, err := net.Dial("tcp", h.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	reader := bufio.NewReader(conn)
	name := func() string {
		t.Helper()
		_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
		res, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(body)
	}
	first := name()
	kept := slices.DeleteFunc(slices.Clone(hosts), func(p sut.Peer) bool { return p.Node == first })
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := h.SetUpstreams(short, sut.Upstreams{Peers: kept}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("removal of a host with an open connection: error %v, want a timeout", err)
	}
	if got := name(); got != first {
		t.Errorf("after the removal %s answers, want %s", got, first)
	}
	if err := h.SetUpstreams(t.Context(), sut.Upstreams{Peers: hosts}); err != nil {
		t.Fatal(err)
	}
	if got := name(); got != first {
		t.Errorf("after the host was added again, %s answers, want %s", got, first)
	}
	s, err := h.Status(t.Context())
	if err != nil || len(s.Upstreams) != 2 || !s.Upstreams[0].Up || !s.Upstreams[1].Up ||
		s.Upstreams[0].WentDown+s.Upstreams[1].WentDown > 0 {
		t.Errorf("status %+v, %v, want two hosts that never went down", s, err)
	}
	// Without connections, the host can be removed.
	_ = conn.Close()
	if err := h.SetUpstreams(t.Context(), sut.Upstreams{Peers: kept}); err != nil {
		t.Fatal(err)
	}
	if s, err := h.Status(t.Context()); err != nil || len(s.Upstreams) != 1 || s.Upstreams[0].Node == first {
		t.Errorf("status %+v, %v, want one host", s, err)
	}
}

// After concurrent changes of the hosts, one of them is in effect, not a mixture.
func TestConcurrentChanges(t *testing.T) {
	t.Parallel()
	hosts := startHosts(t, 4)
	h := newHAProxy(t, haproxyInstalled(t), sut.Balancing{
		Upstreams: sut.Upstreams{Peers: hosts[:1]}, HealthInterval: 20 * time.Millisecond,
	})
	servertest.Start(t, h, h.HandleLogLine)
	var changes sync.WaitGroup
	for i := range 12 {
		changes.Go(func() {
			if err := h.SetUpstreams(t.Context(), sut.Upstreams{Peers: hosts[i%4 : i%4+1]}); err != nil {
				t.Error(err)
			}
		})
	}
	changes.Wait()
	var member string
	servertest.Eventually(t, "the last host is up", func() bool {
		s, err := h.Status(t.Context())
		if err != nil || len(s.Upstreams) != 1 {
			t.Fatalf("status %+v, %v, want one host", s, err)
		}
		member = s.Upstreams[0].Node
		return s.Upstreams[0].Up
	})
	for range 8 {
		if status, name := roundTrip(t, h, "/", "id"); status != http.StatusOK || name != member {
			t.Errorf("%s answered with %d, want %s", name, status, member)
		}
	}
}

// The only host of a route is replaced under load by a host that is up. No request fails.
func TestRouteChangesItsHost(t *testing.T) {
	t.Parallel()
	hosts := startHosts(t, 2)
	upstreams := func(i int) sut.Upstreams {
		return sut.Upstreams{Peers: hosts, Routes: []sut.Route{{Path: "/img/*", To: []string{hosts[i].Node}}}}
	}
	// With an hour between the checks, the change cannot depend on a check.
	h := newHAProxy(t, haproxyInstalled(t), sut.Balancing{Upstreams: upstreams(0), HealthInterval: time.Hour})
	servertest.Start(t, h, h.HandleLogLine)
	stop := make(chan struct{})
	var load sync.WaitGroup
	load.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if got := get(t, h.Address(), "/img/1", "/img/2"); fmt.Sprint(got) != "[200 200]" {
					t.Errorf("got %v", got)
					return
				}
			}
		}
	})
	defer func() { close(stop); load.Wait() }()
	for i := range 20 {
		next := (i + 1) % 2
		if err := h.SetUpstreams(t.Context(), upstreams(next)); err != nil {
			t.Error(err)
		}
		if _, name := roundTrip(t, h, "/img/1", "id"); name != hosts[next].Node {
			t.Errorf("%s answered, want %s", name, hosts[next].Node)
		}
	}
}
