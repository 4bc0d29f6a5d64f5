package driver

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

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
	type shown struct {
		path    string
		version int64
	}
	paths, answers := make(chan string), make(chan shown)
	patient, cancel := context.WithTimeout(ctx, how.Patience)
	defer cancel()
	group, groupContext := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(paths)
		for path := range want {
			select {
			case paths <- path:
			case <-groupContext.Done():
				return groupContext.Err()
			}
		}
		return nil
	})
	for lane := range min(len(c.slots), loginLanes) {
		group.Go(func() error {
			for path := range paths {
				version, known := c.settle(groupContext, patient, c.slots[lane], path, want[path], how)
				if known {
					answers <- shown{path, version}
				}
			}
			return groupContext.Err()
		})
	}
	found := map[string]int64{}
	collected := make(chan struct{})
	go func() {
		defer close(collected)
		for a := range answers {
			found[a.path] = a.version
		}
	}()
	err := group.Wait()
	close(answers)
	<-collected
	if err != nil {
		return found, fmt.Errorf("read the records back: %w", err)
	}
	return found, nil
}

// settle looks at a record until it shows the version, or patience ends; it looks
// at least once.
func (c *Clients) settle(ctx, patient context.Context, s *slot, path string, want int64, how ReadBack) (highest int64, known bool) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for first := true; ; first = false {
		if !first {
			pause.Reset(how.Pause)
			select {
			case <-pause.C:
			case <-patient.Done():
				return highest, known
			}
		}
		if version, ok := c.version(ctx, s, path, how.Timeout); ok {
			highest, known = max(highest, version), true
		}
		if known && highest >= want || patient.Err() != nil {
			return highest, known
		}
	}
}

// version asks for a record once.
func (c *Clients) version(ctx context.Context, s *slot, path string, timeout time.Duration) (version int64, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := c.Request(workloads.Op{Method: http.MethodGet, Path: path, User: -1})
	if err != nil {
		return 0, false
	}
	response, err := s.transport.RoundTrip(req.WithContext(ctx))
	if err != nil {
		return 0, false
	}
	if _, err := s.drain(response.Body, false); err != nil {
		return 0, false
	}
	if response.StatusCode == http.StatusNotFound {
		return 0, true
	}
	version, err = strconv.ParseInt(response.Header.Get(VersionHeader), 10, 64)
	return version, err == nil && response.StatusCode < http.StatusBadRequest
}
