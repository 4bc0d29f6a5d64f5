package drivertest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/workloads/driver"
	"github.com/stagebench/stagebench/workloads/driver/freezer"
)

// Environment variables of the test binary's child processes.
const (
	roleVariable     = "STAGEBENCH_DRIVERTEST_ROLE"     // what the child does
	endpointVariable = "STAGEBENCH_DRIVERTEST_ENDPOINT" // where a sender sends to
)

// Main is the TestMain of every package that runs the kit. Some tests start the test
// binary again as a server or as a client: in one process the two would share a scheduler
// and delay each other.
func Main(m *testing.M, d driver.Driver) {
	var err error
	switch os.Getenv(roleVariable) {
	case "freezer":
		err = serveFreezer()
	case "sender":
		err = sendForParent(d, os.Getenv(endpointVariable))
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// child starts the test binary in a role and returns the lines of its output. The child
// ends with the test.
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

func newFreezer() *freezer.Freezer {
	return &freezer.Freezer{Frozen: 500 * time.Millisecond, Period: 5 * time.Second}
}

// serveFreezer prints its address and serves until stdin is closed.
func serveFreezer() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	server := &http.Server{Handler: newFreezer(), ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(listener) }()
	_, _ = io.Copy(io.Discard, os.Stdin)
	return server.Close()
}

// Limits of the freeze test.
const (
	tolerance       = 0.02                 // relative error of a percentile
	maxLag          = 5 * time.Millisecond // more lag of the client can change a percentile by more than the tolerance
	maxMeasurements = 3
)

// testFreeze compares the percentiles of the response time with the server's own log, and
// stops the client for a while.
func testFreeze(t *testing.T, d driver.Driver) {
	if raceDetector {
		t.Skip("with the race detector the client is too slow to be exact: run without -race")
	}
	for _, connections := range []int{4, 32, 1000} {
		t.Run(fmt.Sprintf("%d connections", connections), func(t *testing.T) { freeze(t, d, connections) })
	}
	t.Run("client paused", clientPaused)
}

// freeze measures a server that freezes. Noise of the machine makes answers later, never
// earlier. So every measurement must reach the lower bounds, and a measurement above an
// upper bound is repeated if the lag of the client shows that the machine disturbed it.
func freeze(t *testing.T, d driver.Driver, connections int) {
	for n := 1; ; n++ {
		m := measureFreeze(t, d, connections)
		var high []string
		for _, p := range m.percentiles() {
			text := fmt.Sprintf("response p%v is %v: exact %v by the server's log, the wait for the thaw is %v",
				p.rank, p.got, p.exact, p.frozen)
			t.Log(text)
			low := float64(max(p.exact, p.frozen)) * (1 - tolerance)
			switch {
			case float64(p.got+m.interval) < low:
				t.Errorf("measurement %d: too low: %s", n, text)
			case float64(p.got) > float64(p.exact)*(1+tolerance):
				high = append(high, text)
			}
		}
		if len(high) == 0 {
			return
		}
		failure := fmt.Sprintf("measurement %d, client lag max %v: too high: %s", n, m.lagMax, strings.Join(high, "; "))
		if n == maxMeasurements || m.lagMax < maxLag {
			t.Error(failure)
			return
		}
		t.Log(failure)
	}
}

// frozenRun is a measurement of a server that freezes.
type frozenRun struct {
	response results.Latency
	lagMax   time.Duration // of the client
	log      freezer.Log   // of the server
	offset   time.Duration // begin of the client's schedule on the server's clock
	interval time.Duration // between two ops
}

func measureFreeze(t *testing.T, d driver.Driver, connections int) frozenRun {
	// The exact values do not depend on the rate. Over 1000 connections the requests of a
	// freeze are answered at once, and the client needs time to read them. At a low rate
	// this time is short beside the freeze.
	rate := 1000.0
	if connections > 32 {
		rate = 200
	}
	_, lines := child(t, "freezer")
	lines.Scan()
	endpoint := "http://" + lines.Text()
	m := send(t.Context(), t, d, setup{
		endpoint: endpoint, connections: connections, rate: rate, duration: 2 * newFreezer().Period,
	})
	log := readLog(t, endpoint)
	m.check(t, int64(len(log.Done)))
	if m.step.Ledger.OK != m.report.Scheduled || len(log.Done) != len(m.outcomes) {
		t.Fatalf("ledger %+v, causes %v: want only successes", m.step.Ledger, m.step.Causes)
	}
	if own := m.report.OwnLatency; own != nil {
		t.Logf("the driver's own clock measured p95 %v p99 %v", ms(own.P95), ms(own.P99))
	}
	return frozenRun{
		response: m.step.ResponseNS, lagMax: time.Duration(*m.step.LagNS.Max), log: log,
		offset:   time.Duration(m.report.Start.UnixNano() - log.StartUnixNS),
		interval: time.Duration(float64(time.Second) / rate),
	}
}

// percentile is a percentile of the response time.
type percentile struct {
	rank   float64
	got    time.Duration // as measured
	exact  time.Duration // by the server's log
	frozen time.Duration // if all requests of a freeze were answered at the thaw
}

// percentiles returns two percentiles. The exact value pairs the n-th answer of the
// server's log with the n-th op of the schedule, because the server answers in order of
// arrival.
func (m frozenRun) percentiles() []percentile {
	var all []time.Duration
	for n, done := range m.log.Done {
		all = append(all, done-m.offset-time.Duration(n)*m.interval)
	}
	slices.Sort(all)
	at := func(rank float64, got *int64) percentile {
		exact := all[int(rank/100*float64(len(all))+0.5)-1]
		return percentile{rank, time.Duration(*got), exact, newFreezer().Exact(rank)}
	}
	return []percentile{at(95, m.response.P95), at(99, m.response.P99)}
}

func readLog(t *testing.T, endpoint string) (log freezer.Log) {
	t.Helper()
	response, err := http.Get(endpoint + freezer.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	if err := json.NewDecoder(response.Body).Decode(&log); err != nil {
		t.Fatal(err)
	}
	return log
}

// The client sends for senderTime and is stopped for pausedFor of it.
const (
	senderTime = 3 * time.Second
	pausedFor  = time.Second
)

// pausedFigures are the figures of a client that was stopped, in nanoseconds.
type pausedFigures struct{ LagMax, ResponseMax, ResponseP90, OwnP90 int64 }

// sendForParent sends load to the parent's server. It prints "sending" after half a second
// and its figures at the end.
func sendForParent(d driver.Driver, endpoint string) error {
	// So many that a busy machine does not fill them all: without a free slot there is no lag.
	clients, err := newClients(endpoint, driver.ClientConfig{Connections: 256})
	if err != nil {
		return err
	}
	defer clients.Close()
	announced := false
	m, err := drive(context.Background(), d, clients, setup{
		rate: 500, duration: senderTime,
		onOutcome: func(o results.Outcome) {
			if !announced && o.Intended > int64(500*time.Millisecond) {
				fmt.Println("sending")
				announced = true
			}
		},
	})
	if err != nil {
		return err
	}
	figures := pausedFigures{*m.step.LagNS.Max, *m.step.ResponseNS.Max, *m.step.ResponseNS.P90, 0}
	if own := m.report.OwnLatency; own != nil && own.P90 != nil {
		figures.OwnP90 = *own.P90
	}
	return json.NewEncoder(os.Stdout).Encode(figures)
}

// clientPaused stops the client with SIGSTOP. Its lag and its response times must include
// the pause.
func clientPaused(t *testing.T) {
	server, _ := countingServer(t, reply)
	client, lines := child(t, "sender", endpointVariable+"="+server.URL)
	lines.Scan()
	if lines.Text() != "sending" {
		t.Fatalf("the client printed %q: want \"sending\"", lines.Text())
	}
	if err := client.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	resume := time.AfterFunc(pausedFor, func() { _ = client.Process.Signal(syscall.SIGCONT) })
	defer resume.Stop()
	lines.Scan()
	var figures pausedFigures
	if err := json.Unmarshal(lines.Bytes(), &figures); err != nil {
		t.Fatalf("%v in %q", err, lines.Text())
	}
	lag, response := time.Duration(figures.LagMax), time.Duration(figures.ResponseMax)
	p90, own := time.Duration(figures.ResponseP90), time.Duration(figures.OwnP90)
	t.Logf("lag max %v, response p90 %v max %v; the driver's own clock measured p90 %v", lag, p90, response, own)
	// Ops that got a free slot after the pause show it as lag. The ops behind them waited
	// for a slot and show the pause in their response time.
	if low := 9 * pausedFor / 10; lag < low || response < low {
		t.Errorf("lag max %v, response max %v: want both to include the pause of %v", lag, response, pausedFor)
	}
	// A third of all ops were due during the pause, evenly spread over it.
	if low := 3 * pausedFor / 5; p90 < low {
		t.Errorf("response p90 %v: want at least %v, because a third of all ops were due during the pause", p90, low)
	}
}

// ms formats nanoseconds as milliseconds.
func ms(ns *int64) string {
	if ns == nil {
		return "-"
	}
	return fmt.Sprintf("%.1f ms", float64(*ns)/1e6)
}
