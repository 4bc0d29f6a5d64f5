package app

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/stagebench/stagebench/sut/photos"
)

// readyTimeout bounds the checks of /readyz.
const readyTimeout = 500 * time.Millisecond

// readOnly answers 405 to methods other than GET and HEAD.
func readOnly(serve http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			sendError(w, http.StatusMethodNotAllowed, "method "+r.Method+" is not allowed here", "use GET")
			return
		}
		serve(w, r)
	})
}

// healthz reports that the process is alive. It calls no other tier. Otherwise a
// supervisor would restart web hosts because the database is down.
func (a *App) healthz(w http.ResponseWriter, _ *http.Request) {
	sendStatus(w, http.StatusOK, map[string]string{"node": a.config.Node, "status": "alive"})
}

// readiness is the body of /readyz.
type readiness struct {
	Node     string            `json:"node"`
	Ready    bool              `json:"ready"`
	Draining bool              `json:"draining"`
	Tiers    map[string]string `json:"tiers"` // "ok", or why not
}

// readyz reports whether a balancer should send requests here: 200 unless the node
// is draining.
//
// A tier that is down does not make it 503. All web hosts share their tiers, so a
// balancer would remove all web hosts when the database is down, and nobody could
// get images and assets, which need no database. The body and X-Degraded name the
// tiers that are down, for people and alerts. The response takes readyTimeout at
// most. A balancer must wait longer than that, or use /healthz.
func (a *App) readyz(w http.ResponseWriter, r *http.Request) {
	answer := readiness{Node: a.config.Node, Draining: a.draining.Load(), Tiers: a.checkTiers(r.Context())}
	answer.Ready = !answer.Draining
	var down []string
	for _, tier := range []string{tierBlob, tierDB} {
		if answer.Tiers[tier] != tierOK {
			down = append(down, tier)
		}
	}
	if down != nil {
		w.Header().Set(HeaderDegraded, strings.Join(down, ", "))
	}
	status := http.StatusOK
	if answer.Draining {
		w.Header().Set("Retry-After", "1")
		status = http.StatusServiceUnavailable
	}
	sendStatus(w, status, answer)
}

const tierOK = "ok"

// checkTiers reads one object from the store and one from the blobs, concurrently.
// A tier that answers "not found" is up.
func (a *App) checkTiers(ctx context.Context) map[string]string {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	db, blob := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := a.config.Store.User(ctx, 1)
		db <- err
	}()
	go func() {
		_, err := a.config.Blobs.Head(ctx, 1, photos.VariantThumb)
		blob <- err
	}()
	return map[string]string{tierDB: tierStatus(ctx, db), tierBlob: tierStatus(ctx, blob)}
}

// tierStatus returns tierOK, or why a tier is down. It does not wait for the answer
// beyond the end of the context, even if the tier ignores the context.
func tierStatus(ctx context.Context, answer <-chan error) string {
	var err error
	select {
	case err = <-answer:
	case <-ctx.Done():
		// If both channels are ready, select may pick this one. An answer that has
		// arrived must still count.
		select {
		case err = <-answer:
		default:
			err = ctx.Err()
		}
	}
	switch {
	case err == nil, errors.Is(err, photos.ErrNotFound):
		return tierOK
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	}
	return err.Error()
}

func sendError(w http.ResponseWriter, status int, message, hint string) {
	sendStatus(w, status, map[string]string{"error": message, "hint": hint})
}

func sendStatus(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // it can fail only if the client's connection fails
}
