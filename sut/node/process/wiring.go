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

// neighbours is the wiring that a node acts by. It takes others as sut.Wiring says.
type neighbours struct {
	rewire   func(context.Context, sut.Wiring) error
	changing chan struct{} // held by who changes the wiring

	mu        sync.Mutex
	now       sut.Wiring
	interrupt context.CancelCauseFunc // ends the change to now; nil = it is over
	asked     []int64                 // epochs of the wirings that somebody waits for
}

func newNeighbours(first sut.Wiring, rewire func(context.Context, sut.Wiring) error) *neighbours {
	if rewire == nil {
		rewire = func(context.Context, sut.Wiring) error { return nil }
	}
	return &neighbours{rewire: rewire, changing: make(chan struct{}, 1), now: first}
}

// errOld says that a wiring of a higher epoch has come.
var errOld = errors.New("a wiring of a higher epoch is in use")

// defaultDrain bounds a change when its request does not.
const defaultDrain = 30 * time.Second

// show answers with the wiring that the node acts by.
func (n *neighbours) show(w http.ResponseWriter, _ *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	SendJSON(w, http.StatusOK, n.now)
}

// change takes another wiring.
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
	switch err := n.become(ctx, next); {
	case err == nil:
		w.WriteHeader(http.StatusNoContent)
	case errors.Is(err, sut.ErrWiring):
		refuse(w, http.StatusBadRequest, err)
	case errors.Is(err, errOld):
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

// drainOf reads the header with the bound.
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

// become changes the wiring. One of a higher epoch does not wait until a change before
// it is over: it interrupts that.
func (n *neighbours) become(ctx context.Context, next sut.Wiring) error {
	if err := n.ask(next.Epoch); err != nil {
		return err
	}
	defer n.answer(next.Epoch)
	select {
	case n.changing <- struct{}{}:
		defer func() { <-n.changing }()
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		return ctx.Err() // whoever has asked may have left and asked for something else
	}
	ctx, interrupt := context.WithCancelCause(ctx)
	defer interrupt(nil)
	before, err := n.begin(next, interrupt)
	if err != nil {
		return err
	}
	err = n.rewire(ctx, next)
	if errors.Is(err, sut.ErrWiring) {
		next = before
	}
	n.end(next)
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, errOld) {
		return cause
	}
	return err
}

// ask notes that somebody wants a wiring of an epoch, and interrupts the change to one
// of a lower epoch.
func (n *neighbours) ask(epoch int64) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if epoch < n.now.Epoch {
		return fmt.Errorf("epoch %d: %w", epoch, errOld)
	}
	if n.interrupt != nil && epoch > n.now.Epoch {
		n.interrupt(fmt.Errorf("epoch %d: %w", n.now.Epoch, errOld))
	}
	n.asked = append(n.asked, epoch)
	return nil
}

// answer notes that who wanted a wiring of an epoch is answered.
func (n *neighbours) answer(epoch int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	i := slices.Index(n.asked, epoch)
	n.asked = slices.Delete(n.asked, i, i+1)
}

// begin makes next the wiring that the node acts by, unless somebody wants one of a
// higher epoch, and returns the one before. Who calls it has asked.
func (n *neighbours) begin(next sut.Wiring, interrupt context.CancelCauseFunc) (before sut.Wiring, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if next.Epoch < max(n.now.Epoch, slices.Max(n.asked)) {
		return before, fmt.Errorf("epoch %d: %w", next.Epoch, errOld)
	}
	before = n.now
	n.now, n.interrupt = next, interrupt
	return before, nil
}

// end makes a wiring the one that the node acts by, with no change under way.
func (n *neighbours) end(now sut.Wiring) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.now, n.interrupt = now, nil
}
