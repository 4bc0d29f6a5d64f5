//go:build long

package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/table"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/workloads"
)

// crowd is a workload of members with one heavy user, who sends a fifth of all requests.
type crowd struct{ members }

func (c crowd) Op(n uint64) workloads.Op {
	op := c.members.Op(n)
	if n%5 == 0 {
		op.User = 0
	}
	return op
}

// TestCostOfStickiness sends the same requests to three web hosts with sessions in their memory, where each user stays
// on a host, and with sessions in each shared store. Then it adds a host. It prints what a request costs, how evenly
// the hosts work, and which part of the work the new host gets. It takes about five minutes.
func TestCostOfStickiness(t *testing.T) {
	const rate, repeats = 150.0, 3
	const length, warmUp = 10 * time.Second, 3 * time.Second
	report := table.Table{Title: "Sessions in the memory of web hosts, and in shared stores", Columns: []table.Column{
		{Name: "engines"},
		{Name: "sessions in"},
		{Name: "sticky"},
		{Name: "p50 ms", Key: "p50_ns", Align: table.Right},
		{Name: "p99 ms", Key: "p99_ns", Align: table.Right},
		{Name: "CPU ms", Key: "cpu_ms_per_request", Align: table.Right},
		{Name: "busiest/mean", Key: "imbalance", Align: table.Right},
		{Name: "with new host", Key: "imbalance_of_four", Align: table.Right},
		{Name: "new host's part", Key: "share_of_new", Align: table.Right},
	}}
	type outcome struct{ imbalance, share float64 }
	got := map[string][]outcome{}
	for range repeats {
		for _, engine := range []string{"embedded", "native"} {
			for _, store := range []string{"memory", "resp", "sql"} { // interleaved: other load affects all
				r := bringUpMembers(t, 0.1, engines()[engine], sut.Knobs{
					"session.store": store, "lb.cpu": "3", "db.cpu": "2", "session.cpu": "2", "web.hosts": "3",
				})
				r.stepper.Workload = crowd{loggedIn}
				r.load(t, rate, warmUp, 0, nil)
				three := r.load(t, rate, length, 0, nil)
				if _, err := r.Scale(t.Context(), "web", 4); err != nil {
					t.Fatal(err)
				}
				r.load(t, rate, warmUp, 0, nil)
				four := r.load(t, rate, length, 0, nil)
				for _, step := range []results.Step{three, four} {
					if failed(step) > 0 || step.Ledger.SessionLost > 0 {
						t.Errorf("%s/%s: %d failed, %d sessions lost", engine, store, failed(step), step.Ledger.SessionLost)
					}
				}
				before, after := webWork(three), webWork(four)
				o := outcome{imbalance(before), after[len(after)-1] / sum(after)}
				got[store] = append(got[store], o)
				report.Rows = append(report.Rows, []table.Cell{
					table.Text(engine), table.Text(store), table.Text(r.topology.Knobs["lb.sticky"]),
					nanoseconds(three.ResponseAll.P50), nanoseconds(three.ResponseAll.P99),
					table.Number(1000 * allWork(three) / float64(three.Ledger.Sent)),
					table.Number(o.imbalance), table.Number(imbalance(after)), table.Share(o.share),
				})
				r.takeDown(t)
			}
		}
	}
	logTable(t, report)
	for store, outcomes := range got {
		for _, o := range outcomes {
			if sticky := store == "memory"; sticky == (o.share > 0.15) {
				t.Errorf("%s: the new host does %.2f of the work", store, o.share)
			}
		}
	}
}

// webWork returns the CPU seconds of each web host in a step.
func webWork(s results.Step) (seconds []float64) {
	for _, h := range s.Hosts {
		if strings.HasPrefix(h.Host, "web-") {
			seconds = append(seconds, h.CPUSeconds)
		}
	}
	return seconds
}

// allWork returns the CPU seconds of all hosts in a step.
func allWork(s results.Step) (seconds float64) {
	for _, h := range s.Hosts {
		seconds += h.CPUSeconds
	}
	return seconds
}

func sum(values []float64) (s float64) {
	for _, v := range values {
		s += v
	}
	return s
}

// imbalance is the largest value divided by the mean; 1 = all are equal.
func imbalance(values []float64) float64 {
	return slices.Max(values) * float64(len(values)) / sum(values)
}
