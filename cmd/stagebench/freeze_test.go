package main

import (
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets"
)

// A replicated system is stopped for longer than any silence, and continues as if nothing had
// happened: no failover, no lost connection, no failed request.
func TestFrozenSystem(t *testing.T) {
	t.Parallel()
	for name, knobs := range engines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := bringUpSized(t, sut.Replicas, with(knobs, sut.Knobs{"blob.hosts": "1"}), roomy)
			c := comment(t, r.Endpoints()[0], 8, 3000)
			c.awaitCount(t, 200)
			c.end()
			for range 2 {
				thaw, err := r.Freeze(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				frozen := time.Now()
				eventually(t, "it was frozen for longer than any silence", func() bool {
					return time.Since(frozen) > 2*silence
				})
				if err := thaw(); err != nil {
					t.Fatal(err)
				}
				c = comment(t, r.Endpoints()[0], 8, 3000)
				c.awaitCount(t, 200)
				c.end()
				if failures := c.failures(); len(failures) > 0 {
					t.Errorf("failures after the thaw: %v", failures)
				}
			}
			r.awaitCopies(t)
			if all := r.Failovers(); len(all) > 0 {
				t.Errorf("failovers %+v, want none", all)
			}
			for _, n := range r.Status() {
				if n.Restarts > 0 || n.State != targets.Serving {
					t.Errorf("%+v", n)
				}
			}
		})
	}
}
