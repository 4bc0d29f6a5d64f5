package sut

import (
	"context"
	"errors"
	"slices"
	"sync"
)

// Served collects how a request is answered: from a cache, and without which tiers. The stores that a service calls
// note it in the context of the call, and the service tells the client. It is safe for concurrent use.
type Served struct {
	// Fresh says that no cache may answer. It is set before the first call.
	Fresh bool

	mu      sync.Mutex
	cached  bool
	without []Role
}

// ServedKey is the key under which the context of a request holds its *Served.
type ServedKey struct{}

// WantsFresh reports whether the context belongs to a request that no cache may answer.
func WantsFresh(ctx context.Context) bool {
	s, ok := ctx.Value(ServedKey{}).(*Served)
	return ok && s.Fresh
}

// NoteCached notes that a cache answered. It does nothing if the context belongs to no request.
func NoteCached(ctx context.Context) {
	if s, ok := ctx.Value(ServedKey{}).(*Served); ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.cached = true
	}
}

// NoteWithout notes that a tier did not answer. It does nothing if the context belongs to no request.
func NoteWithout(ctx context.Context, tier Role) {
	if s, ok := ctx.Value(ServedKey{}).(*Served); ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !slices.Contains(s.without, tier) {
			s.without = append(s.without, tier)
		}
	}
}

// Noted returns whether a cache answered, and the tiers that did not answer.
func (s *Served) Noted() (cached bool, without []Role) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cached, slices.Clone(s.without)
}

// OfTier returns an error that says which tier it comes from. Callers know which tier they call, but not which one it
// needed.
func OfTier(tier Role, err error) error { return &tierError{tier, err} }

// TierOf returns the tier of an error of OfTier; "" for any other error.
func TierOf(err error) Role {
	var of *tierError
	if errors.As(err, &of) {
		return of.tier
	}
	return ""
}

type tierError struct {
	tier Role
	error
}

func (e *tierError) Unwrap() error { return e.error }
