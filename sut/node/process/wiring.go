package process

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// neighbours holds the current wiring of a node and changes it as sut.Wiring describes.
type neighbours struct {
	rewire func(context.Context, sut.Wiring) error
	slot   chan struct{} // capacity 1; a change holds it, so that calls of rewire are never concurrent

	mu        sync.Mutex
	current   sut.Wiring
	interrupt context.CancelCauseFunc // cancels the running change to current; nil = no change runs
	pending   []int64                 // epochs of the requests that have no answer yet
}

func newNeighbours(first sut.Wiring, rewire func(context.Context, sut.Wiring) error) *neighbours {
	if rewire == nil {
		rewire = func(context.Context, sut.Wiring) error { return nil }
	}
	return &neighbours{rewire: rewire, slot: make(chan struct{}, 1), current: first}
}

// errOldEpoch is the error of a wiring after one with a higher epoch has arrived.
var errOldEpoch = errors.New("a wiring of a higher epoch has replaced this one")

// defaultDrain bounds a change whose request has no sut.DrainHeader.
const defaultDrain = 30 * time.Second

// show answers GET with the current wiring.
func (n *neighbours) show(w http.ResponseWriter, _ *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	SendJSON(w, http.StatusOK, n.current)
}

// change answers PUT of a new wiring.
func (n *neighbours) change(w http.ResponseWriter, r *http.Request) {
	drain, err := drainOf(r.Header.Get(sut.DrainHeader))
	var next sut.Wiring
	if err == nil {
		err = DecodeStrictly(r.Body, &next)
	}
	if err == nil {
		err = checkWiring(next)
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), drain)
	defer cancel()
	switch err := n.set(ctx, next); {
	case err == nil:
		w.WriteHeader(http.StatusNoContent)
	case errors.Is(err, sut.ErrWiring):
		refuse(w, http.StatusBadRequest, err)
	case errors.Is(err, errOldEpoch):
		refuse(w, http.StatusConflict, err)
	case errors.Is(err, context.DeadlineExceeded):
		refuse(w, http.StatusGatewayTimeout, err)
	default:
		refuse(w, http.StatusInternalServerError, err)
	}
}

func refuse(w http.ResponseWriter, status int, err error) {
	SendError(w, status, err, `send {"epoch": 2, "uses": {"db": [{"node": "db-2", "address": "127.0.0.1:5432"}]}}`)
}

// drainOf parses the value of sut.DrainHeader.
func drainOf(text string) (time.Duration, error) {
	if text == "" {
		return defaultDrain, nil
	}
	seconds, err := strconv.ParseFloat(text, 64)
	if err != nil || !(seconds >= 0 && seconds <= 24*3600) {
		return 0, fmt.Errorf("%s %q: want seconds from 0 to a day, such as 10", sut.DrainHeader, text)
	}
	return time.Duration(seconds * float64(time.Second)), nil
}

// set changes the wiring. A wiring of a higher epoch interrupts a running change instead
// of waiting for it.
func (n *neighbours) set(ctx context.Context, next sut.Wiring) error {
	if err := n.announce(next.Epoch); err != nil {
		return err
	}
	defer n.finish(next.Epoch)
	select {
	case n.slot <- struct{}{}:
		defer func() { <-n.slot }()
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		return ctx.Err() // the client may have given up and sent another wiring of this epoch
	}
	ctx, interrupt := context.WithCancelCause(ctx)
	defer interrupt(nil)
	previous, err := n.begin(next, interrupt)
	if err != nil {
		return err
	}
	err = n.rewire(ctx, next)
	if errors.Is(err, sut.ErrWiring) {
		next = previous
	}
	n.end(next)
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, errOldEpoch) {
		return cause
	}
	return err
}

// announce adds an epoch to the pending ones, and interrupts a running change to a lower
// epoch.
func (n *neighbours) announce(epoch int64) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if epoch < n.current.Epoch {
		return fmt.Errorf("epoch %d: %w", epoch, errOldEpoch)
	}
	if n.interrupt != nil && epoch > n.current.Epoch {
		n.interrupt(fmt.Errorf("epoch %d: %w", n.current.Epoch, errOldEpoch))
	}
	n.pending = append(n.pending, epoch)
	return nil
}

// finish removes an epoch from the pending ones.
func (n *neighbours) finish(epoch int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	i := slices.Index(n.pending, epoch)
	n.pending = slices.Delete(n.pending, i, i+1)
}

// begin makes next the current wiring and returns the previous one. It fails if a higher
// epoch is pending. The epoch of next must be pending, too.
func (n *neighbours) begin(next sut.Wiring, interrupt context.CancelCauseFunc) (previous sut.Wiring, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if next.Epoch < max(n.current.Epoch, slices.Max(n.pending)) {
		return previous, fmt.Errorf("epoch %d: %w", next.Epoch, errOldEpoch)
	}
	previous = n.current
	n.current, n.interrupt = next, interrupt
	return previous, nil
}

// end sets the current wiring and marks the change as finished.
func (n *neighbours) end(current sut.Wiring) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.current, n.interrupt = current, nil
}
