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

// Encoder writes outcomes in vegeta's binary format for `vegeta report`, `vegeta plot` and
// `vegeta encode`. Timestamp is the intended time and Latency is the response time, both
// by the clock of package driver. So vegeta's figures include the waiting before an op was
// sent.
//
// Vegeta counts codes 200 to 399 as success. So a failed op with a status below 400 gets
// code 0: an incomplete response, a failed check, or an op that was never sent (error
// "unsent"). An Encoder is not safe for concurrent use.
type Encoder struct {
	encode vegeta.Encoder
	start  time.Time
	name   string
}

// NewEncoder returns an encoder for a run that begins at start.
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
