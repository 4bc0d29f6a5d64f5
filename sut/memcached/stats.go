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

// Stats asks the server for its figures, over a connection of its own. An entry counts
// as expired when somebody who asked for it or who needed room found it so, or the
// server in passing.
func (s *Server) Stats(ctx context.Context) (f sut.CacheFigures, err error) {
	told, last, err := s.ask(ctx, "stats")
	if err != nil {
		return f, err
	}
	if last != "END" {
		return f, fmt.Errorf("memcached: stats was answered with %q", last)
	}
	var reclaimed, crawled int64
	for name, figure := range map[string]*int64{
		"get_hits": &f.Hits, "get_misses": &f.Misses, "evictions": &f.Evicted,
		"get_expired": &f.Expired, "reclaimed": &reclaimed, "crawler_reclaimed": &crawled,
		"curr_items": &f.Entries, "bytes": &f.Bytes, "limit_maxbytes": &f.MaxBytes,
	} {
		if *figure, err = strconv.ParseInt(told[name], 10, 64); err != nil {
			return sut.CacheFigures{}, fmt.Errorf("memcached: stats: %s: %w", name, err)
		}
	}
	f.Expired += reclaimed + crawled
	return f, nil
}

// ask sends one command, and returns the statistics in the answer by name, and its last
// line.
func (s *Server) ask(ctx context.Context, command string) (told map[string]string, last string, err error) {
	told = map[string]string{}
	err = s.lines(ctx, command, func(line string) (end bool, err error) {
		figure, is := strings.CutPrefix(line, "STAT ")
		if !is {
			last = line
			return true, nil
		}
		name, value, _ := strings.Cut(figure, " ")
		told[name] = value
		return false, nil
	})
	return told, last, err
}

// lines sends commands over a connection of its own and takes the lines of the answers,
// as they come, until take says that one was the last.
func (s *Server) lines(ctx context.Context, command string, take func(line string) (end bool, err error)) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", s.Address())
	if err != nil {
		return fmt.Errorf("memcached: %w", err)
	}
	defer func() { _ = conn.Close() }() // all that was wanted is there
	// Also when the caller just leaves: the deadline is then the past.
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	_, err = fmt.Fprintf(conn, "%s\r\n", command)
	for answer, end := bufio.NewReader(conn), false; err == nil && !end; {
		var line string
		if line, err = answer.ReadString('\n'); err == nil {
			end, err = take(strings.TrimRight(line, "\r\n"))
		}
	}
	if err != nil {
		return fmt.Errorf("memcached: %.40q: %w", command, err)
	}
	return nil
}
