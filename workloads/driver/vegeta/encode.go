package vegeta

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"

	"github.com/stagebench/stagebench/results"
)

// Encoder writes outcomes in vegeta's own binary format, so that `vegeta
// report`, `vegeta plot` and `vegeta encode` read them. Timestamp is the
// intended time and Latency the response time, both by our clocks: what vegeta
// makes of them leaves nothing out. Vegeta counts codes of 200 to 399 as success,
// so an op that failed without a status of 400 or above has code 0: one whose
// answer broke off or failed its check, and one that was never sent, with the
// error "unsent". An Encoder belongs to one goroutine.
type Encoder struct {
	encode vegeta.Encoder
	start  time.Time
	name   string
}

// NewEncoder returns an encoder of a run that begins at start.
func NewEncoder(w io.Writer, name string, start time.Time) *Encoder {
	return &Encoder{encode: vegeta.NewEncoder(w), start: start, name: name}
}

// Encode writes one outcome.
func (e *Encoder) Encode(o results.Outcome) error {
	r := vegeta.Result{
		Attack: e.name, Seq: o.Index, Code: uint16(o.Status), Timestamp: e.start.Add(time.Duration(o.Intended)),
		Latency: time.Duration(o.Response()), BytesIn: uint64(o.BytesIn), BytesOut: uint64(o.BytesOut),
		Error: o.Error, Method: o.Class,
	}
	if o.Fate.Failed() {
		r.Error = cmp.Or(r.Error, o.Fate.String())
		if o.Status < http.StatusBadRequest {
			r.Code = 0
		}
	}
	if err := e.encode(&r); err != nil {
		return fmt.Errorf("write vegeta result %d: %w", o.Index, err)
	}
	return nil
}
