package edgetest

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
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
	b.Run("small", func(b *testing.B) { benchSmall(b, e) })
}

// benchSmall measures the memory of many small objects. It is by how much the resident memory of this process and its
// children grows while an edge stores them. An engine that stores bodies in files has these in the page cache.
func benchSmall(b *testing.B, e Engine) {
	const objects, size = 100_000, 100
	o := newOrigin(b)
	edge := e.Start(b, sut.EdgeConfig{
		Node: nodeName, Origins: []sut.Peer{o.peer("web-1")}, MaxBytes: 8 * memory,
	}.Complete())
	fetched, control := 0, "no-store"
	o.handle("/img/small", func(w http.ResponseWriter, _ *http.Request) {
		fetched++
		w.Header().Set("Cache-Control", control)
		w.Header().Set("Content-Type", "image/jpeg")
		_, _ = io.WriteString(w, strings.Repeat("x", size))
	})
	read := func(version int) {
		res, err := http.Get(fmt.Sprintf("%s/img/small?v=%d", edge.URL, version))
		if err != nil {
			b.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, res.Body); err != nil || n != size {
			b.Fatalf("%d bytes, %v", n, err)
		}
		_ = res.Body.Close() // it was read
	}
	for range b.N {
		for i := range objects / 10 { // buffers of both sides
			read(-1 - i)
		}
		before := resident(b)
		control = "max-age=3600"
		for i := range objects {
			read(i)
		}
		stored := fetched
		after := resident(b)
		for i := range objects {
			read(i)
		}
		b.ReportMetric(float64(after-before)/objects, "resident-B/object")
		b.ReportMetric(float64(fetched-stored)/objects, "lost/object")
	}
	if figures, err := edge.Figures(b.Context()); err == nil {
		b.ReportMetric(float64(figures.Bytes)/objects, "counted-B/object")
	}
}

// resident returns the resident memory of this process and its descendants in bytes, after a garbage collection.
func resident(b *testing.B) (bytes int64) {
	debug.FreeOSMemory()
	parents := map[int]int{}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		b.Fatal(err)
	}
	for _, path := range stats {
		var pid, parent int
		text, err := os.ReadFile(path)
		if err != nil {
			continue // the process has ended
		}
		// The name, in parentheses, may contain anything (proc_pid_stat(5)).
		_, rest, _ := strings.Cut(string(text), ") ")
		if _, err := fmt.Sscan(filepath.Base(filepath.Dir(path)), &pid); err != nil {
			b.Fatal(err)
		}
		var state string
		if _, err := fmt.Sscan(rest, &state, &parent); err != nil {
			b.Fatal(err)
		}
		parents[pid] = parent
	}
	for pid := range parents {
		ancestor := pid
		for ancestor != os.Getpid() && ancestor > 0 {
			ancestor = parents[ancestor]
		}
		if ancestor != os.Getpid() {
			continue
		}
		var pages, inMemory int64
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if err != nil {
			continue
		}
		if _, err := fmt.Sscan(string(text), &pages, &inMemory); err != nil {
			b.Fatal(err)
		}
		bytes += inMemory * int64(os.Getpagesize())
	}
	return bytes
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
