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

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/haproxy"
)

// named are hosts in this process that answer with their names.
func named(t testing.TB, n int) []sut.Peer {
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

// who asks a path on a connection of its own and returns the status and the name
// of who answered.
func who(t testing.TB, h *haproxy.Server, path, id string) (int, string) {
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

// until waits for a condition.
func until(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain for " + what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// TestLogsRequests: what the server prints becomes lines of the node's
// log, with the host's name also when it came while the server ran.
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
			hosts := named(t, 2)
			reader, writer := io.Pipe()
			h := haproxy.New(haproxy.Config{
				Balancing: sut.Balancing{
					Node: "lb-1", Upstreams: sut.Upstreams{Peers: hosts[:1]}, LogRequests: logged, HealthInterval: 20 * time.Millisecond,
				},
				Log: slog.New(slog.NewJSONHandler(writer, nil)), Install: install, Dir: t.TempDir(), Listen: net.IPv4(127, 0, 0, 1), Port: freePort(t),
			})
			p := startHAProxy(t, h)
			if err := h.SetUpstreams(t.Context(), sut.Upstreams{Peers: hosts[1:]}); err != nil {
				t.Fatal(err)
			}
			until(t, "the new host", func() bool {
				s, err := h.Status(t.Context())
				return err == nil && s.Upstreams[0].Up
			})
			long := "/" + strings.Repeat("long", 2000)
			for i, path := range []string{long, "/fail", "/fail"} {
				who(t, h, path, []string{"id-1", "id-2", "id-last"}[i])
			}
			if logged != sut.LogNone {
				until(t, "the last line", func() bool { return strings.Contains(p.log(), `"id-last"`) })
			}
			go func() {
				for line := range strings.Lines(p.log()) {
					h.Printed(strings.TrimSpace(line))
				}
				_ = writer.Close() // a pipe's writer never fails to close
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
				t.Errorf("logged\n%s, want\n%s", got, want)
			}
		})
	}
}

// TestDrainIsBounded: what is still under way when the time is over is
// broken off, and its client told.
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
	h := haproxy.New(haproxy.Config{
		Balancing: cfg, Install: haproxyInstalled(t), Dir: t.TempDir(), Listen: net.IPv4(127, 0, 0, 1), Port: freePort(t), Drain: time.Second,
	})
	p := startHAProxy(t, h)
	held := make(chan []string)
	go func() { held <- ask(t, h.Address(), "/hold") }()
	<-arrived
	p.signal(t, h.StopSignal())
	_ = p.wait(t)
	if got := <-held; fmt.Sprint(got) != "[502]" {
		t.Errorf("the request ended with %v", got)
	}
}

// TestConnectionOutlivesARemoval: at layer 4 a host that left and comes
// back before its connections ended keeps them.
func TestConnectionOutlivesARemoval(t *testing.T) {
	t.Parallel()
	hosts := named(t, 2)
	h := newHAProxy(t, haproxyInstalled(t), sut.Balancing{Upstreams: sut.Upstreams{Peers: hosts}, Layer: sut.Layer4, HealthInterval: 20 * time.Millisecond})
	startHAProxy(t, h)
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
	hurried, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := h.SetUpstreams(hurried, sut.Upstreams{Peers: kept}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with a connection open, the membership ended with %v", err)
	}
	if got := name(); got != first {
		t.Errorf("%s answers, and was %s", got, first)
	}
	if err := h.SetUpstreams(t.Context(), sut.Upstreams{Peers: hosts}); err != nil {
		t.Fatal(err)
	}
	if got := name(); got != first {
		t.Errorf("%s answers, and was %s", got, first)
	}
	if s, err := h.Status(t.Context()); err != nil || len(s.Upstreams) != 2 || !s.Upstreams[0].Up || !s.Upstreams[1].Up || s.Upstreams[0].WentDown+s.Upstreams[1].WentDown > 0 {
		t.Errorf("status %+v, %v, want two hosts that never went down", s, err)
	}
	// Nobody is on it any more, so it is left alone.
	_ = conn.Close()
	if err := h.SetUpstreams(t.Context(), sut.Upstreams{Peers: kept}); err != nil {
		t.Fatal(err)
	}
	if s, err := h.Status(t.Context()); err != nil || len(s.Upstreams) != 1 || s.Upstreams[0].Node == first {
		t.Errorf("status %+v, %v, want one host", s, err)
	}
}

// TestMembershipsAtOnce: of memberships that come at the same time, one is
// in force at the end, and not a mixture.
func TestMembershipsAtOnce(t *testing.T) {
	t.Parallel()
	hosts := named(t, 4)
	h := newHAProxy(t, haproxyInstalled(t), sut.Balancing{Upstreams: sut.Upstreams{Peers: hosts[:1]}, HealthInterval: 20 * time.Millisecond})
	startHAProxy(t, h)
	var all sync.WaitGroup
	for i := range 12 {
		all.Go(func() {
			if err := h.SetUpstreams(t.Context(), sut.Upstreams{Peers: hosts[i%4 : i%4+1]}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	var member string
	until(t, "the last host", func() bool {
		s, err := h.Status(t.Context())
		if err != nil || len(s.Upstreams) != 1 {
			t.Fatalf("status %+v, %v, want one host", s, err)
		}
		member = s.Upstreams[0].Node
		return s.Upstreams[0].Up
	})
	for range 8 {
		if status, name := who(t, h, "/", "id"); status != http.StatusOK || name != member {
			t.Errorf("%s answered with %d, want %s", name, status, member)
		}
	}
}

// TestRouteChangesHands: a route goes from its only host to one that is
// known to be well, under load, and no request fails.
func TestRouteChangesHands(t *testing.T) {
	t.Parallel()
	hosts := named(t, 2)
	membership := func(i int) sut.Upstreams {
		return sut.Upstreams{Peers: hosts, Routes: []sut.Route{{Path: "/img/*", To: []string{hosts[i].Node}}}}
	}
	// An hour between the checks: nobody waits for one.
	h := newHAProxy(t, haproxyInstalled(t), sut.Balancing{Upstreams: membership(0), HealthInterval: time.Hour})
	startHAProxy(t, h)
	stop := make(chan struct{})
	var load sync.WaitGroup
	load.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if got := ask(t, h.Address(), "/img/1", "/img/2"); fmt.Sprint(got) != "[200 200]" {
					t.Errorf("got %v", got)
					return
				}
			}
		}
	})
	defer func() { close(stop); load.Wait() }()
	for i := range 20 {
		if err := h.SetUpstreams(t.Context(), membership((i+1)%2)); err != nil {
			t.Error(err)
		}
		if _, name := who(t, h, "/img/1", "id"); name != hosts[(i+1)%2].Node {
			t.Errorf("%s answered", name)
		}
	}
}
