package main

import (
	"bytes"
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/control"
)

// failedOver is a system of which nothing is asked but what a failover has cost.
type failedOver struct{ control.System }

func (failedOver) Recover(context.Context, bool) (targets.Recovery, error) {
	return targets.Recovery{Failovers: []targets.Failover{{Epoch: 2, From: "db-1", To: "db-2"}}}, nil
}

func (failedOver) Endpoints() []string { return nil }

// What recover prints for machines is one document, as it is with every command.
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
	recovered := func() error {
		out.Reset()
		return run(t.Context(), streams{out: &out, err: &bytes.Buffer{}, args: []string{"recover", "--format", "json"}})
	}
	err := recovered()
	for deadline := time.Now().Add(10 * time.Second); err != nil && time.Now().Before(deadline); pause() {
		err = recovered()
	}
	if err != nil {
		t.Fatal(err)
	}
	var tables []json.RawMessage
	if err := json.Unmarshal(out.Bytes(), &tables); err != nil || len(tables) != 2 {
		t.Errorf("%d tables, %v: want one array of two\n%s", len(tables), err, out.String())
	}
}
