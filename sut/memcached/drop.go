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
	// deletions is how many keys are deleted at a time: the answers to them fit into the
	// buffers of a connection.
	deletions = 1000
	// crawlPoll is the time between two attempts to list the keys while the server's own
	// crawler looks through them.
	crawlPoll = 20 * time.Millisecond
)

var errBusy = errors.New("its crawler is busy")

// Drop removes the keys that drop says yes to, of those that are there when it begins,
// and returns how many there were.
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
	for chunk := range slices.Chunk(slices.DeleteFunc(keys, func(key string) bool { return !drop(key) }), deletions) {
		answered := 0
		err := s.lines(ctx, "delete "+strings.Join(chunk, "\r\ndelete "), func(line string) (end bool, err error) {
			switch line {
			case "DELETED":
				dropped++
			case "NOT_FOUND": // it has gone by itself
			default:
				return true, fmt.Errorf("it was answered with %.100q", line)
			}
			answered++
			return answered == len(chunk), nil
		})
		if err != nil {
			return dropped, err
		}
	}
	return dropped, nil
}

// keys lists the keys that are there.
func (s *Server) keys(ctx context.Context) (keys []string, err error) {
	err = s.lines(ctx, "lru_crawler metadump all", func(line string) (end bool, err error) {
		name, _, _ := strings.Cut(line, " ")
		escaped, isKey := strings.CutPrefix(name, "key=")
		key, err := url.PathUnescape(escaped)
		switch {
		case line == "END":
			return true, nil
		case name == "BUSY":
			return true, errBusy
		case !isKey || err != nil:
			return true, fmt.Errorf("it was answered with %.100q", line)
		}
		keys = append(keys, key)
		return false, nil
	})
	return keys, err
}
