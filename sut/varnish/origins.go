package varnish

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// pollInterval is the time between two looks at the connections of an old configuration.
const pollInterval = 50 * time.Millisecond

// vclName is the name of a configuration in the server. Varnish itself names the first one.
func vclName(number int) string {
	if number == 0 {
		return "boot"
	}
	return fmt.Sprintf("edge%d", number)
}

// SetOrigins loads a configuration with the new origins, which needs a compiler and about a second, and uses it for all
// requests that begin later. It returns when the requests of the old configuration have ended. If ctx or Config.Drain
// ends before, the change is in effect, and the error says that requests go on.
func (s *Server) SetOrigins(ctx context.Context, origins []sut.Peer) error {
	if err := sut.ValidateOrigins(origins); err != nil {
		return fmt.Errorf("varnish: %w: %w", sut.ErrWiring, err)
	}
	s.changing.Lock()
	defer s.changing.Unlock()
	if slices.Equal(origins, s.origins) {
		return nil
	}
	old, next := s.loaded, s.loaded+1
	err := s.writeVCL(origins, next)
	if err == nil {
		_, err = s.command(ctx, "vcl.load", vclName(next), quoted(s.vclPath(next)), "auto")
	}
	if err == nil {
		_, err = s.command(ctx, "vcl.use", vclName(next))
	}
	if err != nil {
		return fmt.Errorf("varnish: %w: %w", sut.ErrWiring, err)
	}
	s.origins, s.loaded = slices.Clone(origins), next
	ctx, cancel := context.WithTimeoutCause(ctx, s.cfg.Drain, errors.New("requests to the old origins go on"))
	defer cancel()
	err = s.awaitIdle(ctx, vclName(old))
	discard, stop := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer stop()
	_, discarded := s.command(discard, "vcl.discard", vclName(old))
	if err := errors.Join(err, discarded, os.Remove(s.vclPath(old))); err != nil {
		return fmt.Errorf("varnish: the old origins: %w", err)
	}
	return nil
}

// awaitIdle waits until no connection to the origins of a configuration is in use. Varnish also lists the users of a
// configuration, but idle threads stay in that list for a minute. A request that waits for the fill of another one has
// no connection; it gets one at once when the fill ends, so two looks in a row must find none.
func (s *Server) awaitIdle(ctx context.Context, name string) error {
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	for idle := 0; idle < 2; {
		counters, err := s.counters(ctx, "-f", "VBE."+name+".*.conn")
		if err != nil {
			return errors.Join(err, context.Cause(ctx))
		}
		idle++
		for _, inUse := range counters {
			if inUse > 0 {
				idle = 0
			}
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}
