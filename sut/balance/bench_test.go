package balance_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/balance"
)

// childVariable holds the upstreams of a balancer, as JSON: with it, the test
// program is that balancer, in a process of its own, so that its CPU time can be
// told from that of clients and hosts.
const childVariable = "STAGEBENCH_BALANCE_UPSTREAMS"

func TestMain(m *testing.M) {
	if upstreams := os.Getenv(childVariable); upstreams != "" {
		if err := runChild(upstreams); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// runChild serves until its standard input closes.
func runChild(upstreams string) error {
	cfg := balance.Config{Node: "lb-1", Sticky: true}
	if err := json.Unmarshal([]byte(upstreams), &cfg.Upstreams); err != nil {
		return err
	}
	b, err := balance.New(cfg)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	served := make(chan error, 1)
	server := &http.Server{Handler: b.Handler()}
	go func() { served <- server.Serve(listener) }()
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	return errors.Join(server.Close(), <-served)
}

// BenchmarkBalancer compares the engines on one core and with the way without a
// balancer. At one request at a time, ns/op is the latency, and the difference
// to "direct" is what the hop adds; with several, req/cpu-s is what one core of
// the balancer carries, whatever else the machine does.
func BenchmarkBalancer(b *testing.B) {
	body := bytes.Repeat([]byte("x"), 1000)
	var upstreams []sut.Peer
	for i := range 3 {
		host := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) }))
		b.Cleanup(host.Close)
		upstreams = append(upstreams, sut.Peer{Node: fmt.Sprintf("web-%d", i+1), Address: host.Listener.Addr().String()})
	}
	for _, engine := range []struct {
		name  string
		start func(b *testing.B) (address string, pid int)
	}{
		{"direct", func(*testing.B) (string, int) { return upstreams[0].Address, 0 }},
		{"balance", func(b *testing.B) (string, int) { return startChild(b, upstreams) }},
		{"haproxy", func(b *testing.B) (string, int) {
			h := newHAProxy(b, haproxyInstalled(b), balance.Config{Upstreams: upstreams, Sticky: true})
			p := startHAProxy(b, h)
			return h.Address(), p.cmd.Process.Pid
		}},
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
func startChild(b *testing.B, upstreams []sut.Peer) (address string, pid int) {
	list, err := json.Marshal(upstreams)
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1", childVariable+"="+string(list))
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
// balancer used for them.
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
	ops := make(chan struct{})
	failed := make(chan error, clients)
	for range clients {
		go func() {
			var failure error
			for range ops {
				failure = errors.Join(failure, request())
			}
			failed <- failure
		}()
	}
	for range b.N {
		ops <- struct{}{}
	}
	close(ops)
	for range clients {
		if err := <-failed; err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
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
