package resp

import (
	"testing"

	"github.com/stagebench/stagebench/sut/resp/policytest"
)

// BenchmarkPolicy measures one request to a full store, without the network: a read, and
// after a miss a write that evicts an entry. It also reports the hit ratio, because a
// miss costs more than a hit.
func BenchmarkPolicy(b *testing.B) {
	for _, evict := range []Evict{LRU, LFU, FIFO} {
		b.Run(string(evict), func(b *testing.B) {
			_, request := newSizedStore(b, evict, 1, 5_000)
			z := policytest.NewZipf(100_000, 1)
			keys := make([]int, 1<<16)
			for i := range keys {
				keys[i] = z.Next()
				request(keys[i])
			}
			hits := 0
			for i := 0; b.Loop(); i++ {
				if request(keys[i%len(keys)]) {
					hits++
				}
			}
			b.ReportMetric(float64(hits)/float64(b.N), "hit-ratio")
		})
	}
}
