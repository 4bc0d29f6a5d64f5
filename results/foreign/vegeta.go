package foreign

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/hdr"
)

// ours is the name of the attack in files that `stagebench attack --vegeta-results` wrote. Their latencies are response
// times.
const ours = "stagebench"

// readVegeta reads results in any encoding of vegeta: binary, JSON or CSV. As in vegeta, a request succeeded if its
// code is 200 to 399. Requests without a code count as transport errors: the file does not say why they failed.
func readVegeta(r io.Reader) (Result, error) {
	end := &lastByte{r: r}
	decoder := vegeta.DecoderFor(end)
	if decoder == nil {
		return Result{}, unknown()
	}
	var s results.Step
	s.Statuses = map[int]int64{}
	succeeded, failed := hdr.NewHistogram(), hdr.NewHistogram()
	response := true
	var first, last time.Time
	for {
		var hit vegeta.Result
		if err := decoder(&hit); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return Result{}, fmt.Errorf("result %d of vegeta: %w\nthe file is damaged or incomplete: repeat the attack",
				s.Ledger.Scheduled+1, err)
		}
		response = response && hit.Attack == ours
		if first.IsZero() || hit.Timestamp.Before(first) {
			first = hit.Timestamp
		}
		if hit.Timestamp.After(last) {
			last = hit.Timestamp
		}
		count(&s, hit)
		if hit.Code >= http.StatusOK && hit.Code < http.StatusBadRequest {
			succeeded.Record(int64(hit.Latency))
		} else {
			failed.Record(int64(hit.Latency))
		}
	}
	if end.textual && end.b != '\n' {
		return Result{}, errors.New("the last line is not complete\nrepeat the attack, or wait for its end")
	}
	if s.Seconds = last.Sub(first).Seconds(); s.Seconds > 0 {
		s.SentRPS = float64(s.Ledger.Sent) / s.Seconds
	}
	if response {
		s.ResponseNS, s.ResponseAll = succeeded.Latency(0), succeeded.Latency(failed.Count())
		s.FailedNS = failed.Latency(0)
	} else {
		s.ServiceNS, s.FailedServiceNS = succeeded.Latency(0), failed.Latency(0)
	}
	return Result{Tool: Vegeta, Run: cell(Vegeta, s)}, nil
}

// count adds one hit to the ledger of a step.
func count(s *results.Step, hit vegeta.Result) {
	s.Ledger.Scheduled++
	s.Ledger.Sent++
	switch {
	case hit.Code >= http.StatusOK && hit.Code < http.StatusBadRequest:
		s.Ledger.OK++
	case hit.Code == 0:
		s.Ledger.TransportError++
	default:
		s.Ledger.HTTPError++
	}
	if hit.Code > 0 {
		s.Statuses[int(hit.Code)]++
	}
	s.BytesIn += int64(hit.BytesIn)
	s.BytesOut += int64(hit.BytesOut)
}

// lastByte remembers the last byte of a text. Vegeta's decoder of JSON drops a last line that does not end.
type lastByte struct {
	r       io.Reader
	b       byte
	begun   bool
	textual bool // JSON or CSV
}

func (l *lastByte) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if n > 0 {
		if !l.begun {
			l.begun = true
			l.textual = p[0] == '{' || p[0] >= '0' && p[0] <= '9'
		}
		l.b = p[n-1]
	}
	return n, err
}
