package vegeta_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/hdr"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/driver"
	"github.com/stagebench/stagebench/workloads/driver/vegeta"
	"github.com/stagebench/stagebench/workloads/pace"
)

// benchVariable makes the test binary run as the client of the benchmark. The client has
// its own process, so that its memory and CPU use can be measured.
const benchVariable = "STAGEBENCH_BENCH_ENDPOINT"

// figures are the results that the client of the benchmark reports.
type figures struct {
	SentShare, MaxRSSMB, CPUCores float64
	LagP99US, ResponseP99US       float64
}

// BenchmarkTenThousandPerSecond sends 10,000 requests/s for 10 s over 64 connections to
// nginx. The client is pinned to one core and the server to another.
//
//	go test -run '^$' -bench TenThousand -benchtime 1x ./workloads/driver/vegeta
func BenchmarkTenThousandPerSecond(b *testing.B) {
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		b.Skip("nginx is not installed: apt-get install nginx-light")
	}
	endpoint := startNginx(b, nginx)
	for b.Loop() {
		cmd := exec.Command("taskset", "-c", "0", os.Args[0])
		cmd.Env = append(os.Environ(), benchVariable+"="+endpoint)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			b.Fatal(err)
		}
		var f figures
		if err := json.Unmarshal(out, &f); err != nil {
			b.Fatalf("%v in %q", err, out)
		}
		b.ReportMetric(f.SentShare*100, "sent_%")
		b.ReportMetric(f.MaxRSSMB, "max_rss_MB")
		b.ReportMetric(f.CPUCores, "client_cores")
		b.ReportMetric(f.LagP99US, "lag_p99_us")
		b.ReportMetric(f.ResponseP99US, "response_p99_us")
	}
}

// sendForBench runs the client of the benchmark.
func sendForBench(endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil {
		return err
	}
	clients, err := driver.NewClients(driver.ClientConfig{Endpoint: u, Connections: 64, DialTimeout: time.Second})
	if err != nil {
		return err
	}
	defer clients.Close()
	schedule, err := pace.Constant(10_000)
	if err != nil {
		return err
	}
	workload, err := workloads.Single(http.MethodGet, "/", nil, nil)
	if err != nil {
		return err
	}
	recorder := hdr.New(time.Now(), func(string) int64 { return int64(time.Second) }, nil)
	next := int64(time.Second)
	report, err := vegeta.Driver{}.Run(context.Background(), clients, driver.Plan{
		Workload: workload, Schedule: schedule, Duration: 10 * time.Second, Timeout: 10 * time.Second,
	}, func(o results.Outcome) {
		for o.Done >= next {
			recorder.Tick(next)
			next += int64(time.Second)
		}
		recorder.Record(o)
	})
	if err != nil {
		return err
	}
	step := recorder.Finish(report.Scheduled)
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(figures{
		SentShare: float64(step.Ledger.OK) / float64(step.Ledger.Scheduled),
		MaxRSSMB:  float64(used.Maxrss) / 1024,
		CPUCores:  float64(used.Utime.Nano()+used.Stime.Nano()) / float64(report.Elapsed),
		LagP99US:  float64(*step.LagNS.P99) / 1e3, ResponseP99US: float64(*step.ResponseNS.P99) / 1e3,
	})
}

// startNginx serves a fixed answer on loopback until the benchmark ends.
func startNginx(b *testing.B, nginx string) (endpoint string) {
	dir := b.TempDir()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		b.Fatal(err)
	}
	var paths []string
	for _, name := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		paths = append(paths, fmt.Sprintf("%s_temp_path %s;", name, filepath.Join(dir, name)))
	}
	config := fmt.Sprintf(`daemon off; worker_processes 1; pid %s/pid; error_log stderr crit;
events { worker_connections 1024; }
http { access_log off; keepalive_requests 100000000; %s
server { listen %s; location / { return 200 "ok"; } } }`, dir, strings.Join(paths, " "), address)
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command("taskset", "-c", "1", nginx, "-p", dir, "-c", file)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		if response, err := http.Get("http://" + address + "/"); err == nil {
			_ = response.Body.Close()
			return "http://" + address
		}
	}
	b.Fatal("nginx does not answer")
	return ""
}
