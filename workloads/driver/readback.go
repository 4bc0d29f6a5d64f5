package driver

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/stagebench/stagebench/workloads"
)

// ReadBack configures how records are read back after a measurement.
type ReadBack struct {
	Timeout time.Duration // of one request
	// MaxWait is the maximum time to retry records that show an older version than the
	// acknowledged one or cannot be read. It gives lagging replicas time to catch up and
	// restarted nodes time to return. All records share it.
	MaxWait time.Duration
	// Pause is the interval between two reads of one record.
	Pause time.Duration
}

// ReadVersions reads the records at the given paths. It retries each record until it shows
// the wanted version or MaxWait ends. The result maps each path to the highest version
// seen, with 0 for a record that the target does not know (404). Records that could never
// be read are not in the result. No op may be in flight. ReadVersions returns an error only
// when ctx ends.
func (c *Clients) ReadVersions(ctx context.Context, want map[string]int64, config ReadBack) (map[string]int64, error) {
	patient, cancel := context.WithTimeout(ctx, config.MaxWait)
	defer cancel()
	lanes := make(chan *slot, loginLanes)
	for _, s := range c.slots[:min(len(c.slots), loginLanes)] {
		lanes <- s
	}
	var readers sync.WaitGroup
	var mu sync.Mutex
	found := map[string]int64{}
	for path, version := range want {
		lane := <-lanes
		readers.Go(func() {
			defer func() { lanes <- lane }()
			if shown, known := c.awaitVersion(ctx, patient, lane, path, version, config); known {
				mu.Lock()
				defer mu.Unlock()
				found[path] = shown
			}
		})
	}
	readers.Wait()
	if err := ctx.Err(); err != nil {
		return found, fmt.Errorf("read the records back: %w", err)
	}
	return found, nil
}

// awaitVersion reads a record until it shows the wanted version or patient ends. It reads
// at least once.
func (c *Clients) awaitVersion(
	ctx, patient context.Context, s *slot, path string, want int64, config ReadBack,
) (highest int64, known bool) {
	for {
		if version, ok := c.version(ctx, s, path, config.Timeout); ok {
			highest, known = max(highest, version), true
		}
		if known && highest >= want {
			return highest, known
		}
		select {
		case <-time.After(config.Pause):
		case <-patient.Done():
			return highest, known
		}
	}
}

// version reads a record once and returns its version, 0 for a record that the target
// does not know.
func (c *Clients) version(ctx context.Context, s *slot, path string, timeout time.Duration) (version int64, ok bool) {
	response, err := c.do(ctx, s, workloads.Op{Method: http.MethodGet, Path: path}, nil, timeout)
	if err != nil {
		return 0, false
	}
	if response.StatusCode == http.StatusNotFound {
		return 0, true
	}
	version, err = strconv.ParseInt(response.Header.Get(VersionHeader), 10, 64)
	return version, err == nil && response.StatusCode < http.StatusBadRequest
}
