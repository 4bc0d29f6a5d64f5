package balance_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/balance"
)

// childVariable holds the membership of a balancer, as JSON, behind its layer and
// a space: with it, the test program is that balancer, in a process of its own, so
// that its CPU time can be told from that of clients and hosts.
const childVariable = "STAGEBENCH_BALANCE_CHILD"

func TestMain(m *testing.M) {
	if description := os.Getenv(childVariable); description != "" {
		if err := runChild(description); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// runChild serves until its standard input closes.
func runChild(description string) error {
	layer, membership, _ := strings.Cut(description, " ")
	var m sut.Membership
	if err := json.Unmarshal([]byte(membership), &m); err != nil {
		return err
	}
	debug.SetGCPercent(400) // as in a node
	b, err := balance.New(benchConfig(layer, m.Upstreams))
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	served := make(chan error, 1)
	go func() { served <- b.Serve(listener) }()
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return errors.Join(b.Shutdown(ctx), <-served)
}

// benchConfig is what the ladder asks of a balancer by default.
func benchConfig(layer string, upstreams []sut.Peer) balance.Config {
	return balance.Config{Node: "lb-1", Upstreams: upstreams, Layer: layer, Sticky: layer == balance.Layer7, EjectAfter: 5}
}

// BenchmarkBalancer compares the engines on one core and with the way without a
// balancer. At one request at a time, p50-ns is the latency, and the difference
// to "direct" is what the hop adds; with several, req/cpu-s is what one core of
// the balancer carries, whatever else the machine does. The kernel counts CPU
// time in hundredths of a second: 100,000 requests make that negligible.
//
//	go test -run '^$' -bench Balancer -benchtime 100000x ./sut/balance
func BenchmarkBalancer(b *testing.B) {
	body := bytes.Repeat([]byte("x"), 1000)
	var upstreams []sut.Peer
	for i := range 3 {
		host := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) }))
		b.Cleanup(host.Close)
		upstreams = append(upstreams, sut.Peer{Node: fmt.Sprintf("web-%d", i+1), Address: host.Listener.Addr().String()})
	}
	ours := func(layer string) func(b *testing.B) (string, int) {
		return func(b *testing.B) (string, int) { return startChild(b, layer, upstreams) }
	}
	native := func(layer string) func(b *testing.B) (string, int) {
		return func(b *testing.B) (string, int) {
			h := newHAProxy(b, haproxyInstalled(b), benchConfig(layer, upstreams))
			p := startHAProxy(b, h)
			return h.Address(), p.cmd.Process.Pid
		}
	}
	for _, engine := range []struct {
		name  string
		start func(b *testing.B) (address string, pid int)
	}{
		{"direct", func(*testing.B) (string, int) { return upstreams[0].Address, 0 }},
		{"balance-l7", ours(balance.Layer7)},
		{"haproxy-l7", native(balance.Layer7)},
		{"balance-l4", ours(balance.Layer4)},
		{"haproxy-l4", native(balance.Layer4)},
	} {
		b.Run(engine.name, func(b *testing.B) {
			address, pid := engine.start(b)
			for _, clients := range []int{1, 16} {
				b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) { measure(b, address, pid, clients) })
			}
		})
	}
}

// startChild runs our balancer on one core of its own.
func startChild(b *testing.B, layer string, upstreams []sut.Peer) (address string, pid int) {
	membership, err := json.Marshal(sut.Membership{Upstreams: upstreams})
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1", childVariable+"="+layer+" "+string(membership))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	p := launch(b, cmd)
	b.Cleanup(func() { _ = stdin.Close() })
	if _, err := fmt.Fscan(stdout, &address); err != nil {
		b.Fatalf("the balancer says no address: %v\n%s", err, p.log())
	}
	return address, cmd.Process.Pid
}

// measure sends requests with so many clients and reports the CPU time that the
// balancer used for them, and the median latency.
func measure(b *testing.B, address string, pid, clients int) {
	transport := &http.Transport{MaxIdleConnsPerHost: clients}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	request := func() error {
		req, err := http.NewRequest(http.MethodGet, "http://"+address+"/api/photos/17", nil)
		if err != nil {
			return err
		}
		req.Header.Set("Cookie", "session=abcdef; lb=web-1")
		res, err := client.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		_, err = io.Copy(io.Discard, res.Body)
		return err
	}
	for range 200 {
		if err := request(); err != nil {
			b.Fatal(err)
		}
	}
	before := cpuSeconds(b, pid)
	b.ResetTimer()
	ops := make(chan int)
	failed := make(chan error, clients)
	took := make([]time.Duration, b.N)
	for range clients {
		go func() {
			var failure error
			for i := range ops {
				began := time.Now()
				failure = errors.Join(failure, request())
				took[i] = time.Since(began)
			}
			failed <- failure
		}()
	}
	for i := range b.N {
		ops <- i
	}
	close(ops)
	for range clients {
		if err := <-failed; err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds()), "p50-ns")
	if used := cpuSeconds(b, pid) - before; used > 0 {
		b.ReportMetric(float64(b.N)/used, "req/cpu-s")
	}
}

// cpuSeconds is what a process has used so far; 0 for none.
func cpuSeconds(b *testing.B, pid int) float64 {
	if pid == 0 {
		return 0
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Skip(err)
	}
	// After the name, which ends with the last parenthesis, comes field 3; user
	// and system time are fields 14 and 15, in hundredths of a second.
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	var ticks float64
	for _, field := range fields[11:13] {
		n, err := strconv.ParseFloat(string(field), 64)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return ticks / 100
}
