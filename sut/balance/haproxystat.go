package balance

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
)

// ask sends one command to the server's stats socket and returns the answer.
func (h *HAProxy) ask(ctx context.Context, command string) (string, error) {
	// The path of a socket may have 107 bytes, the directory's may be longer:
	// the way leads through its file descriptor.
	dir, err := os.Open(h.cfg.Dir)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	path := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketName)
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return "", fmt.Errorf("stats socket: %w", err)
	}
	defer conn.Close()
	// Unblocks the read when the caller gives up.
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if _, err := io.WriteString(conn, command+"\n"); err != nil {
		return "", fmt.Errorf("stats socket: %w", err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		return "", errors.Join(fmt.Errorf("stats socket: %w", err), context.Cause(ctx))
	}
	return string(answer), nil
}

// rows asks for the server's statistics: one row for each frontend, backend and
// host, by the names of the columns.
func (h *HAProxy) rows(ctx context.Context) ([]map[string]string, error) {
	text, err := h.ask(ctx, "show stat")
	if err != nil {
		return nil, err
	}
	return parseStat(text)
}

// parseStat reads the answer to "show stat". Source: HAProxy, Management Guide,
// section 9.1, Statistics and monitoring: CSV format.
func parseStat(text string) ([]map[string]string, error) {
	records, err := csv.NewReader(strings.NewReader(strings.TrimPrefix(text, "# "))).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("statistics: %w", err)
	}
	if len(records) == 0 {
		return nil, errors.New("statistics: the server said nothing")
	}
	var rows []map[string]string
	for _, record := range records[1:] {
		row := map[string]string{}
		for i, name := range records[0] {
			row[name] = record[i]
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// fill reads a status out of the server's statistics.
func (s *Status) fill(rows []map[string]string) error {
	var failed error
	number := func(row map[string]string, column string) uint64 {
		n, err := strconv.ParseUint(row[column], 10, 64)
		if err != nil && failed == nil {
			failed = fmt.Errorf("statistics: %s of %s: %w", column, row["svname"], err)
		}
		return n
	}
	for _, row := range rows {
		switch row["svname"] {
		case "FRONTEND":
			s.Responses = map[string]uint64{}
			for _, class := range []string{"1xx", "2xx", "3xx", "4xx", "5xx", "other"} {
				s.Responses[class] = number(row, "hrsp_"+class)
			}
		case "BACKEND":
			s.Redispatches = number(row, "wredis")
		default:
			u := UpstreamStatus{
				Node: row["svname"], Address: row["addr"], Up: strings.HasPrefix(row["status"], "UP"),
				InFlight: int(number(row, "scur")), Requests: number(row, "stot"), WentDown: number(row, "chkdown"),
			}
			// A host begins as up, so that the two counts differ by one at most.
			u.WentUp = u.WentDown
			if !u.Up {
				u.WentUp = max(u.WentDown, 1) - 1
				u.Cause = strings.TrimSpace("health check: " + row["check_status"] + " " + row["last_chk"])
			}
			s.Upstreams = append(s.Upstreams, u)
		}
	}
	if failed == nil && s.Responses == nil {
		failed = errors.New("statistics: no frontend")
	}
	return failed
}
