package drivertest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stagebench/stagebench/workloads/driver"
	"github.com/stagebench/stagebench/workloads/driver/freezer"
)

// roleVariable makes the test binary play a part in another process.
const roleVariable = "STAGEBENCH_DRIVERTEST_ROLE"

// Main is the TestMain of every package that runs the kit: some of its parts
// need a process of their own, because client and server in one process share a
// scheduler and would wait for each other.
func Main(m *testing.M, d driver.Driver) {
	var err error
	switch os.Getenv(roleVariable) {
	case "freezer":
		err = serveFreezer()
	case "sender":
		err = sendForParent(d, os.Getenv("STAGEBENCH_DRIVERTEST_ENDPOINT"))
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func frozen() *freezer.Freezer {
	return &freezer.Freezer{Frozen: 500 * time.Millisecond, Period: 5 * time.Second}
}

// serveFreezer prints its address and serves until stdin closes.
func serveFreezer() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	server := &http.Server{Handler: frozen(), ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(listener) }()
	_, _ = io.Copy(io.Discard, os.Stdin)
	return server.Close()
}

// child starts the test binary in a role; it ends when the test does. The lines
// that it prints are read from the result.
func child(t *testing.T, role string, env ...string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), roleVariable+"="+role), env...)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Process.Signal(syscall.SIGCONT)
		_ = cmd.Wait()
	})
	return cmd, bufio.NewScanner(stdout)
}

// precision is how exactly the freeze test can ask: the rate in requests/s, and
// how far from the exact answer a percentile may be. The exact answer does not
// depend on the rate, but the way of a freeze's answers, all at once after the
// thaw, does; under the race detector it is some ten times longer, and percentiles
// are not judged.
func precision() (rate, tolerance float64) {
	if raceDetector {
		return 200, math.Inf(1)
	}
	return 1000, 0.02
}

// freeze compares the driver's percentiles with the exact answer.
func freeze(t *testing.T, d driver.Driver) {
	const periods = 2
	most, tolerance := precision()
	for _, connections := range []int{4, 32, 1000} {
		t.Run(fmt.Sprintf("%d connections", connections), func(t *testing.T) {
			rate := most
			if connections > 32 {
				// All that came during a freeze is answered at once, in an order that nobody
				// knows: fewer of them, so that what they take is little beside the freeze.
				rate = max(0.4*rate, 200)
			}
			_, lines := child(t, "freezer")
			lines.Scan()
			endpoint := "http://" + lines.Text()
			f := frozen()
			y := Send(context.Background(), t, d, Setup{Endpoint: endpoint, Connections: connections, Rate: rate, Duration: periods * f.Period})
			log := readLog(t, endpoint)
			y.Check(t, int64(len(log.Done)))
			offset := time.Duration(y.Report.Start.UnixNano() - log.StartUnixNS)
			// The backlog is gone when the answers are there, not when they have left:
			// 500 at once take this machine's client longer than its server. A clock
			// that is early cannot pass by it, since the server's rate counts if lower.
			drain := min(f.DrainRate(log, rate, offset), f.DrainRate(arrivals(y, offset), rate, offset))
			for percentile, got := range map[float64]*int64{95: y.Step.ResponseNS.P95, 99: y.Step.ResponseNS.P99} {
				want := f.Exact(percentile, rate, drain)
				if got == nil || !(math.Abs(float64(*got)/float64(want)-1) <= tolerance) {
					t.Errorf("response p%v is %v, exact %v (drained at %.0f/s)", percentile, ms(got), want, drain)
				}
			}
			t.Logf("response p95 %v p99 %v, drained at %.0f/s", ms(y.Step.ResponseNS.P95), ms(y.Step.ResponseNS.P99), drain)
			if own := y.Report.OwnLatency; own != nil {
				t.Logf("%s's own latency would have said p95 %v p99 %v", d.Name(), ms(own.P95), ms(own.P99))
			}
		})
	}
	t.Run("client paused", func(t *testing.T) { paused(t) })
}

// arrivals is when each answer was there, on the server's clock.
func arrivals(y Tally, offset time.Duration) freezer.Log {
	var log freezer.Log
	for _, o := range y.Outcomes {
		log.Done = append(log.Done, time.Duration(o.Done)+offset)
	}
	slices.Sort(log.Done)
	return log
}

func readLog(t *testing.T, endpoint string) freezer.Log {
	t.Helper()
	response, err := http.Get(endpoint + freezer.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	var log freezer.Log
	if err := json.NewDecoder(response.Body).Decode(&log); err != nil {
		t.Fatal(err)
	}
	return log
}

// pausedFor is how long the client is stopped.
const pausedFor = time.Second

// pausedFigures is what the client then tells, in nanoseconds.
type pausedFigures struct{ LagMax, ResponseMax, ResponseP90, OwnP90 int64 }

// paused stops the client itself, by SIGSTOP: the pause must be in its lag and
// in its response times.
func paused(t *testing.T) {
	server, _ := counting(t, func(http.ResponseWriter, *http.Request) {})
	cmd, lines := child(t, "sender", "STAGEBENCH_DRIVERTEST_ENDPOINT="+server.URL)
	lines.Scan()
	if lines.Text() != "sending" {
		t.Fatalf("the sender said %q", lines.Text())
	}
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	pause := time.NewTimer(pausedFor)
	<-pause.C
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	lines.Scan()
	var figures pausedFigures
	if err := json.Unmarshal(lines.Bytes(), &figures); err != nil {
		t.Fatalf("%v in %q", err, lines.Text())
	}
	t.Logf("lag max %v, response p90 %v max %v; the engine's own latency would have said p90 %v",
		time.Duration(figures.LagMax), time.Duration(figures.ResponseP90), time.Duration(figures.ResponseMax), time.Duration(figures.OwnP90))
	// The ops that found a free slot after the pause show it as lag; those that
	// came after them waited for a slot, and show it in their response.
	if low := int64(9 * pausedFor / 10); figures.LagMax < low || figures.ResponseMax < low {
		t.Errorf("the client stood still for %v, but lag max is %v and response max %v", pausedFor, time.Duration(figures.LagMax), time.Duration(figures.ResponseMax))
	}
	// A quarter of all ops fell into the pause: at p90 they are 0.6 s late.
	if low := int64(pausedFor / 2); figures.ResponseP90 < low {
		t.Errorf("a quarter of all ops fell into a pause of %v, but response p90 is %v", pausedFor, time.Duration(figures.ResponseP90))
	}
}

func ms(ns *int64) string {
	if ns == nil {
		return "-"
	}
	return fmt.Sprintf("%.1f ms", float64(*ns)/1e6)
}
