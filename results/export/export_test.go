package export_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"golang.org/x/perf/benchfmt"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/export"
)

// step returns a trusted step at the reference rate with this p99, in which one of a thousand requests failed.
func step(p99 int64) results.Step {
	l := results.Latency{
		Count: 1000, P50: new(p99 / 10), P90: new(p99 / 5), P95: new(p99 / 2), P99: new(p99), Mean: new(p99 / 9),
		Max: new(3 * p99),
	}
	return results.Step{
		Purpose: "reference", OfferedRPS: 100, SentRPS: 100.5, Seconds: 10, ResponseNS: l, ResponseAll: l, ServiceNS: l,
		Ledger: results.Ledger{Scheduled: 1000, Sent: 1000, OK: 999, HTTPError: 1},
		Nodes:  []results.NodeUsage{{Node: "web-1", Role: "web", CPUSeconds: 2}},
		Valid:  true, SLOMet: true,
	}
}

// cell returns a valid cell with six visits, whose p99 is base plus 0 to 5 us.
func cell(stage string, base int64) results.Cell {
	c := results.Cell{
		Stage: stage, Workload: "read-heavy", SLO: "p99<100ms", Valid: true,
		CapacityRPS: 300, CapacityLow: 280, CapacityHigh: 330, CapacityMethod: "pooled, 6 visits, 90 % interval",
		Repeats: []float64{290, 295, 300, 301, 305, 310}, PeakRPS: 400, PeakLow: 390, PeakHigh: 410,
		Peaks: []float64{395, 400, 401, 402, 403, 404}, Reference: new(step(base)),
	}
	for i := range int64(6) {
		c.Steps = append(c.Steps, step(base+i*1000))
	}
	return c
}

// sample returns a run with two valid cells and one that is not valid. One name ends in a number.
func sample(base int64) results.Run {
	doubtful := cell("web-1", base)
	doubtful.Workload = "phase-2"
	doubtful.Valid, doubtful.Invalid = false, []string{"the client | was\x1b slow <b>"}
	return results.Run{
		Run: "20260101-000000-abcdef", Complete: true,
		Cells: []results.Cell{cell("lb", base), cell("cache", base), doubtful},
	}
}

func text(t *testing.T, format export.Format, run results.Run) string {
	t.Helper()
	var out bytes.Buffer
	if err := export.Write(&out, format, run); err != nil {
		t.Fatalf("%s: %v", format, err)
	}
	return out.String()
}

// benchstat itself compares two runs: it shows that p99 rose, that the capacity did not change, and keeps the figures
// apart that are not valid.
func TestBenchstat(t *testing.T) {
	dir := t.TempDir()
	for name, base := range map[string]int64{"old": 5e6, "new": 6e6} {
		lines := text(t, export.FormatBench, sample(base))
		if err := os.WriteFile(filepath.Join(dir, name), []byte(lines), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	benchstat := exec.Command("go", "tool", "-modfile=../../build/tools/go.mod", "benchstat",
		filepath.Join(dir, "old"), filepath.Join(dir, "new"))
	out, err := benchstat.CombinedOutput()
	if err != nil {
		t.Fatalf("benchstat: %v\n%s", err, out)
	}
	for _, want := range []string{
		`(?m)^valid: yes$`, `(?m)^valid: no$`, `p99-sec`, `capacity-rps`, `cpu_per_request-sec`,
		`Cell/stage=lb/workload=read-heavy +5\.00\dm ± 0% +6\.00\dm ± 0% +\+(19|20)\.\d+% \(p=0\.002 n=6\)`,
		`Cell/stage=lb/workload=read-heavy +300\.5 ± \d% +300\.5 ± \d% +~ \(p=1\.000 n=6\)`,
		`Cell/stage=web-1/workload=phase_2 `,
	} {
		if !regexp.MustCompile(want).Match(out) {
			t.Errorf("the output of benchstat has no %s", want)
		}
	}
	if t.Failed() {
		t.Logf("%s", out)
	}
}

// Each line is one visit. The units have their directions, and no line has a syntax error.
func TestBenchLines(t *testing.T) {
	reader := benchfmt.NewReader(strings.NewReader(text(t, export.FormatBench, sample(5e6))), "sample")
	lines := map[string]int{}
	for reader.Scan() {
		switch record := reader.Result().(type) {
		case *benchfmt.SyntaxError:
			t.Error(record)
		case *benchfmt.Result:
			_, parts := record.Name.Parts()
			if last := string(parts[len(parts)-1]); !strings.HasPrefix(last, "/workload=") {
				t.Errorf("%s: the last part is %s, as of a name with GOMAXPROCS", record.Name, last)
			}
			lines[string(record.Name)]++
		}
	}
	if want := map[string]int{
		"Cell/stage=lb/workload=read-heavy": 6, "Cell/stage=cache/workload=read-heavy": 6,
		"Cell/stage=web-1/workload=phase_2": 6,
	}; !cmp.Equal(lines, want) {
		t.Errorf("lines %v, want %v", lines, want)
	}
	for unit, want := range map[string]int{"p99-sec": -1, "errors-share": -1, "capacity-rps": 1, "peak-rps": 1} {
		if got := reader.Units().GetBetter(unit); got != want {
			t.Errorf("%s: better %d, want %d", unit, got, want)
		}
	}
}

// Each tracker gets exactly the fields of its schema. Nothing that is not valid is in them.
func TestTrackers(t *testing.T) {
	type figure struct {
		Name  *string  `json:"name"`
		Unit  *string  `json:"unit"`
		Value *float64 `json:"value"`
		Range string   `json:"range"`
		Extra string   `json:"extra"`
	}
	for format, want := range map[export.Format]map[string]float64{
		export.FormatSmaller: {"p50": 0.5, "p90": 1, "p95": 2.5, "p99": 5, "cpu_per_request": 2},
		export.FormatBigger:  {"capacity": 300, "peak": 400},
	} {
		var all []figure
		decode(t, text(t, format, sample(5e6)), &all)
		for _, group := range []string{"lb", "cache"} {
			for name, value := range want {
				if !slices.ContainsFunc(all, func(f figure) bool {
					return *f.Name == group+"/read-heavy "+name && *f.Value == value
				}) {
					t.Errorf("%s has no figure %s/read-heavy %s = %v", format, group, name, value)
				}
			}
		}
		if len(all) != 2*len(want) {
			t.Errorf("%s has %d figures, want %d", format, len(all), 2*len(want))
		}
	}
	var bencher map[string]map[string]struct {
		Value *float64 `json:"value"`
		Low   float64  `json:"lower_value"`
		High  float64  `json:"upper_value"`
	}
	decode(t, text(t, export.FormatBencher, sample(5e6)), &bencher)
	lb := bencher["lb/read-heavy"]
	if len(bencher) != 2 || *lb["p99_ns"].Value != 5e6 || *lb["errors_share"].Value != 0.001 ||
		lb["capacity_rps"].Low != 280 || lb["capacity_rps"].High != 330 || lb["p99_ns"].High != 0 {
		t.Errorf("Bencher Metric Format: %+v", bencher)
	}
}

// decode decodes JSON that has no other fields than the value.
func decode(t *testing.T, text string, into any) {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
}

// Prometheus parses the text. It gets every valid figure in base units, and learns which group is not valid.
func TestOpenMetrics(t *testing.T) {
	metrics := []byte(text(t, export.FormatOpenMetrics, sample(5e6)))
	parser := textparse.NewOpenMetricsParser(metrics, labels.NewSymbolTable())
	values := map[string]float64{}
	for {
		entry, err := parser.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if entry == textparse.EntrySeries {
			var series labels.Labels
			parser.Labels(&series)
			_, _, values[series.String()] = parser.Series()
		}
	}
	for series, want := range map[string]float64{
		`{__name__="stagebench_p99_seconds", stage="lb", workload="read-heavy"}`:                  0.005,
		`{__name__="stagebench_capacity_requests_per_second", stage="lb", workload="read-heavy"}`: 300,
		`{__name__="stagebench_errors_ratio", stage="cache", workload="read-heavy"}`:              0.001,
		`{__name__="stagebench_valid", stage="lb", workload="read-heavy"}`:                        1,
		`{__name__="stagebench_valid", stage="web-1", workload="phase-2"}`:                        0,
		`{__name__="stagebench_cpu_per_request_seconds", stage="cache", workload="read-heavy"}`:   0.002,
	} {
		if got, found := values[series]; !found || got != want {
			t.Errorf("%s = %v (found: %v), want %v", series, got, found, want)
		}
	}
	if len(values) != 2*8+3 {
		t.Errorf("%d series, want eight figures of two valid cells, and the validity of three\n%v", len(values), values)
	}
}

// The load performance report has the fields that GitLab reads.
func TestLoadPerformance(t *testing.T) {
	run := sample(5e6)
	if err := export.Write(io.Discard, export.FormatLoad, run); !errors.Is(err, export.ErrManyCells) {
		t.Errorf("a run with several cells: %v", err)
	}
	run.Cells = run.Cells[:1]
	var report struct {
		Metrics struct {
			Requests struct{ Count, Rate float64 } `json:"http_reqs"`
			Waiting  map[string]float64            `json:"http_req_waiting"`
			Duration map[string]float64            `json:"http_req_duration"`
			Checks   struct{ Passes, Fails int64 } `json:"checks"`
		} `json:"metrics"`
		Root struct {
			Checks map[string]map[string]any `json:"checks"`
		} `json:"root_group"`
	}
	decode(t, text(t, export.FormatLoad, run), &report)
	m := report.Metrics
	if m.Requests.Count != 1000 || m.Requests.Rate != 100.5 || m.Checks.Passes != 999 || m.Checks.Fails != 1 ||
		m.Waiting["p(90)"] != 1 || m.Waiting["p(95)"] != 2.5 || m.Duration["med"] != 0.5 || len(report.Root.Checks) != 1 {
		t.Errorf("%+v", report)
	}
}

// A file without figures would look like success to its reader.
func TestNothing(t *testing.T) {
	run := sample(5e6)
	run.Cells = run.Cells[2:]
	for _, format := range export.Formats() {
		err := export.Write(io.Discard, format, run)
		switch marked := format == export.FormatBench || format == export.FormatJUnit || format == export.FormatOpenMetrics; {
		case marked && err != nil:
			t.Errorf("%s marks figures that are not valid, but gives %v", format, err)
		case !marked && !errors.Is(err, export.ErrNothing):
			t.Errorf("%s of a run without valid figures: %v", format, err)
		}
		if err := export.Write(io.Discard, format, results.Run{Complete: true}); !errors.Is(err, export.ErrNothing) {
			t.Errorf("%s of a run without cells: %v", format, err)
		}
	}
	if err := export.Write(io.Discard, "xml", run); err == nil || !strings.Contains(err.Error(), `unknown format "xml"`) {
		t.Errorf("an unknown format: %v", err)
	}
}
