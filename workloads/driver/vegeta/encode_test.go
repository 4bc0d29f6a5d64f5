package vegeta_test

import (
	"bytes"
	"testing"
	"time"

	lib "github.com/tsenart/vegeta/v12/lib"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/workloads/driver/vegeta"
)

// Vegeta judges success by the code only. It must not count a failed op as success, and
// the encoder must keep statuses of 400 and above.
func TestEncodedFailuresAreFailures(t *testing.T) {
	outcomes := []struct {
		results.Outcome
		code uint16
	}{
		{results.Outcome{Fate: results.OK, Status: 200}, 200},
		{results.Outcome{Fate: results.OK, Status: 304}, 304},
		{results.Outcome{Fate: results.HTTPError, Status: 503, Error: "HTTP 503"}, 503},
		{results.Outcome{Fate: results.HTTPError, Status: 200, CheckFailed: true, Error: "check: body above 12 bytes"}, 0},
		{results.Outcome{Fate: results.Timeout, Status: 200, Error: "timeout"}, 0}, // while reading the body
		{results.Outcome{Fate: results.TransportError, Status: 200, Error: "connection reset"}, 0},
		{results.Outcome{Fate: results.InFlight, Sent: 1}, 0},
		{results.Outcome{Fate: results.Unsent, Sent: -1}, 0},
	}
	var file bytes.Buffer
	encoder := vegeta.NewEncoder(&file, "test", time.Unix(0, 0))
	for i, o := range outcomes {
		o.Index = uint64(i)
		if err := encoder.Encode(o.Outcome); err != nil {
			t.Fatal(err)
		}
	}
	decode, metrics := lib.NewDecoder(&file), &lib.Metrics{}
	for _, o := range outcomes {
		var r lib.Result
		if err := decode(&r); err != nil {
			t.Fatal(err)
		}
		if r.Code != o.code || (r.Error != "") != o.Fate.Failed() {
			t.Errorf("%v with status %d: code %d, error %q: want code %d", o.Fate, o.Status, r.Code, r.Error, o.code)
		}
		metrics.Add(&r)
	}
	metrics.Close()
	if metrics.Success != 2.0/8 {
		t.Errorf("vegeta counts a share of %v as success, want 2 of 8", metrics.Success)
	}
}
