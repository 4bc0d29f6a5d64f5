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

// readyTimeout is how long the checks of /readyz may take.
const readyTimeout = 500 * time.Millisecond

// readOnly refuses what is neither GET nor HEAD.
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

// healthz says that the process lives and answers. It asks nobody else: a
// supervisor that restarted web hosts because the database is down would only
// add to the trouble.
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

// readyz says whether a balancer should send requests here: 200 unless the node
// is draining.
//
// A tier that is away does not make it 503. All web hosts share their tiers, so
// a balancer that drops hosts because the database is down drops all of them,
// and with them the images, assets and honest 503s that they still serve. What
// is away is said in the body and in X-Degraded, for people and alarms. The
// answer takes readyTimeout at most; a balancer must wait longer than
// that, or use /healthz.
func (a *App) readyz(w http.ResponseWriter, r *http.Request) {
	answer := readiness{Node: a.config.Node, Draining: a.draining.Load(), Tiers: a.checkTiers(r.Context())}
	answer.Ready = !answer.Draining
	var away []string
	for _, tier := range []string{tierBlob, tierDB} {
		if answer.Tiers[tier] != tierOK {
			away = append(away, tier)
		}
	}
	if away != nil {
		w.Header().Set(HeaderDegraded, strings.Join(away, ", "))
	}
	status := http.StatusOK
	if answer.Draining {
		w.Header().Set("Retry-After", "1")
		status = http.StatusServiceUnavailable
	}
	sendStatus(w, status, answer)
}

const tierOK = "ok"

// checkTiers asks the store and the blobs for something, both at once. "Not
// found" is an answer like any other.
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
	return map[string]string{tierDB: verdict(ctx, db), tierBlob: verdict(ctx, blob)}
}

// verdict waits for the answer of a tier, but not for one that ignores the
// context.
func verdict(ctx context.Context, answer <-chan error) string {
	var err error
	select {
	case err = <-answer:
	case <-ctx.Done():
		// Both may have happened: what is there counts.
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
	_ = json.NewEncoder(w).Encode(body) // a status is plain data: an error is the client's connection
}
