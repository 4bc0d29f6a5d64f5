package blob

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

// Only an answer says that a host is well, and only a caller who waited says that it is
// not.
func TestHeard(t *testing.T) {
	t.Parallel()
	var h host
	left, leave := context.WithCancel(t.Context())
	leave()
	noAnswer := fmt.Errorf("blob-1: %w", errNoAnswer)
	for i, step := range []struct {
		ctx    context.Context
		err    error
		silent bool
	}{
		{left, noAnswer, false},
		{t.Context(), noAnswer, true},
		{left, noAnswer, true},
		{t.Context(), errors.New("507 Insufficient Storage"), false},
		{t.Context(), noAnswer, true},
		{t.Context(), nil, false},
	} {
		h.heard(step.ctx, step.err)
		if silent := h.silent.Load() != 0; silent != step.silent {
			t.Errorf("step %d: silent %t after %v, want %t", i, silent, step.err, step.silent)
		}
	}
}
