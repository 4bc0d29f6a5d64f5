package nginx

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/stagebench/stagebench/sut"
)

// fetches counts what nginx itself does not count. It reads the log lines of requests that reached an origin.
type fetches struct {
	fetched atomic.Int64 // requests to origins
	bytes   atomic.Int64 // bytes of bodies from origins
	purged  atomic.Int64 // entries
}

func (f *fetches) reset() {
	for _, counter := range []*atomic.Int64{&f.fetched, &f.bytes, &f.purged} {
		counter.Store(0)
	}
}

// fetchPrefix begins the log line of a request that reached an origin.
const fetchPrefix = "edge-fetch"

// fetchLine is such a line: the cache status, the origins that were asked, what they sent, and the lengths of bodies.
var fetchLine = regexp.MustCompile(`^` + fetchPrefix + ` (\S+) ([^|]*)\|([^|]*)\|(.*)$`)

// HandleLogLine takes a line that the server printed and reports whether it is about a request. The caller must handle
// all other lines.
func (s *Server) HandleLogLine(line string) bool {
	match := fetchLine.FindStringSubmatch(line)
	if match == nil {
		return false
	}
	// More than one origin was asked if the first did not answer: "127.0.0.1:1, 127.0.0.1:2".
	s.fetches.fetched.Add(int64(strings.Count(match[2], ",")) + 1)
	for length := range strings.SplitSeq(match[4], ",") {
		n, err := strconv.ParseInt(strings.TrimSpace(length), 10, 64)
		if err == nil { // "-" = no answer
			s.fetches.bytes.Add(n)
		}
	}
	return true
}

// Figures returns the counters of the status page and of the log, and the sizes of the files. nginx does not count what
// it stores and evicts. Requests in flight are counted, too.
func (s *Server) Figures(ctx context.Context) (sut.EdgeFigures, error) {
	requests, err := s.status(ctx)
	if err != nil {
		return sut.EdgeFigures{}, fmt.Errorf("nginx: figures: %w", err)
	}
	f := sut.EdgeFigures{
		Requests: requests, Fetched: s.fetches.fetched.Load(), FetchedBytes: s.fetches.bytes.Load(),
		Stored: -1, Evicted: -1, Purged: s.fetches.purged.Load(), MaxBytes: s.cfg.MaxBytes,
	}
	f.Hits = max(0, requests-s.fetches.fetched.Load())
	index, _ := zoneOf(s.cfg.MaxBytes)
	f.Bytes = index
	err = s.entries(ctx, func(_ string, file fs.DirEntry) error {
		info, err := file.Info()
		if err != nil {
			return ignoreGone(err)
		}
		f.Entries++
		f.Bytes += info.Size()
		return nil
	})
	if err != nil {
		return sut.EdgeFigures{}, fmt.Errorf("nginx: figures: %w", err)
	}
	return f, nil
}

// status returns the number of requests of clients, from the status page.
func (s *Server) status(ctx context.Context) (int64, error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: s.dial}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://status/status", nil)
	if err != nil {
		return 0, err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return 0, fmt.Errorf("status page: %w", err)
	}
	defer response.Body.Close()
	own := s.asked.Add(1)
	requests, err := parseStatus(bufio.NewScanner(response.Body))
	if err != nil {
		return 0, fmt.Errorf("status page: %w", err)
	}
	return max(0, requests-own), nil
}

// dial connects to the socket of the status page. The path of a Unix socket is limited to 107 bytes, and the path of
// the directory may be longer. The path through a file descriptor is short.
func (s *Server) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	dir, err := os.Open(s.cfg.Dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return (&net.Dialer{}).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketName))
}

// parseStatus returns the number of requests on the status page. It is the third number of the third line: "server
// accepts handled requests\n 1 1 7 \n".
func parseStatus(lines *bufio.Scanner) (int64, error) {
	for n := 1; lines.Scan(); n++ {
		if numbers := strings.Fields(lines.Text()); n == 3 && len(numbers) == 3 {
			return strconv.ParseInt(numbers[2], 10, 64)
		}
	}
	return 0, errors.Join(errors.New("no number of requests in it"), lines.Err())
}
