package balancetest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// BenchHosts starts three web hosts for a benchmark. They answer with 1000 bytes.
func BenchHosts(b *testing.B) (upstreams []sut.Peer) {
	body := bytes.Repeat([]byte("x"), 1000)
	for i := range 3 {
		host := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(body)
		}))
		b.Cleanup(host.Close)
		upstreams = append(upstreams, sut.Peer{Node: fmt.Sprintf("web-%d", i+1), Address: host.Listener.Addr().String()})
	}
	return upstreams
}

// BenchConfig returns the configuration that the ladder gives a balancer by default.
func BenchConfig(layer string, upstreams []sut.Peer) sut.Balancing {
	return sut.Balancing{
		Node: "lb-1", Upstreams: sut.Upstreams{Peers: upstreams}, Layer: layer, Sticky: layer == sut.Layer7, EjectAfter: 5,
	}
}

// Bench measures the balancer or host at an address, with 1 and with 16 clients:
//   - p50-ns is the median latency. With 1 client, the difference between balancer and host
//     is the latency that the balancer adds.
//   - req/cpu-s is the number of requests per second of CPU time of the process pid. Other
//     load on the machine hardly changes it. The kernel counts CPU time in hundredths of a
//     second, so use about 100,000 requests. A pid of 0 turns it off.
func Bench(b *testing.B, address string, pid int) {
	for _, clients := range []int{1, 16} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) { measure(b, address, pid, clients) })
	}
}

// measure sends b.N requests from that many clients and reports the metrics of Bench.
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

// cpuSeconds returns the CPU time that a process has used, in seconds; 0 for pid 0.
func cpuSeconds(b *testing.B, pid int) float64 {
	if pid == 0 {
		return 0
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Skip(err)
	}
	// Field 3 follows the last parenthesis, which ends the name. User and system time are
	// fields 14 and 15, in hundredths of a second.
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
