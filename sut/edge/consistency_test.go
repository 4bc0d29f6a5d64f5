package edge

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stagebench/stagebench/sut"
)

// TestPurgeIsNeverUndone: whatever runs at the same time, a request that begins after a purge gets a version that is at
// least as new as the purge.
func TestPurgeIsNeverUndone(t *testing.T) {
	t.Parallel()
	const keys, rounds = 3, 300
	var versions [keys]atomic.Int64
	e, url := loopback(t, func(w http.ResponseWriter, req *http.Request) {
		key, _ := strconv.Atoi(req.URL.Path[1:])
		version := versions[key].Load()
		w.Header().Set("Cache-Control", "max-age=1, stale-while-revalidate=60")
		w.Header().Set("Cache-Groups", fmt.Sprintf(`"group-%d"`, key))
		w.Header().Set("Etag", fmt.Sprintf(`"%d"`, version))
		_ = http.NewResponseController(w).Flush()
		_, _ = io.WriteString(w, strconv.FormatInt(version, 10))
	})
	var purged [keys]atomic.Int64
	var all sync.WaitGroup
	for worker := range 6 {
		all.Go(func() {
			for i := range rounds {
				key := (worker + i) % keys
				if worker == 0 || worker == 1 && i%3 == 0 {
					version := versions[key].Add(1)
					purge := sut.Purge{URLs: []string{fmt.Sprint("/", key)}}
					if i%2 == 0 {
						purge = sut.Purge{Groups: []string{fmt.Sprint("group-", key)}}
					}
					_ = e.Purge(t.Context(), purge) // its error is always nil
					for before := purged[key].Load(); before < version; before = purged[key].Load() {
						if purged[key].CompareAndSwap(before, version) {
							break
						}
					}
				}
				least := purged[key].Load()
				_, body := fetch(t, newRequest(t, http.MethodGet, fmt.Sprint(url, "/", key), ""))
				if got, err := strconv.ParseInt(body, 10, 64); err != nil || got < least {
					t.Errorf("key %d: got version %q after the purge of version %d", key, body, least)
				}
			}
		})
	}
	all.Wait()
	f, _ := e.Figures(t.Context())
	if f.Requests != 6*rounds || f.Hits == 0 || f.Purged == 0 || f.Entries > keys {
		t.Errorf("figures: %+v", f)
	}
}
