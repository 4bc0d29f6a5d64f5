package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/control"
)

// failedOver is a system after one failover. It answers Recover and Endpoints only.
type failedOver struct{ control.System }

func (failedOver) Recover(context.Context, bool) (targets.Recovery, error) {
	return targets.Recovery{Failovers: []targets.Failover{{Epoch: 2, From: "db-1", To: "db-2"}}}, nil
}

func (failedOver) Endpoints() []string { return nil }
func (failedOver) Fallbacks() []string { return nil }

// `recover --format json` prints several tables as one JSON document.
func TestRecoverIsOneDocument(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- control.Serve(ctx, control.DefaultDir(), control.Info{ID: "lb-1", Stage: sut.LB}, failedOver{})
	}()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	var out bytes.Buffer
	eventually(t, "recover finds the system", func() bool {
		out.Reset()
		s := streams{out: &out, err: io.Discard, args: []string{"recover", "--format", "json"}}
		return run(t.Context(), s) == nil
	})
	var tables []json.RawMessage
	if err := json.Unmarshal(out.Bytes(), &tables); err != nil || len(tables) != 2 {
		t.Errorf("%d tables, error %v, want one array of 2 tables\n%s", len(tables), err, out.String())
	}
}

// The status tells the last decision of the autoscaler.
func TestLastDecision(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	events := []targets.Event{
		{UnixNS: 1, Node: "autoscaler", Text: "1 -> 2 hosts: an older one", Scaling: &targets.Scaling{From: 1, To: 2}},
		{UnixNS: at.UnixNano(), Node: "autoscaler", Text: "2 -> 3 hosts: CPU", Scaling: &targets.Scaling{From: 2, To: 3}},
		{UnixNS: at.UnixNano() + 1, Node: "web-3", Text: "takes part"},
	}
	want := []string{"web hosts are scaled automatically; since 03:04:05: 2 -> 3 hosts: CPU"}
	if got := lastDecision(events); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := lastDecision(events[2:]); got != nil {
		t.Errorf("no autoscaler: %q", got)
	}
}
