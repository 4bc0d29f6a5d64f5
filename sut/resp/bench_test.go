package resp_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/stagebench/stagebench/sut/resp"
	"github.com/stagebench/stagebench/sut/resp/resptest"
)

// benchServer is the environment variable that turns the test binary into a server. Its
// value is the budget in bytes. A comparison with Redis needs a separate process, pinned
// to the same core.
const benchServer = "STAGEBENCH_TEST_RESP"

// The cores of the servers and of the client. Both servers share a core, because only
// one of them is busy at a time.
const (
	serverCore = "0"
	clientCore = "1"
)

// serveForBench serves until standard input is closed, with the budget in benchServer. It
// returns the exit status.
func serveForBench() int {
	budget, err := strconv.ParseInt(os.Getenv(benchServer), 10, 64)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	server, err := resp.New(resp.Config{Listener: listener, MaxBytes: budget})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(server.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = server.Shutdown(context.Background())
	}()
	if err := server.Serve(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// contender is a measured server.
type contender struct {
	name, address string
	pid           int
}

// contenders starts both servers on the same core. The budget is in bytes; 0 = no limit.
func contenders(b *testing.B, budget int64) []contender {
	for _, name := range []string{"redis-server", "redis-benchmark", "taskset"} {
		if _, err := exec.LookPath(name); err != nil {
			b.Skip(name + " is not installed: apt-get install redis-server util-linux")
		}
	}
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		b.Skip("needs /proc of Linux to read the CPU time of a server")
	}
	return []contender{embedded(b, budget), native(b, budget)}
}

func embedded(b *testing.B, budget int64) contender {
	cmd := exec.Command("taskset", "-c", serverCore, os.Args[0])
	cmd.Env = append(os.Environ(), benchServer+"="+strconv.FormatInt(budget, 10))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatalf("the server did not start: %v", err)
	}
	return contender{"resp", strings.TrimSpace(address), cmd.Process.Pid}
}

func native(b *testing.B, budget int64) contender {
	address := resptest.Redis(b, "--maxmemory", strconv.FormatInt(budget, 10), "--maxmemory-policy", "allkeys-lru")
	c := resptest.Client(address)
	defer c.Close()
	info, err := c.Info(b.Context(), "server").Result()
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(info, "process_id:")
	text, _, _ := strings.Cut(rest, "\r\n")
	pid, err := strconv.Atoi(text)
	if err != nil {
		b.Fatal(err)
	}
	if out, err := exec.Command("taskset", "-a", "-c", "-p", serverCore, text).CombinedOutput(); err != nil {
		b.Fatalf("taskset: %v: %s", err, out)
	}
	return contender{"redis", address, pid}
}

// The size of one round. It takes much longer than the start of a client.
const (
	benchRounds  = 7
	benchClients = "50"
	benchKeys    = "100000"
	benchBytes   = "100"
)

// BenchmarkBesideRedis measures commands per second with redis-benchmark, for this server
// and for Redis. The servers run in turns, alone on one core; the client has the other
// core. The ratio is the median over the pairs of rounds, reported with the minimum and
// the maximum. us/op is the CPU time of the server for each command: compare it when
// the client limits both rates.
//
//	go test -run '^$' -bench BesideRedis -benchtime 1x ./sut/resp
func BenchmarkBesideRedis(b *testing.B) {
	both := contenders(b, 0)
	for _, c := range both {
		c.measure(b, "set", 16, 500_000) // so that GET finds nearly every key
	}
	for _, command := range []string{"set", "get"} {
		for _, depth := range []int{1, 16} {
			b.Run(fmt.Sprintf("%s/pipeline=%d", command, depth), func(b *testing.B) {
				requests := 30_000
				if depth > 1 {
					requests = 400_000
				}
				rates, cpu := map[string][]float64{}, map[string][]float64{}
				for b.Loop() {
					for round := range benchRounds {
						for i := range both {
							c := both[(round+i)%len(both)]
							before := c.cpu(b)
							rate := c.measure(b, command, depth, requests)
							rates[c.name] = append(rates[c.name], rate)
							us := float64((c.cpu(b) - before).Microseconds())
							cpu[c.name] = append(cpu[c.name], us/float64(requests))
						}
					}
				}
				for _, c := range both {
					b.ReportMetric(median(rates[c.name]), c.name+"-ops/s")
					b.ReportMetric(median(cpu[c.name]), c.name+"-us/op")
				}
				ratios := quotients(rates["resp"], rates["redis"])
				b.ReportMetric(median(ratios), "ratio")
				b.ReportMetric(slices.Min(ratios), "ratio-low")
				b.ReportMetric(slices.Max(ratios), "ratio-high")
				b.ReportMetric(median(quotients(cpu["redis"], cpu["resp"])), "ratio-by-cpu")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// measure sends commands with redis-benchmark and returns the rate, in commands per
// second.
func (c contender) measure(b *testing.B, command string, depth, requests int) float64 {
	b.Helper()
	host, port, _ := net.SplitHostPort(c.address)
	cmd := exec.Command("taskset", "-c", clientCore, "redis-benchmark", "--csv", "-h", host, "-p", port, "-t", command,
		"-P", strconv.Itoa(depth), "-n", strconv.Itoa(requests), "-c", benchClients, "-r", benchKeys, "-d", benchBytes)
	out, err := cmd.Output()
	if err != nil {
		b.Fatalf("redis-benchmark: %v", err)
	}
	rows, err := csv.NewReader(bytes.NewReader(out)).ReadAll()
	if err != nil || len(rows) != 2 || len(rows[1]) < 2 {
		b.Fatalf("redis-benchmark says %q: %v", out, err)
	}
	rate, err := strconv.ParseFloat(rows[1][1], 64) // "test","rps", ...
	if err != nil {
		b.Fatal(err)
	}
	return rate
}

// cpu returns the CPU time of all threads of the server so far.
func (c contender) cpu(b *testing.B) time.Duration {
	b.Helper()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", c.pid))
	if err != nil {
		b.Fatal(err)
	}
	var all time.Duration
	for _, task := range tasks {
		// schedstat counts nanoseconds, while stat has steps of 10 ms.
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/schedstat", c.pid, task.Name()))
		if err != nil {
			b.Skipf("the kernel does not report the CPU time of a thread: %v", err)
		}
		ns, err := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		all += time.Duration(ns)
	}
	return all
}

// resident returns the resident memory of the server, in bytes.
func (c contender) resident(b *testing.B) int64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", c.pid))
	if err != nil {
		b.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(text))[1], 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// BenchmarkMemory measures the memory of an entry with a key of 14 bytes and a value of
// 100 bytes: as the server counts it, and as the growth of its process. One server has no
// budget. The other one has evicted several times the content of its budget.
//
//	go test -run '^$' -bench Memory -benchtime 1x ./sut/resp
func BenchmarkMemory(b *testing.B) {
	for _, kind := range []struct {
		name            string
		entries, budget int64
	}{{"growing", 200_000, 0}, {"full", 1_500_000, 64 << 20}} {
		b.Run(kind.name, func(b *testing.B) {
			for b.Loop() {
				for _, server := range contenders(b, kind.budget) { // new processes, which have not grown yet
					counted, resident := server.fill(b, kind.entries)
					b.ReportMetric(counted, server.name+"-counted-bytes/entry")
					b.ReportMetric(resident, server.name+"-resident-bytes/entry")
				}
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// fill sets keys, and returns the bytes for each key that was not evicted.
func (c contender) fill(b *testing.B, entries int64) (counted, resident float64) {
	value := strings.Repeat("x", 100)
	client := resptest.Client(c.address)
	defer client.Close()
	countedBefore, residentBefore := resptest.Figure(b, client, "used_memory"), c.resident(b)
	for i := int64(0); i < entries; i += 1000 {
		_, err := client.Pipelined(b.Context(), func(p redis.Pipeliner) error {
			for j := range int64(1000) {
				p.Set(b.Context(), fmt.Sprintf("photo:%08d", i+j), value, 0)
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	left, err := client.DBSize(b.Context()).Result()
	if err != nil {
		b.Fatal(err)
	}
	counted = float64(resptest.Figure(b, client, "used_memory") - countedBefore)
	resident = float64(c.resident(b) - residentBefore)
	return counted / float64(left), resident / float64(left)
}

func median(all []float64) float64 {
	sorted := slices.Sorted(slices.Values(all))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// quotients divides the elements of a by those of b.
func quotients(a, b []float64) (all []float64) {
	for i := range a {
		all = append(all, a[i]/b[i])
	}
	return all
}
