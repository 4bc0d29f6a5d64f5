package node_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/internal/porttest"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/node"
)

// balancerNode is a balancer node that runs in this process.
type balancerNode struct {
	ready sut.Ready
	logs  chan []byte // lines; closed when the node ends
	drain context.CancelFunc
	ended chan error
}

func startBalancer(t *testing.T, knobs sut.Knobs, routes []sut.Route, uses []sut.Peer) *balancerNode {
	t.Helper()
	knobs = ladder.Complete(knobs)
	engine := sut.Engine(knobs["lb.engine"])
	if err := node.Installed(engine); err != nil {
		t.Skipf("needs Debian's package haproxy: %v", err)
	}
	document, err := json.Marshal(sut.NodeConfig{
		Node: "lb-1", Role: sut.Balance, Engine: engine, Listen: porttest.Free(t).Addr().String(), Dir: t.TempDir(), Procs: 2,
		DrainSeconds: 5, Wiring: sut.Wiring{Uses: map[sut.Role][]sut.Peer{sut.Web: uses}, Routes: routes},
		Knobs: knobs, Data: sut.Data{Size: "small", Seed: 1}, Secret: secret,
	})
	if err != nil {
		t.Fatal(err)
	}
	in, stdin := io.Pipe()
	stdout, out := io.Pipe()
	stderr, errs := io.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	b := &balancerNode{logs: make(chan []byte, 1000), drain: cancel, ended: make(chan error, 1)}
	go func() {
		defer close(b.logs)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			b.logs <- bytes.Clone(lines.Bytes())
		}
	}()
	go func() { _, _ = stdin.Write(document) }()
	go func() {
		err := node.Run(ctx, in, out, errs)
		_, _ = out.CloseWithError(io.EOF), errs.CloseWithError(io.EOF) // never fails for a pipe
		b.ended <- err
	}()
	if err := json.NewDecoder(stdout).Decode(&b.ready); err != nil {
		t.Fatalf("no ready line: %v", err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		<-b.ended
		cancel()
	})
	return b
}

// webs starts n web hosts that answer with their names. Their weights are n, n-1, ... 1.
func webs(t *testing.T, n int) []sut.Peer {
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
		peers = append(peers, sut.Peer{Node: name, Address: server.Listener.Addr().String(), Weight: float64(n - i)})
	}
	return peers
}

// roundTrip sends a request on a new connection and returns the status and the body.
// pairs are header names and values.
func roundTrip(t *testing.T, method, url, body string, pairs ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	req.Header.Set("Authorization", secret.Bearer())
	for i := 0; i+1 < len(pairs); i += 2 {
		req.Header.Set(pairs[i], pairs[i+1])
	}
	response, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	got, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(got)
}

// The knobs, weights and routes of the configuration reach the balancer, and its admin
// address takes wirings. This holds for both engines and both layers.
func TestBalancerNode(t *testing.T) {
	for _, name := range []string{"balance l7", "balance l4", "haproxy l7", "haproxy l4"} {
		t.Run(name, func(t *testing.T) {
			engine, layer, _ := strings.Cut(name, " ")
			uses := webs(t, 3)
			var routes []sut.Route
			if layer == "l7" {
				routes = []sut.Route{{Path: "/img/*", To: []string{"web-3"}}}
			}
			b := startBalancer(t, sut.Knobs{
				"lb.engine": engine, "lb.layer": layer, "lb.sticky": "false", "lb.policy": "weighted_round_robin",
				"log.requests": "all", "lb.health_interval": "60", // no check marks a host down during the test
			}, routes, uses)
			url := "http://" + b.ready.Address
			counts := map[string]int{}
			for range 60 {
				_, name := roundTrip(t, http.MethodGet, url+"/", "")
				counts[name]++
			}
			if counts["web-1"] != 30 || counts["web-2"] != 20 || counts["web-3"] != 10 {
				t.Errorf("weights 3, 2, 1 give %v of 60", counts)
			}
			if _, name := roundTrip(t, http.MethodGet, url+"/img/1", ""); layer == "l7" && name != "web-3" {
				t.Errorf("an image came from %s, want web-3", name)
			}
			uses[0].Draining = true // and web-3 is removed
			next := sut.Wiring{Epoch: 1, Uses: map[sut.Role][]sut.Peer{sut.Web: uses[:2]}}
			if layer == "l7" {
				next.Routes = []sut.Route{{Path: "/img/*", To: []string{"web-2"}}}
			}
			m, err := json.Marshal(next)
			if err != nil {
				t.Fatal(err)
			}
			status, body := roundTrip(t, http.MethodPut, "http://"+b.ready.Admin+sut.WiringPath, string(m), sut.DrainHeader, "5")
			if status != http.StatusNoContent {
				t.Errorf("wiring: %d %s", status, body)
			}
			for range 10 {
				if _, name := roundTrip(t, http.MethodGet, url+"/img/1", ""); name != "web-2" {
					t.Errorf("%s answered, want web-2, the only host", name)
				}
			}
			b.drain()
			select {
			case err := <-b.ended:
				b.ended <- err
				if err != nil {
					t.Error(err)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("the node did not end within 20 s")
			}
		})
	}
}

// A failed request is in the log with its id.
func TestBalancerNodeLogsRequests(t *testing.T) {
	for _, engine := range []string{"balance", "haproxy"} {
		t.Run(engine, func(t *testing.T) { logsRequests(t, engine) })
	}
}

func logsRequests(t *testing.T, engine string) {
	b := startBalancer(t, sut.Knobs{"lb.engine": engine, "lb.sticky": "false"}, nil, webs(t, 1))
	for _, path := range []string{"/", "/fail"} {
		id := "id" + strings.ReplaceAll(path, "/", "-")
		status, _ := roundTrip(t, http.MethodGet, "http://"+b.ready.Address+path, "", sut.RequestIDHeader, id)
		if (status == http.StatusInternalServerError) != (path == "/fail") {
			t.Errorf("%s: status %d", path, status)
		}
	}
	b.drain()
	for text := range b.logs {
		var line map[string]any
		if err := json.Unmarshal(text, &line); err != nil {
			t.Fatal(err)
		}
		if line["msg"] != "request" {
			continue
		}
		if line["request_id"] != "id-fail" || line["status"] != 500.0 ||
			line["upstream"] != "web-1" || line["node"] != "lb-1" {
			t.Errorf("the first logged request is %v, want the failed one", line)
		}
		return
	}
	t.Error("no request in the log")
}
