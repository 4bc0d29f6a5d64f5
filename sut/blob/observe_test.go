package blob

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

// A response makes a host healthy. A missing response makes it suspect, unless the caller
// has given up.
func TestObserve(t *testing.T) {
	t.Parallel()
	var h host
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	noResponse := fmt.Errorf("blob-1: %w", errNoResponse)
	for i, step := range []struct {
		ctx     context.Context
		err     error
		suspect bool
	}{
		{ended, noResponse, false},
		{t.Context(), noResponse, true},
		{ended, noResponse, true},
		{t.Context(), errors.New("507 Insufficient Storage"), false},
		{t.Context(), noResponse, true},
		{t.Context(), nil, false},
	} {
		h.observe(step.ctx, step.err)
		if suspect := h.suspectUntil.Load() != 0; suspect != step.suspect {
			t.Errorf("step %d: suspect %t after %v, want %t", i, suspect, step.err, step.suspect)
		}
	}
}
