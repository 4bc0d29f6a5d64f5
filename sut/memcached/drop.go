package memcached

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	// deleteBatch is the number of keys per batch of deletes. The replies to one batch fit
	// into the buffers of a connection, so that neither side blocks on a write.
	deleteBatch = 1000
	// crawlPoll is the time between two attempts to list the keys while the server's
	// crawler is busy.
	crawlPoll = 20 * time.Millisecond
)

var errBusy = errors.New("the crawler of the server is busy")

// Drop deletes the keys for which drop returns true, and returns their number. It may
// miss keys that are added while it runs.
func (s *Server) Drop(ctx context.Context, drop func(key string) bool) (dropped int, err error) {
	tick := time.NewTicker(crawlPoll)
	defer tick.Stop()
	keys, err := s.keys(ctx)
	for errors.Is(err, errBusy) && ctx.Err() == nil {
		select {
		case <-tick.C:
			keys, err = s.keys(ctx)
		case <-ctx.Done():
		}
	}
	if err != nil {
		return 0, errors.Join(ctx.Err(), err)
	}
	for chunk := range slices.Chunk(slices.DeleteFunc(keys, func(key string) bool { return !drop(key) }), deleteBatch) {
		replies := 0
		err := s.lines(ctx, "delete "+strings.Join(chunk, "\r\ndelete "), func(line string) (last bool, err error) {
			switch line {
			case "DELETED":
				dropped++
			case "NOT_FOUND": // evicted or expired in the meantime
			default:
				return true, fmt.Errorf("unexpected reply %.100q", line)
			}
			replies++
			return replies == len(chunk), nil
		})
		if err != nil {
			return dropped, err
		}
	}
	return dropped, nil
}

// keys lists the stored keys. It returns errBusy while the crawler of the server runs.
func (s *Server) keys(ctx context.Context) (keys []string, err error) {
	// "hash" walks the whole hash table. "all" walks the lists by last use, and misses entries that the server moves
	// in them meanwhile: up to a third of those that were read a moment ago.
	err = s.lines(ctx, "lru_crawler metadump hash", func(line string) (last bool, err error) {
		name, _, _ := strings.Cut(line, " ")
		escaped, isKey := strings.CutPrefix(name, "key=")
		key, err := url.PathUnescape(escaped)
		switch {
		case line == "END":
			return true, nil
		case name == "BUSY":
			return true, errBusy
		case !isKey || err != nil:
			return true, fmt.Errorf("unexpected reply %.100q", line)
		}
		keys = append(keys, key)
		return false, nil
	})
	return keys, err
}
