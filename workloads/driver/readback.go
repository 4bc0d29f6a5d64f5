package driver

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
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
	var mu sync.Mutex
	found := map[string]int64{}
	paths := slices.Collect(maps.Keys(want))
	err := c.readAll(ctx, paths, config, func(path string, response *http.Response, _ []byte) bool {
		version, err := strconv.ParseInt(response.Header.Get(VersionHeader), 10, 64)
		if response.StatusCode == http.StatusNotFound {
			version, err = 0, nil
		} else if response.StatusCode >= http.StatusBadRequest {
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			found[path] = max(found[path], version)
		}
		return err == nil && found[path] >= want[path]
	})
	return found, err
}

// ReadUntil reads the records at the given paths. It retries each record until settled
// returns true for its answer, or MaxWait ends. settled is called for different records at
// the same time; the body is valid during the call. No op may be in flight. ReadUntil
// returns an error only when ctx ends.
func (c *Clients) ReadUntil(
	ctx context.Context, paths []string, config ReadBack, settled func(path string, status int, body []byte) bool,
) error {
	return c.readAll(ctx, paths, config, func(path string, response *http.Response, body []byte) bool {
		return settled(path, response.StatusCode, body)
	})
}

// readAll reads records, each until it is settled or MaxWait ends, and at least once. It asks caches not to answer:
// what counts is what the database has.
func (c *Clients) readAll(
	ctx context.Context, paths []string, config ReadBack,
	settled func(path string, response *http.Response, body []byte) bool,
) error {
	patient, cancel := context.WithTimeout(ctx, config.MaxWait)
	defer cancel()
	lanes := make(chan *slot, loginLanes)
	for _, s := range c.slots[:min(len(c.slots), loginLanes)] {
		lanes <- s
	}
	var readers sync.WaitGroup
	for _, path := range paths {
		lane := <-lanes
		readers.Go(func() {
			defer func() { lanes <- lane }()
			op := workloads.Op{Method: http.MethodGet, Path: path, Header: map[string]string{"Cache-Control": "no-cache"}}
			for {
				response, err := c.do(ctx, lane, op, nil, config.Timeout)
				if err == nil && settled(path, response, lane.kept) {
					return
				}
				select {
				case <-time.After(config.Pause):
				case <-patient.Done():
					return
				}
			}
		})
	}
	readers.Wait()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("read the records back: %w", err)
	}
	return nil
}
