// Package metrics scrapes the metrics of a node: GET /metrics at its admin address, in the
// Prometheus text format. It keeps no state. All functions may be called concurrently.
package metrics

import (
	"bufio"
	"context"
	"fmt"
	"iter"
	"net/http"
	"strconv"
	"strings"

	"github.com/stagebench/stagebench/sut"
)

// Series maps each time series of a node to its value. A key is the name of the metric,
// followed by its labels in braces if it has labels.
type Series map[string]float64

// Read scrapes the node at an admin address, host:port, of the system with a secret.
func Read(ctx context.Context, client *http.Client, admin string, secret sut.Secret) (Series, error) {
	url := "http://" + admin + "/metrics"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", secret.Bearer())
	response, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }() // read only
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: %s", url, response.Status)
	}
	all := Series{}
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		line := lines.Text()
		if line == "" || line[0] == '#' {
			continue
		}
		end := strings.LastIndexByte(line, ' ')
		value, err := strconv.ParseFloat(line[end+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("metric %q: %w", line, err)
		}
		all[line[:max(end, 0)]] = value
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("GET %s: %w", url, err)
	}
	return all, nil
}

// Has reports whether the node has a metric with any labels. It ignores the labels in metric.
func (s Series) Has(metric string) bool {
	wanted, _, _ := strings.Cut(metric, "{")
	for series := range s {
		if name, _, _ := strings.Cut(series, "{"); name == wanted {
			return true
		}
	}
	return false
}

// Labels yields the series of a metric that have labels.
func (s Series) Labels(metric string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for series := range s {
			if strings.HasPrefix(series, metric+"{") && !yield(series) {
				return
			}
		}
	}
}

// Sum returns the sum of a metric over all its labels. If metric names one series with its
// labels, Sum returns the value of that series.
func (s Series) Sum(metric string) (sum int64) {
	for series, value := range s {
		if name, _, _ := strings.Cut(series, "{"); name == metric || series == metric {
			sum += int64(value)
		}
	}
	return sum
}
