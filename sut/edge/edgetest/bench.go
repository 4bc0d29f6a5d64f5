package edgetest

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stagebench/stagebench/sut"
)

// BenchmarkEdges measures hits: how many an engine serves in a second over connections that stay open. A package of an
// engine calls it from a benchmark of its own. Client, edge and origin share the machine, so the figures compare
// engines and are no limits.
func BenchmarkEdges(b *testing.B, e Engine) {
	o := newOrigin(b)
	edge := e.Start(b, sut.EdgeConfig{
		Node: nodeName, Origins: []sut.Peer{o.peer("web-1")}, MaxBytes: memory,
	}.Complete())
	for _, size := range []int{1 << 10, 20 << 10, 200 << 10} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) { benchHits(b, edge.URL, o, size) })
	}
}

func benchHits(b *testing.B, base string, o *origin, size int) {
	path := fmt.Sprintf("/img/bench/%d", size)
	o.handle(path, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "max-age=3600")
		w.Header().Set("Content-Type", "image/jpeg")
		_, _ = io.WriteString(w, strings.Repeat("x", size))
	})
	const connections = 32
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: connections, DisableCompression: true}}
	b.Cleanup(client.CloseIdleConnections)
	get := func() error {
		res, err := client.Get(base + path)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		n, err := io.Copy(io.Discard, res.Body)
		if err == nil && (res.StatusCode != http.StatusOK || n != int64(size)) {
			return fmt.Errorf("status %d, %d bytes", res.StatusCode, n)
		}
		return err
	}
	if err := get(); err != nil { // stores the response
		b.Fatal(err)
	}
	b.SetBytes(int64(size))
	b.SetParallelism(connections / 2)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := get(); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "hits/s")
}
