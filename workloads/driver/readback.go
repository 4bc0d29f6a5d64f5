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

// ReadBack says how records are read back after a measurement.
type ReadBack struct {
	Timeout time.Duration // of one request
	// Patience bounds the wait for a record that shows less than what was
	// acknowledged, and for one that cannot be read: a copy that is behind, or on
	// its way back, gets so long to have everything.
	Patience time.Duration
	// Pause is the time between two looks at one record.
	Pause time.Duration
}

// Versions reads records by their paths, each until it shows the version that is
// given for it, or patience ends. The result has the highest version that each
// showed, 0 for one that the target said not to know; records that could not be
// read at all are not in it. No op may be in flight. It returns an error only
// when ctx ends.
func (c *Clients) Versions(ctx context.Context, want map[string]int64, how ReadBack) (map[string]int64, error) {
	patient, cancel := context.WithTimeout(ctx, how.Patience)
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
			if shown, known := c.settle(ctx, patient, lane, path, version, how); known {
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

// settle looks at a record until it shows the version, or patience ends; it looks
// at least once.
func (c *Clients) settle(ctx, patient context.Context, s *slot, path string, want int64, how ReadBack) (highest int64, known bool) {
	for {
		if version, ok := c.version(ctx, s, path, how.Timeout); ok {
			highest, known = max(highest, version), true
		}
		if known && highest >= want {
			return highest, known
		}
		select {
		case <-time.After(how.Pause):
		case <-patient.Done():
			return highest, known
		}
	}
}

// version asks for a record once.
func (c *Clients) version(ctx context.Context, s *slot, path string, timeout time.Duration) (version int64, ok bool) {
	response, err := c.ask(ctx, s, workloads.Op{Method: http.MethodGet, Path: path}, nil, timeout)
	if err != nil {
		return 0, false
	}
	if response.StatusCode == http.StatusNotFound {
		return 0, true
	}
	version, err = strconv.ParseInt(response.Header.Get(VersionHeader), 10, 64)
	return version, err == nil && response.StatusCode < http.StatusBadRequest
}
