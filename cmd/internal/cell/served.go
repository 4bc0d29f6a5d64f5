package cell

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// requestsMetric is the finished requests of a web node or a balancer.
const requestsMetric = "stagebench_http_requests_total"

// servedTimeout bounds the question: a node that has stopped answering must not
// hold the run.
const servedTimeout = 5 * time.Second

// Served asks nodes for their own counts of requests, from their metrics in the
// Prometheus text format, and returns the sum.
func Served(ctx context.Context, adminURLs []string) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, servedTimeout)
	defer cancel()
	var sum int64
	for _, url := range adminURLs {
		served, err := metricsOf(ctx, url, requestsMetric)
		if err != nil {
			return 0, err
		}
		sum += served[0]
	}
	return sum, nil
}

// metricsOf sums the series of a node's metrics that begin with each of the prefixes.
func metricsOf(ctx context.Context, adminURL string, prefixes ...string) ([]int64, error) {
	sums := make([]int64, len(prefixes))
	err := scrape(ctx, adminURL, func(series string, value float64) {
		if i := slices.IndexFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(series, prefix) }); i >= 0 {
			sums[i] += int64(value)
		}
	})
	return sums, err
}

// scrape reads a node's metrics in the Prometheus text format. A series is a name,
// with labels in braces if it has any.
func scrape(ctx context.Context, adminURL string, each func(series string, value float64)) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, adminURL+"/metrics", nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }() // read only
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s/metrics: %s", adminURL, response.Status)
	}
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		line := lines.Text()
		if line == "" || line[0] == '#' {
			continue
		}
		end := strings.LastIndexByte(line, ' ')
		value, err := strconv.ParseFloat(line[end+1:], 64)
		if err != nil {
			return fmt.Errorf("metric %q: %w", line, err)
		}
		each(line[:max(end, 0)], value)
	}
	return lines.Err()
}

// Endpoint takes apart where a system can be reached: the base URL that requests
// name, and the addresses of all its frontends.
func Endpoint(urls []string) (endpoint *url.URL, addresses []string, err error) {
	for _, text := range urls {
		u, err := url.Parse(text)
		if err != nil {
			return nil, nil, err
		}
		if endpoint == nil {
			endpoint = u
		}
		addresses = append(addresses, u.Host)
	}
	if endpoint == nil {
		return nil, nil, errors.New("the system has no endpoint")
	}
	return endpoint, addresses, nil
}

// sourceCount is how many addresses the clients of a loopback target come from.
const sourceCount = 64

// Sources returns the addresses that clients come from: for a target on the
// loopback network 127.100+x.y.1 and up, so that what looks at addresses sees
// many; none, which leaves the choice to the system, for any other target, and
// where no such address can be bound.
func Sources(endpoint *url.URL, seed uint64) []netip.Addr {
	host, err := netip.ParseAddr(endpoint.Hostname())
	if err != nil || !host.Is4() || !host.IsLoopback() {
		return nil
	}
	var sources []netip.Addr
	for i := range sourceCount {
		sources = append(sources, netip.AddrFrom4([4]byte{127, byte(100 + seed%100), byte(seed / 100 % 250), byte(1 + i)}))
	}
	probe, err := net.Listen("tcp", netip.AddrPortFrom(sources[0], 0).String())
	if err != nil {
		return nil
	}
	_ = probe.Close() // nothing was sent over it
	return sources
}
