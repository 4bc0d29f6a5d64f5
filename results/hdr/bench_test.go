package hdr_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/hdr"
)

// BenchmarkStep is the cost of a step of three seconds for the client: 600 outcomes of seven classes, and the closing
// of the intervals.
func BenchmarkStep(b *testing.B) {
	random := rand.New(rand.NewPCG(1, 2))
	var outcomes []results.Outcome
	for i := range int64(600) {
		at := i * int64(3*time.Second) / 600
		service := int64(random.ExpFloat64() * 5e6)
		outcomes = append(outcomes, results.Outcome{
			Class: fmt.Sprintf("class-%d", random.IntN(7)), Intended: at, Dispatched: at + 50_000, Sent: at + 100_000,
			Done: at + 100_000 + service, Fate: results.OK, Status: 200,
		})
	}
	for _, logged := range []bool{false, true} {
		b.Run(fmt.Sprintf("logged=%t", logged), func(b *testing.B) {
			log, err := hdr.NewLog(io.Discard, "benchmark", time.Now())
			if err != nil {
				b.Fatal(err)
			}
			closed := func(i hdr.Interval) {
				if logged {
					if err := log.Write(i); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				r := hdr.New(time.Now(), func(string) int64 { return 1e8 }, closed)
				next := int64(time.Second)
				for _, o := range outcomes {
					for o.Done >= next {
						r.Tick(next)
						next += int64(time.Second)
					}
					r.Record(o)
				}
				r.Finish(int64(len(outcomes)))
			}
		})
	}
}
