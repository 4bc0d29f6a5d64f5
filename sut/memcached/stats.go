package memcached

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Figures is what a server has counted since it was started, and what it holds.
type Figures struct {
	Hits, Misses int64 // keys that were asked for
	Evicted      int64 // entries that went because the budget was used up
	// Expired is entries that went because their time was over: found so by who asked
	// for them, by who needed room, or by the server in passing. Those that it has not
	// come by yet are among the Items.
	Expired  int64
	Items    int64
	Bytes    int64 // of the items, with what each costs besides
	MaxBytes int64 // the budget
}

// Stats asks the server at an address for its figures, over a connection of its own.
func Stats(ctx context.Context, address string) (Figures, error) {
	var f Figures
	var reclaimed, crawled int64
	wanted := map[string]*int64{
		"get_hits": &f.Hits, "get_misses": &f.Misses, "evictions": &f.Evicted,
		"get_expired": &f.Expired, "reclaimed": &reclaimed, "crawler_reclaimed": &crawled,
		"curr_items": &f.Items, "bytes": &f.Bytes, "limit_maxbytes": &f.MaxBytes,
	}
	err := ask(ctx, address, "stats", func(line string) (end bool, err error) {
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
		return Figures{}, err
	}
	f.Expired += reclaimed + crawled
	return f, nil
}

// longestAnswer bounds what is read of an answer.
const longestAnswer = 1 << 20

// ask sends one command over a connection of its own and takes the lines of the
// answer, until take says that one was the last.
func ask(ctx context.Context, address, command string, take func(line string) (end bool, err error)) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("memcached: %w", err)
	}
	defer func() { _ = conn.Close() }() // all that was wanted is there
	// Also when the caller just leaves: the deadline is then the past.
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := fmt.Fprintf(conn, "%s\r\n", command); err != nil {
		return fmt.Errorf("memcached: %s: %w", command, err)
	}
	for answer := bufio.NewReader(io.LimitReader(conn, longestAnswer)); ; {
		line, err := answer.ReadString('\n')
		if err != nil {
			return fmt.Errorf("memcached: %s: %w", command, err)
		}
		end, err := take(strings.TrimRight(line, "\r\n"))
		if err != nil {
			return fmt.Errorf("memcached: %s: %w", command, err)
		}
		if end {
			return nil
		}
	}
}
