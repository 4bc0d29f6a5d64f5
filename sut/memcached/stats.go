package memcached

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// Stats reads the server's figures over a new connection. The server counts an entry as
// expired when it finds the expired entry: during a read of the entry, when it needs
// memory, or when its crawler visits the entry.
func (s *Server) Stats(ctx context.Context) (f sut.CacheFigures, err error) {
	stats, last, err := s.stats(ctx, "stats")
	if err != nil {
		return f, err
	}
	if last != "END" {
		return f, fmt.Errorf("memcached: stats: unexpected reply %q", last)
	}
	var reclaimed, crawled int64
	for name, figure := range map[string]*int64{
		"get_hits": &f.Hits, "get_misses": &f.Misses, "evictions": &f.Evicted,
		"get_expired": &f.Expired, "reclaimed": &reclaimed, "crawler_reclaimed": &crawled,
		"curr_items": &f.Entries, "bytes": &f.Bytes, "limit_maxbytes": &f.MaxBytes,
	} {
		if *figure, err = strconv.ParseInt(stats[name], 10, 64); err != nil {
			return sut.CacheFigures{}, fmt.Errorf("memcached: stats: %s: %w", name, err)
		}
	}
	f.Expired += reclaimed + crawled
	return f, nil
}

// stats sends one command. It returns the statistics in the reply by name, and the last
// line of the reply.
func (s *Server) stats(ctx context.Context, command string) (stats map[string]string, last string, err error) {
	stats = map[string]string{}
	err = s.lines(ctx, command, func(line string) (end bool, err error) {
		figure, isStat := strings.CutPrefix(line, "STAT ")
		if !isStat {
			last = line
			return true, nil
		}
		name, value, _ := strings.Cut(figure, " ")
		stats[name] = value
		return false, nil
	})
	return stats, last, err
}

// lines sends commands over a new connection. It calls take for each line of the replies,
// until take returns last or an error.
func (s *Server) lines(ctx context.Context, command string, take func(line string) (last bool, err error)) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", s.Address())
	if err != nil {
		return fmt.Errorf("memcached: %w", err)
	}
	defer func() { _ = conn.Close() }() // the reply is complete without it
	// A past deadline interrupts reads and writes when ctx ends.
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if s.cfg.Secret != "" {
		err = s.cfg.Secret.ShowMemcached(conn)
	}
	if err == nil {
		_, err = fmt.Fprintf(conn, "%s\r\n", command)
	}
	for reply, last := bufio.NewReader(conn), false; err == nil && !last; {
		var line string
		if line, err = reply.ReadString('\n'); err == nil {
			last, err = take(strings.TrimRight(line, "\r\n"))
		}
	}
	if err != nil {
		return fmt.Errorf("memcached: %.40q: %w", command, err)
	}
	return nil
}
