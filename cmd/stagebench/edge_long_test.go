//go:build long

package main

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/table"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/workloads/driver"
)

// TestEdgesTakeTheStaticLoad sends the same requests to stages cache and cdn, with 60 ms between users and origin. The
// bytes that web hosts send fall by the byte hit ratio, users get images without the delay, and edges answer what the
// lifetimes permit. It takes about ten minutes.
func TestEdgesTakeTheStaticLoad(t *testing.T) {
	args := []string{
		"--workloads", "static-heavy", "--rate", "100", "--duration", "60s", "--set", "cdn.delay=60ms",
	}
	without := measured(t, append(args, "--stages", "cache")...).Reference
	for name, knobs := range edgeEngines() {
		for _, ttl := range []string{"0s", "20s"} {
			t.Run(name+"/"+ttl, func(t *testing.T) {
				skipWithoutEngines(t, knobs)
				with := measured(t, append(args, "--stages", "cdn", "--set", "edge.engine="+knobs["edge.engine"],
					"--set", "cdn.ttl="+ttl)...).Reference
				if with.Static == nil {
					t.Fatal("no counts of static requests")
				}
				fall := 1 - float64(figure(t, with, "origin_static_bytes"))/float64(figure(t, without, "origin_static_bytes"))
				hits, bytes := with.Static.HitRatio(), with.Static.ByteHitRatio()
				most, known := with.Static.Ceiling()
				t.Logf("bytes of web hosts fall by %.1f %%, byte hit ratio %.1f %%; hit ratio %.1f %%, at most %.1f %%",
					100*fall, 100*bytes, 100*hits, 100*most)
				t.Logf("image p50 %.1f ms without edges, %.1f ms with them; %s",
					milliseconds(without.Ops["image"].ResponseNS.P50), milliseconds(with.Ops["image"].ResponseNS.P50), split(*with))
				if math.Abs(fall-bytes) > 0.02 {
					t.Errorf("bytes fall by %.3f, the byte hit ratio is %.3f: want within 0.02", fall, bytes)
				}
				if !known || math.Abs(hits-most) > 0.02 {
					t.Errorf("hit ratio %.3f, at most %.3f (known: %t): want within 0.02", hits, most, known)
				}
				if near, far := *with.Ops["image"].ResponseNS.P50, *without.Ops["image"].ResponseNS.P50; near > far-50e6 {
					t.Errorf("image p50 falls from %d to %d ns, want by the delay of 60 ms", far, near)
				}
			})
		}
	}
}

// TestEdgesRaiseTheCapacity compares the capacities of stages cache and cdn. It takes about ten minutes.
func TestEdgesRaiseTheCapacity(t *testing.T) {
	args := []string{"--workloads", "static-heavy", "--set", "cdn.delay=20ms"}
	without, with := measured(t, append(args, "--stages", "cache")...), measured(t, append(args, "--stages", "cdn")...)
	t.Logf("capacity %.0f/s (limit: %s) without edges, %.0f/s (limit: %s) with one", without.CapacityRPS, without.Limit.By,
		with.CapacityRPS, with.Limit.By)
	if with.CapacityRPS <= without.CapacityRPS {
		t.Error("the capacity did not rise")
	}
}

// TestHitsPerCore measures the CPU time of a hit: the same image again and again from each engine in turn, whose host
// has a core. A core that does nothing else serves one divided by that. It takes about two minutes.
func TestHitsPerCore(t *testing.T) {
	const rate, repeats, least = 3000.0, 3, 0.25
	engines := []string{"edge", "nginx", "varnish"}
	report := table.Table{Title: fmt.Sprintf("Hits of one thumbnail, %.0f/s", rate), Columns: []table.Column{
		{Name: "engine"},
		{Name: "repeat", Align: table.Right},
		{Name: "hits/s of a core", Key: "hits_per_cpu_second", Align: table.Right},
		{Name: "of nginx", Key: "ratio_to_nginx", Align: table.Right},
		{Name: "p50 ms", Key: "p50_ns", Align: table.Right},
		{Name: "p99 ms", Key: "p99_ns", Align: table.Right},
	}}
	hits := map[string][]float64{}
	for repeat := range repeats {
		for _, name := range engines {
			knobs := edgeEngines()[name]
			skipWithoutEngines(t, knobs)
			r := bringUpSized(t, sut.CDN, with(knobs, sut.Knobs{
				"edge.cpu": "10", "web.hosts": "1", "cache.hosts": "0", "db.replicas": "0",
			}), 0.1)
			r.connect(t, repeated{Class: "image", Method: "GET", Path: thumbPath(1), User: -1},
				driver.ClientConfig{Connections: 64})
			r.load(t, rate, 2*time.Second, 0, nil)
			step := r.load(t, rate, 8*time.Second, 0, nil)
			if failed(step) > 0 || step.Ops["image"].Edge["hit"] != step.Ledger.OK {
				t.Errorf("%s: %d failed, %v of %d OK", name, failed(step), step.Ops["image"].Edge, step.Ledger.OK)
			}
			for _, h := range step.Hosts {
				if h.Host == "edge-1" {
					hits[name] = append(hits[name], float64(step.Ledger.OK)/h.CPUSeconds)
				}
			}
			report.Rows = append(report.Rows, []table.Cell{
				table.Text(name), table.Count(int64(repeat + 1)), table.Rate(hits[name][repeat]), table.Blank(),
				nanoseconds(step.ResponseAll.P50), nanoseconds(step.ResponseAll.P99),
			})
			r.takeDown(t)
		}
	}
	for i, row := range report.Rows {
		name, repeat := engines[i%len(engines)], i/len(engines)
		row[3] = table.Number(hits[name][repeat] / hits["nginx"][repeat])
	}
	logTable(t, report)
	if ratio := median(hits["edge"]) / median(hits["nginx"]); ratio < least {
		t.Errorf("edge serves %.2f of the hits of nginx, want at least %.2f", ratio, least)
	}
}

func milliseconds(ns *int64) float64 { return float64(*ns) / 1e6 }

// split says which part of the images each tier answered. Behind an edge, the bytes of a photo are in no cache.
func split(s results.Step) string {
	image := s.Ops["image"]
	ok := float64(image.Count - image.Errors - image.SessionLost)
	var parts []string
	for _, kind := range []string{"hit", "stale", "uri-miss"} {
		parts = append(parts, fmt.Sprintf("%s %.1f %%", kind, 100*float64(image.Edge[kind])/ok))
	}
	return "images: " + strings.Join(parts, ", ")
}
