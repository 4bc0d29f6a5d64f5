package memcached

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// Stats asks the server for its figures, over a connection of its own. An entry counts
// as expired when somebody who asked for it or who needed room found it so, or the
// server in passing.
func (s *Server) Stats(ctx context.Context) (f sut.CacheFigures, err error) {
	var reclaimed, crawled int64
	wanted := map[string]*int64{
		"get_hits": &f.Hits, "get_misses": &f.Misses, "evictions": &f.Evicted,
		"get_expired": &f.Expired, "reclaimed": &reclaimed, "crawler_reclaimed": &crawled,
		"curr_items": &f.Entries, "bytes": &f.Bytes, "limit_maxbytes": &f.MaxBytes,
	}
	err = s.ask(ctx, "stats", func(line string) (end bool, err error) {
		if line == "END" {
			return true, nil
		}
		word, rest, _ := strings.Cut(line, " ")
		name, value, _ := strings.Cut(rest, " ")
		if word != "STAT" {
			return true, fmt.Errorf("it was answered with %q", line)
		}
		figure := wanted[name]
		if figure == nil {
			return false, nil
		}
		if *figure, err = strconv.ParseInt(value, 10, 64); err != nil {
			return true, fmt.Errorf("%s: %w", name, err)
		}
		delete(wanted, name)
		return false, nil
	})
	if err == nil && len(wanted) > 0 {
		err = fmt.Errorf("memcached: stats: the answer lacks %s", strings.Join(slices.Sorted(maps.Keys(wanted)), ", "))
	}
	if err != nil {
		return sut.CacheFigures{}, err
	}
	f.Expired += reclaimed + crawled
	return f, nil
}

// ask sends commands over a connection of its own and takes the lines of the answers,
// as they come, until take says that one was the last.
func (s *Server) ask(ctx context.Context, command string, take func(line string) (end bool, err error)) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", s.Address())
	if err != nil {
		return fmt.Errorf("memcached: %w", err)
	}
	defer func() { _ = conn.Close() }() // all that was wanted is there
	// Also when the caller just leaves: the deadline is then the past.
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := fmt.Fprintf(conn, "%s\r\n", command); err != nil {
		return fmt.Errorf("memcached: %.40q: %w", command, err)
	}
	for answer := bufio.NewReader(conn); ; {
		line, err := answer.ReadString('\n')
		if err != nil {
			return fmt.Errorf("memcached: %.40q: %w", command, err)
		}
		end, err := take(strings.TrimRight(line, "\r\n"))
		if err != nil {
			return fmt.Errorf("memcached: %.40q: %w", command, err)
		}
		if end {
			return nil
		}
	}
}
