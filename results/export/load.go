package export

import (
	"io"

	"github.com/stagebench/stagebench/results"
)

// LoadPerformance writes the latencies of a run with one cell as the summary of k6, with durations in milliseconds, as
// GitLab reads it. The only latency that GitLab shows is http_req_waiting, as "TTFB". Here it is the response time of
// successes from their intended time, and http_req_duration is the service time. GitLab also shows the share of
// successes, as "checks".
func LoadPerformance(w io.Writer, run results.Run) error {
	if len(run.Cells) > 1 {
		return ErrManyCells
	}
	if len(run.Cells) == 0 || !run.Cells[0].Valid || run.Cells[0].Reference == nil {
		return ErrNothing
	}
	s := run.Cells[0].Reference
	passes, fails := s.Ledger.OK, s.Ledger.Scheduled-s.Ledger.OK
	checks := map[string]int64{"passes": passes, "fails": fails}
	return encode(w, map[string]any{
		"metrics": map[string]any{
			"http_reqs":         map[string]any{"count": s.Ledger.Sent, "rate": s.SentRPS},
			"http_req_waiting":  trend(s.ResponseNS),
			"http_req_duration": trend(s.ServiceNS),
			"checks":            checks,
		},
		"root_group": map[string]any{"checks": map[string]any{
			"requests succeed": map[string]any{
				"name": "requests succeed", "path": "::requests succeed", "passes": passes, "fails": fails,
			},
		}},
	})
}

// trend returns a distribution in milliseconds. A percentile that is unknown is left out.
func trend(l results.Latency) map[string]float64 {
	values := map[string]float64{}
	for name, ns := range map[string]*int64{
		"avg": l.Mean, "med": l.P50, "max": l.Max, "p(90)": l.P90, "p(95)": l.P95, "p(99)": l.P99,
	} {
		if ns != nil {
			values[name] = float64(*ns) / 1e6
		}
	}
	return values
}
