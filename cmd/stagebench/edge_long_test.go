//go:build long

package main

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/stagebench/stagebench/results"
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
	t.Logf("capacity %.0f/s (limit: %+v) without edges, %.0f/s (limit: %+v) with one", without.CapacityRPS, without.Limit,
		with.CapacityRPS, with.Limit)
	if with.CapacityRPS <= without.CapacityRPS {
		t.Error("the capacity did not rise")
	}
}

// figure returns the value of a figure that must be known.
func figure(t *testing.T, s *results.Step, name string) int64 {
	t.Helper()
	f := s.Figure(name)
	if f == nil || f.Value == nil {
		t.Fatalf("%s is unknown: %+v", name, f)
	}
	return *f.Value
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
