//go:build long

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/rundir"
	"github.com/stagebench/stagebench/results/table"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/driver"
)

// TestLoadAwarePoliciesSpareASlowHost measures the same rate under each balancing policy. One
// of three web hosts has a third of the CPU of the others. It takes about two minutes.
func TestLoadAwarePoliciesSpareASlowHost(t *testing.T) {
	const rate, repeats = 450.0, 3
	policies := []string{"round_robin", "weighted_round_robin", "least_conn", "least_response_time"}
	p99 := map[string][]int64{}
	report := table.Table{
		Title: fmt.Sprintf("One of three web hosts has a third of the CPU, %.0f pages/s", rate),
		Columns: []table.Column{
			{Name: "policy"},
			{Name: "repeat", Align: table.Right},
			{Name: "p50 ms", Key: "p50_ns", Align: table.Right},
			{Name: "p99 ms", Key: "p99_ns", Align: table.Right},
			{Name: "errors", Align: table.Right},
			{Name: "slow host's CPU", Key: "cpu_share", Align: table.Right},
		},
	}
	for repeat := range repeats {
		for _, policy := range policies { // interleaved, so that other load on the machine affects all policies
			r := bringUpSized(t, sut.LB, sut.Knobs{
				"lb.policy": policy, "web.cpu": "3,3,1", "web.weights": "3,3,1",
				"lb.cpu": "4", "db.cpu": "4", "lb.sticky": "false",
			}, 0.1)
			// The page is the most expensive op for the web tier. The slow host has too little
			// CPU for a third of the rate.
			r.connect(t, repeated{Class: "page", Method: "GET", Path: "/", User: -1}, driver.ClientConfig{Connections: 256})
			r.load(t, rate, 3*time.Second, 0, nil) // warm-up
			step := r.load(t, rate, 8*time.Second, 0, nil)
			slow := results.HostUsage{}
			for _, h := range step.Hosts {
				if h.Host == "web-3" {
					slow = h
				}
			}
			all := step.ResponseAll
			report.Rows = append(report.Rows, []table.Cell{
				table.Text(policy), table.Count(int64(repeat + 1)), nanoseconds(all.P50), nanoseconds(all.P99),
				table.Share(step.Ledger.ErrorRate()), table.Share(slow.CPUShare),
			})
			p99[policy] = append(p99[policy], value(all.P99))
			r.takeDown(t)
		}
	}
	logTable(t, report)
	base := median(p99["round_robin"])
	for _, policy := range policies[2:] {
		ratio := float64(base) / float64(median(p99[policy]))
		if base == never {
			t.Logf("more than 1%% failed with round_robin; p99 with %s: %v", policy, time.Duration(median(p99[policy])))
		} else {
			t.Logf("p99 with round_robin is %.1f times that with %s (medians of %d)", ratio, policy, repeats)
		}
		if ratio < 2 {
			t.Errorf("p99 with round_robin is %.2f times that with %s, want at least 2", ratio, policy)
		}
	}
}

// TestSlowUploadsAndReads measures reads while slow clients upload. Without web.split, the
// uploads use up the connections of every web host. With it, they use up those of the upload
// hosts only. It takes about three minutes.
func TestSlowUploadsAndReads(t *testing.T) {
	const readRate, uploadRate, repeats = 80.0, 20.0, 3
	size := sut.Knobs{"web.max_conns": "50", "web.cpu": "3", "lb.cpu": "3", "db.cpu": "3"}
	split := with(size, sut.Knobs{"web.split": "true"})
	type run struct {
		name     string
		knobs    sut.Knobs
		workload func() workloads.Workload
		rate     float64
	}
	all := shipped(t, "slow-upload")
	runs := []run{
		{"split, reads alone", split, func() workloads.Workload { return readsOf{all} }, readRate},
		{"split, with slow uploads", split, func() workloads.Workload { return all }, readRate + uploadRate},
		{"no split, with slow uploads", size, func() workloads.Workload { return all }, readRate + uploadRate},
	}
	report := table.Table{
		Title: fmt.Sprintf("Reads at %.0f/s, slow uploads at %.0f/s, 50 connections per web host", readRate, uploadRate),
		Columns: []table.Column{
			{Name: "configuration"},
			{Name: "repeat", Align: table.Right},
			{Name: "reads' p50 ms", Key: "p50_ns", Align: table.Right},
			{Name: "reads' p99 ms", Key: "p99_ns", Align: table.Right},
			{Name: "reads failed", Key: "failed", Align: table.Right},
			{Name: "uploads failed", Key: "uploads_failed", Align: table.Right},
		},
	}
	p99, failed := map[string][]int64{}, map[string][]float64{}
	for repeat := range repeats {
		for _, c := range runs {
			r := bringUpSized(t, sut.LB, c.knobs, 0.1)
			r.connect(t, c.workload(), driver.ClientConfig{Connections: 600})
			r.load(t, c.rate, 10*time.Second, 0, nil) // warm-up, until the number of slow clients is stable
			r.outcomes = nil
			r.load(t, c.rate, 20*time.Second, 0, nil)
			reads, uploads := readsAndUploads(r.outcomes)
			report.Rows = append(report.Rows, []table.Cell{
				table.Text(c.name), table.Count(int64(repeat + 1)),
				table.Nanoseconds(reads.at(0.5)), table.Nanoseconds(reads.at(0.99)),
				table.Share(reads.failed()), table.Share(uploads.failed()),
			})
			p99[c.name] = append(p99[c.name], reads.at(0.99))
			failed[c.name] = append(failed[c.name], reads.failed())
			r.takeDown(t)
		}
	}
	logTable(t, report)
	alone, apart, together := runs[0].name, runs[1].name, runs[2].name
	ratio, failedApart := float64(median(p99[apart]))/float64(median(p99[alone])), median(failed[apart])
	t.Logf("with web.split, uploads change the p99 of reads by a factor of %.2f", ratio)
	if ratio > 1.2 || failedApart > 0.001 {
		t.Errorf("with web.split, uploads change the p99 of reads by a factor of %.2f and %.2f%% of reads fail, "+
			"want at most 1.2 and 0.1%%", ratio, 100*failedApart)
	}
	if share := median(failed[together]); share < 0.01 && median(p99[together]) < 2*median(p99[alone]) {
		t.Errorf("without web.split, uploads do not slow reads down: %.2f%% failed, p99 %v",
			100*share, time.Duration(median(p99[together])))
	}
}

// takeDown stops the system before the end of the test.
func (r *rig) takeDown(t *testing.T) {
	t.Helper()
	r.stepper.Clients.Close()
	if err := r.Down(context.Background()); err != nil {
		t.Error(err)
	}
}

// readsOf is the reads of a workload, in the same mix.
type readsOf struct{ all workloads.Workload }

func (readsOf) Name() string                    { return "reads" }
func (r readsOf) Users() int                    { return r.all.Users() }
func (r readsOf) LoginOp(user int) workloads.Op { return r.all.(workloads.Login).LoginOp(user) }

// Op returns the first read of the n-th window of 64 ops.
func (r readsOf) Op(n uint64) workloads.Op {
	const window = 64
	for i := range uint64(window) {
		if op := r.all.Op(n*window + i); !op.Write {
			op.Index = n
			return op
		}
	}
	panic("the window has no read")
}

// responses are response times in ns. A failed request has the value never.
type responses []int64

// never is longer than any response time.
const never = int64(1 << 62)

// readsAndUploads returns the response times of reads, sorted, and of uploads.
func readsAndUploads(outcomes []results.Outcome) (reads, uploads responses) {
	for _, o := range outcomes {
		response := o.Response()
		if o.Fate.Failed() {
			response = never
		}
		switch o.Class {
		case "upload":
			uploads = append(uploads, response)
		case "login":
		default:
			reads = append(reads, response)
		}
	}
	slices.Sort(reads)
	return reads, uploads
}

// at returns the quantile q of sorted response times.
func (r responses) at(q float64) int64 { return r[min(int(q*float64(len(r))), len(r)-1)] }

// failed returns the share of failed requests.
func (r responses) failed() float64 {
	n := 0
	for _, response := range r {
		if response == never {
			n++
		}
	}
	return float64(n) / max(float64(len(r)), 1)
}

func median[T cmp.Ordered](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// value returns a percentile, or never if it is nil: then the percentile is a failed request.
func value(ns *int64) int64 {
	if ns == nil {
		return never
	}
	return *ns
}

func nanoseconds(ns *int64) table.Cell {
	if ns == nil {
		return table.Blank("the percentile is a failed request")
	}
	return table.Nanoseconds(*ns)
}

// logTable prints a table to the test's log.
func logTable(t *testing.T, report table.Table) {
	t.Helper()
	var text strings.Builder
	if err := table.Render(&text, table.Style{Format: table.FormatText}, report); err != nil {
		t.Error(err)
	}
	t.Logf("\n%s", text.String())
}

// TestReplayOfTheSharedLog replays 8,000 lines of a real access log at stage single, twenty
// times faster than they were logged. It takes about three minutes.
func TestReplayOfTheSharedLog(t *testing.T) {
	path, err := filepath.Abs("../../../shared/data/access-log/semicomplete-2015-05.log.gz")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		t.Skip("there is no shared data next to the repository")
	}
	h := startHarness(t, "run", "--stages", "single", "--workloads", "trace:"+path,
		"--max-gap", "1s", "--speed", "20", "--out", "runs/replay")
	if err := h.cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, h.output.String())
	}
	t.Logf("\n%s", h.output.String())
	run, _, err := rundir.Read(filepath.Join(h.temp, "runs", "replay"))
	if err != nil {
		t.Fatal(err)
	}
	c := run.Cells[0]
	if c.Trace == nil || c.Trace.Lines != 8000 || c.Trace.Mapped != 8000 || c.Trace.OutOfOrder != 7561 {
		t.Errorf("trace %+v", c.Trace)
	}
	if l := c.Reference.Ledger; l.OK != l.Scheduled || l.Scheduled < 8000 || c.Reference.ResponseNS.P99 == nil {
		t.Errorf("ledger %+v, response %+v", l, c.Reference.ResponseNS)
	}
}
