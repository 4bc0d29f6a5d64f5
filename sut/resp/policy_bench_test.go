package resp

import (
	"testing"

	"github.com/stagebench/stagebench/sut/resp/policytest"
)

// BenchmarkPolicy is one request to a full cache in the store itself, without the
// network: a read, and on a miss a write that makes somebody go. The hit ratio
// belongs to the figure, as a miss costs more than a hit.
func BenchmarkPolicy(b *testing.B) {
	for _, evict := range []Evict{LRU, LFU, FIFO} {
		b.Run(string(evict), func(b *testing.B) {
			_, ask := sized(b, evict, 1, 5_000)
			z := policytest.NewZipf(100_000, 1)
			keys := make([]int, 1<<16)
			for i := range keys {
				keys[i] = z.Next()
				ask(keys[i])
			}
			hits := 0
			for i := 0; b.Loop(); i++ {
				if ask(keys[i%len(keys)]) {
					hits++
				}
			}
			b.ReportMetric(float64(hits)/float64(b.N), "hit-ratio")
		})
	}
}
