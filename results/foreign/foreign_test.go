package foreign_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/foreign"
)

// attack returns 2000 results of vegeta in an encoding: one each ms, the i-th with a latency of i us. Every 100th fails
// with 503, and every 500th without an answer.
func attack(t testing.TB, name string, encoder func(w *bytes.Buffer) vegeta.Encoder) []byte {
	t.Helper()
	var out bytes.Buffer
	encode := encoder(&out)
	for i := range 2000 {
		hit := vegeta.Result{
			Attack: name, Seq: uint64(i), Code: 200, Timestamp: time.Unix(0, int64(i)*1e6), Method: "GET",
			Latency: time.Duration(i) * time.Microsecond, BytesIn: 10, BytesOut: 3, URL: "http://127.0.0.1/",
		}
		switch {
		case i%500 == 499:
			hit.Code, hit.Error = 0, "connection refused"
		case i%100 == 99:
			hit.Code, hit.Error = 503, "503 Service Unavailable"
		}
		if err := encode(&hit); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

func encodings() map[string]func(w *bytes.Buffer) vegeta.Encoder {
	return map[string]func(w *bytes.Buffer) vegeta.Encoder{
		"binary": func(w *bytes.Buffer) vegeta.Encoder { return vegeta.NewEncoder(w) },
		"json":   func(w *bytes.Buffer) vegeta.Encoder { return vegeta.NewJSONEncoder(w) },
		"csv":    func(w *bytes.Buffer) vegeta.Encoder { return vegeta.NewCSVEncoder(w) },
	}
}

func read(t testing.TB, text []byte) results.Step {
	t.Helper()
	got, err := foreign.Read(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return *got.Run.Cells[0].Reference
}

// All encodings of vegeta give the same figures: service times of the successes, and no response times.
func TestVegeta(t *testing.T) {
	for name, encoder := range encodings() {
		s := read(t, attack(t, "", encoder))
		want := results.Ledger{Scheduled: 2000, Sent: 2000, OK: 1980, HTTPError: 16, TransportError: 4}
		if s.Ledger != want {
			t.Errorf("%s: ledger %+v, want %+v", name, s.Ledger, want)
		}
		if s.ResponseAll.Count != 0 || s.ServiceNS.Count != 1980 || s.FailedServiceNS.Count != 20 {
			t.Errorf("%s: counts of response %d, service %d, failed %d", name, s.ResponseAll.Count, s.ServiceNS.Count,
				s.FailedServiceNS.Count)
		}
		if p99 := *s.ServiceNS.P99; p99 < 1_975_000 || p99 > 1_985_000 {
			t.Errorf("%s: p99 %d ns, want about 1.98 ms", name, p99)
		}
		if s.SentRPS < 1000 || s.SentRPS > 1001 || s.Statuses[503] != 16 || s.BytesIn != 20_000 || s.BytesOut != 6000 {
			t.Errorf("%s: rate %v, statuses %v, bytes %d in and %d out", name, s.SentRPS, s.Statuses, s.BytesIn, s.BytesOut)
		}
	}
}

// Our own files hold response times.
func TestOurVegetaResults(t *testing.T) {
	s := read(t, attack(t, "stagebench", encodings()["binary"]))
	if s.ResponseAll.Count != 2000 || s.ResponseNS.Count != 1980 || s.ServiceNS.Count != 0 {
		t.Errorf("counts: all %d, successes %d, service %d", s.ResponseAll.Count, s.ResponseNS.Count, s.ServiceNS.Count)
	}
}

// A file that ends early is refused: its figures would be those of a shorter attack.
func TestIncomplete(t *testing.T) {
	for name, encoder := range encodings() {
		text := attack(t, "", encoder)
		for _, cut := range []int{1, 10, 40} {
			if got, err := foreign.Read(bytes.NewReader(text[:len(text)-cut])); err == nil {
				t.Errorf("%s without its last %d bytes was read: %+v", name, cut, got.Run.Cells[0].Reference.Ledger)
			}
		}
	}
	for text, want := range map[string]string{
		"":                              "the file is empty",
		"hello\n":                       "no result of vegeta, no summary of k6, and no Go benchmark text",
		`{"metrics": {`:                 "summary of k6: unexpected EOF",
		`{"metrics": {"vus": {}}}`:      "no metric http_reqs",
		`{"metrics": {"http_reqs": 1}}`: "metric http_reqs",
		`{"metrics": {"http_reqs": {"count": 1, "rate": 1}, "http_req_failed": {"passes": 2}}}`: "more failed requests",
		"BenchmarkA 1 x\n": "no benchmark line could be read",
	} {
		if _, err := foreign.Read(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %q", text, err, want)
		}
	}
}

// The three forms of a summary of k6 have the same figures, as far as a form has them.
func TestK6(t *testing.T) {
	const trend = `"avg": 5.5, "min": 1, "med": 4.25, "max": 90, "p(90)": 8, "p(95)": 9.5, "p(99)": 20`
	forms := map[string]string{
		"export": `{"root_group": {"name": "", "checks": {}}, "metrics": {
			"http_reqs": {"count": 3000, "rate": 100},
			"http_req_failed": {"value": 0.01, "passes": 30, "fails": 2970, "thresholds": {"rate<0.1": false}},
			"http_req_duration": {"med": 99, "p(95)": 99},
			"http_req_duration{expected_response:true}": {` + trend + `, "thresholds": {"p(95)<100": false}},
			"dropped_iterations": {"count": 7, "rate": 0.2}}}`,
		"data": `{"state": {"testRunDurationMs": 30000}, "metrics": {
			"http_reqs": {"type": "counter", "contains": "default", "values": {"count": 3000, "rate": 100}},
			"http_req_failed": {"type": "rate", "contains": "default", "values": {"rate": 0.01, "passes": 30, "fails": 2970}},
			"http_req_duration{expected_response:true}": {"type": "trend", "contains": "time", "values": {` + trend + `}},
			"dropped_iterations": {"type": "counter", "contains": "default", "values": {"count": 7, "rate": 0.2}}}}`,
		"machine-readable": `{"version": "1.0.0", "config": {"duration": 30, "execution": "local"}, "results": {"metrics": [
			{"name": "http_reqs", "type": "counter", "contains": "default", "values": {"count": 3000}},
			{"name": "http_req_failed", "type": "rate", "contains": "default",
				"values": {"matches": 30, "total": 3000, "rate": 0.01}},
			{"name": "http_req_duration{expected_response:true}", "type": "trend", "contains": "time",
				"values": {"avg": 5.5, "min": 1, "med": 4.25, "max": 90, "p90": 8, "p95": 9.5}},
			{"name": "dropped_iterations", "type": "counter", "contains": "default", "values": {"count": 7}}]}}`,
	}
	for name, text := range forms {
		s := read(t, []byte(text))
		if s.Ledger != (results.Ledger{Scheduled: 3000, Sent: 3000, OK: 2970, HTTPError: 30}) || s.SentRPS != 100 ||
			s.Seconds != 30 {
			t.Errorf("%s: ledger %+v, %v/s for %v s", name, s.Ledger, s.SentRPS, s.Seconds)
		}
		l := s.ServiceNS
		if *l.P50 != 4_250_000 || *l.P90 != 8_000_000 || *l.P95 != 9_500_000 || *l.Max != 90_000_000 || l.P999 != nil {
			t.Errorf("%s: %+v", name, l)
		}
		if has := l.P99 != nil; has != (name != "machine-readable") || has && *l.P99 != 20_000_000 {
			t.Errorf("%s: p99 %v", name, l.P99)
		}
		got, err := foreign.Read(strings.NewReader(text))
		if err != nil || got.Tool != foreign.K6 || fmt.Sprint(got.Warnings) !=
			"[k6 dropped 7 iterations, which are in no figure]" {
			t.Errorf("%s: %s with warnings %v, %v", name, got.Tool, got.Warnings, err)
		}
	}
	got, err := foreign.Read(strings.NewReader(`{"metrics": {"http_reqs": {"count": 10, "rate": 1},
		"http_req_failed": {"passes": 1}, "http_req_duration": {"med": 3}}}`))
	if err != nil || fmt.Sprint(got.Warnings) != "[its latency includes that of failed requests]" {
		t.Errorf("only all requests: warnings %v, %v", got.Warnings, err)
	}
}

// Benchmarks are grouped by package, name and unit. A broken line is a warning.
func TestBenchmarks(t *testing.T) {
	got, err := foreign.Read(strings.NewReader(`goos: linux
pkg: example/a
Unit p99-ns better=lower
BenchmarkX-4   100   2000 ns/op   3 p99-ns
BenchmarkX-4   broken
BenchmarkX-4   100   3000 ns/op   4 p99-ns
pkg: example/b
valid: no
BenchmarkX-4   100   10 MB/s
PASS
`))
	if err != nil {
		t.Fatal(err)
	}
	var series []string
	for _, s := range got.Series {
		series = append(series, fmt.Sprintf("%s %s %s %d %.3g %v", s.Package, s.Name, s.Unit, s.Better, s.Values, s.Invalid))
	}
	want := []string{
		"example/a X-4 sec/op -1 [2e-06 3e-06] false", "example/a X-4 p99-sec -1 [3e-09 4e-09] false",
		"example/b X-4 B/s 1 [1e+07] true",
	}
	if fmt.Sprint(series) != fmt.Sprint(want) || len(got.Warnings) != 1 || got.Tool != foreign.Benchmarks {
		t.Errorf("got\n%s\nwant\n%s\nwarnings %q", strings.Join(series, "\n"), strings.Join(want, "\n"), got.Warnings)
	}
}

// No file makes Read panic, and whatever it reads has a ledger whose sums match.
func FuzzRead(f *testing.F) {
	for _, encoder := range encodings() {
		f.Add(attack(f, "", encoder)[:4096])
	}
	f.Add([]byte(`{"metrics": {"http_reqs": {"count": 3000, "rate": 100}, "http_req_duration": {"values": {"med": 4}}}}`))
	f.Add([]byte("BenchmarkX-4   100   2000 ns/op   3 p99-ns\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := foreign.Read(bytes.NewReader(text))
		if err != nil || got.Tool == foreign.Benchmarks {
			return
		}
		if err := got.Run.Cells[0].Reference.Ledger.Check(); err != nil {
			t.Error(err)
		}
	})
}
