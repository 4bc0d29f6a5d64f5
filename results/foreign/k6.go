package foreign

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/stagebench/stagebench/results"
)

// k6Values are the values of a metric by their names, such as "p(95)" or "count".
type k6Values map[string]float64

// k6Metrics are the metrics of a summary by their names.
type k6Metrics map[string]k6Values

// k6Summary is a summary of k6 in one of its three forms: that of --summary-export, whose metrics are their values; the
// data of handleSummary, whose metrics have values; and that of --new-machine-readable-summary, whose metrics are a
// list.
type k6Summary struct {
	Metrics map[string]json.RawMessage `json:"metrics"`
	State   struct {
		DurationMs float64 `json:"testRunDurationMs"`
	} `json:"state"`
	Config struct {
		Seconds float64 `json:"duration"`
	} `json:"config"`
	Results struct {
		Metrics []struct {
			Name   string   `json:"name"`
			Values k6Values `json:"values"`
		} `json:"metrics"`
	} `json:"results"`
}

// readK6 reads a summary. The latency is that of the requests with an expected response, if the summary has it,
// otherwise that of all requests.
func readK6(r io.Reader) (Result, error) {
	var summary k6Summary
	decoder := json.NewDecoder(r)
	if err := decoder.Decode(&summary); err != nil {
		return Result{}, fmt.Errorf("summary of k6: %w\nrepeat the run of k6 that should have written it", err)
	}
	metrics, err := summary.metrics()
	if err != nil {
		return Result{}, err
	}
	requests, found := metrics["http_reqs"]
	if !found {
		return Result{}, errors.New("the summary of k6 has no metric http_reqs\nonly tests of HTTP can be compared")
	}
	s := results.Step{Seconds: max(summary.State.DurationMs/1000, summary.Config.Seconds), SentRPS: requests["rate"]}
	sent := int64(requests["count"])
	if s.SentRPS == 0 && s.Seconds > 0 {
		s.SentRPS = float64(sent) / s.Seconds
	}
	if s.Seconds == 0 && s.SentRPS > 0 {
		s.Seconds = float64(sent) / s.SentRPS
	}
	s.Ledger = results.Ledger{Scheduled: sent, Sent: sent}
	// A failed request is one that is counted by http_req_failed. Its cause is not known.
	s.Ledger.HTTPError = int64(metrics["http_req_failed"]["passes"] + metrics["http_req_failed"]["matches"])
	s.Ledger.OK = sent - s.Ledger.HTTPError
	if err := s.Ledger.Check(); err != nil || s.Ledger.OK < 0 {
		return Result{}, errors.New("the summary of k6 has more failed requests than requests\nrepeat the run of k6")
	}
	duration, expected := metrics["http_req_duration{expected_response:true}"]
	var warnings []string
	if !expected {
		duration = metrics["http_req_duration"]
		if s.Ledger.HTTPError > 0 {
			warnings = append(warnings, "its latency includes that of failed requests")
		}
	}
	s.ServiceNS = duration.latency(s.Ledger.OK)
	if dropped := metrics["dropped_iterations"]["count"]; dropped > 0 {
		warnings = append(warnings, fmt.Sprintf("k6 dropped %.0f iterations, which are in no figure", dropped))
	}
	run := cell(K6, s)
	run.Cells[0].Warnings = warnings
	return Result{Tool: K6, Run: run, Warnings: warnings}, nil
}

// metrics returns the metrics of a summary of any form.
func (s k6Summary) metrics() (k6Metrics, error) {
	all := k6Metrics{}
	for _, m := range s.Results.Metrics {
		all[m.Name] = m.Values
	}
	for name, raw := range s.Metrics {
		var wrapped struct {
			Values k6Values `json:"values"`
		}
		if err := json.Unmarshal(raw, &wrapped); err == nil && wrapped.Values != nil {
			all[name] = wrapped.Values
			continue
		}
		// Beside the values, an exported metric has an object "thresholds".
		var flat map[string]any
		if err := json.Unmarshal(raw, &flat); err != nil {
			return nil, fmt.Errorf("metric %s in the summary of k6: %w\nrepeat the run of k6", name, err)
		}
		all[name] = k6Values{}
		for value, x := range flat {
			if number, ok := x.(float64); ok {
				all[name][value] = number
			}
		}
	}
	return all, nil
}

// latency returns a distribution from values in milliseconds.
func (v k6Values) latency(count int64) results.Latency {
	of := func(names ...string) *int64 {
		for _, name := range names {
			if ms, found := v[name]; found {
				return new(int64(ms * 1e6))
			}
		}
		return nil
	}
	return results.Latency{
		Count: count, P50: of("med", "p(50)"), P90: of("p(90)", "p90"), P95: of("p(95)", "p95"), P99: of("p(99)"),
		P999: of("p(99.9)"), Max: of("max"), Mean: of("avg"),
	}
}
