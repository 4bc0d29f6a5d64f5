//go:build long

package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/hdr"
	"github.com/stagebench/stagebench/sut"
)

// TestUploadsDoNotWait compares the uploads of upload-heavy without and with the queue, at 60 % of the capacity without
// it: their p99 falls to a third at most. It takes about 25 minutes.
func TestUploadsDoNotWait(t *testing.T) {
	for name, knobs := range engines() {
		t.Run(name, func(t *testing.T) {
			skipWithoutEngines(t, knobs)
			args := []string{"--workloads", "upload-heavy", "--engines", name}
			base := measured(t, append(args, "--stages", "stateless")...)
			t.Logf("capacity without the queue: %.1f/s, limit: %s, %s", base.CapacityRPS, base.Limit.By, base.Limit.Figure)
			rate := 0.6 * base.CapacityRPS
			const uploads = 1150 // for a p99; a fifth of the ops
			duration := time.Duration(uploads / 0.2 / rate * float64(time.Second)).Round(time.Second)
			args = append(args, "--rate", fmt.Sprintf("%.1f", rate), "--duration", duration.String())
			p99 := func(more ...string) float64 {
				t.Helper()
				c := measured(t, append(args, more...)...)
				up := c.Reference.Ops["upload"]
				for _, s := range c.Steps {
					if s.Processing != nil {
						t.Logf("%+v, p50 %v, p99 %v", *s.Processing, s.Processing.DoneNS.P50, s.Processing.DoneNS.P99)
					}
				}
				if up.ResponseAll.P99 == nil {
					t.Fatalf("no p99 of %d uploads, %d errors", up.Count, up.Errors)
				}
				return milliseconds(up.ResponseAll.P99)
			}
			without, with := p99("--stages", "stateless"), p99("--stages", "queue", "--set", "queue.workers=2")
			t.Logf("at %.1f/s: p99 of uploads %.0f ms without the queue, %.0f ms with it", rate, without, with)
			if with > without/3 {
				t.Errorf("the p99 falls from %.0f to %.0f ms, want to a third at most", without, with)
			}
		})
	}
}

// TestBacklogIsComputed kills the worker for 10 s, again and again, with two rates of uploads in turn. The backlog is
// what arrives meanwhile. At the low rate it shows how fast the worker is. From that follows how long the next backlog
// takes to drain at the high rate. The machine's speed moves, so the median of the pairs counts. Uploads are as fast as
// before. It takes about ten minutes.
func TestBacklogIsComputed(t *testing.T) {
	const away, low, high, pairs = 10 * time.Second, 6.0, 10.0, 5
	for name, knobs := range engines() {
		t.Run(name, func(t *testing.T) {
			r := bringUpQueue(t, 0.14, knobs, sut.Knobs{"worker.cpu": "2"})
			run := func(rate float64) results.Processing {
				t.Helper()
				step := r.load(t, rate, 24*time.Second, 4*time.Second, func() { r.down(t, "worker-1", away) })
				var from, to int64
				for _, e := range step.Events {
					switch {
					case strings.HasSuffix(e.Text, "killed on request"):
						from = e.AtNS
					case strings.HasPrefix(e.Text, "worker-1: serving on "):
						to = e.AtNS
					}
				}
				p := r.processed(t, step)
				want := rate * float64(to-from) / 1e9
				t.Logf("%.0f/s, away for %.1f s: backlog %d, expected %.0f; drained in %.1f s at %.1f/s", rate,
					float64(to-from)/1e9, p.MaxBacklog, want, float64(*p.DrainNS)/1e9, p.DrainRPS)
				if math.Abs(float64(p.MaxBacklog)-want) > 0.1*want {
					t.Errorf("a backlog of %d, want %.0f within 10 %%", p.MaxBacklog, want)
				}
				before, meanwhile := hdr.NewHistogram(), hdr.NewHistogram()
				for _, o := range r.outcomes {
					switch {
					case o.Intended < from:
						before.Record(o.Response())
					case o.Intended < to:
						meanwhile.Record(o.Response())
					}
				}
				a, b := before.Latency(0), meanwhile.Latency(0)
				t.Logf("uploads p50 and max: %.1f and %.1f ms before, %.1f and %.1f ms without workers", milliseconds(a.P50),
					milliseconds(a.Max), milliseconds(b.P50), milliseconds(b.Max))
				return p
			}
			run(low) // warms up
			var ratios []float64
			for range pairs {
				first, second := run(low), run(high)
				if first.DrainRPS < high {
					t.Fatalf("the worker does %.1f jobs/s, which is not more than %.0f", first.DrainRPS, high)
				}
				want := float64(second.MaxBacklog-1) / (first.DrainRPS - high)
				ratios = append(ratios, float64(*second.DrainNS)/1e9/want)
			}
			t.Logf("time to drain, as a multiple of the computed one: %.2f, median %.2f", ratios, median(ratios))
			if m := median(ratios); math.Abs(m-1) > 0.15 {
				t.Errorf("backlogs drained in %.2f of the computed time, want 1 within 15 %%", m)
			}
		})
	}
}

// TestTheBrokerIsKilledTwentyTimes kills the broker under uploads, and workers, too. Each acknowledged upload is
// processed, once. It takes about four minutes.
func TestTheBrokerIsKilledTwentyTimes(t *testing.T) {
	for name, knobs := range engines() {
		t.Run(name, func(t *testing.T) {
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			random := rand.New(rand.NewPCG(seed, 0))
			r := bringUpQueue(t, roomy, knobs, sut.Knobs{"queue.workers": "2"})
			for range 20 {
				step := r.loadWhile(t, 20, time.Duration(random.Int64N(int64(time.Second))), time.Second, func() {
					if random.IntN(2) == 0 {
						if err := r.Kill(fmt.Sprintf("worker-%d", 1+random.IntN(2))); err != nil {
							t.Error(err)
						}
					}
					r.down(t, "broker-1", time.Duration(random.Int64N(int64(2*time.Second))))
				})
				r.processed(t, step)
			}
		})
	}
}
