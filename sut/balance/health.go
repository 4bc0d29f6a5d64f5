package balance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

// watch checks one host each interval, the first time after an offset.
func (b *Balancer) watch(ctx context.Context, u *upstream, offset time.Duration) {
	select {
	case <-ctx.Done():
		return
	case <-time.After(offset):
	}
	// A check that takes longer than the interval delays the next: there are
	// never two at once.
	ticker := time.NewTicker(b.cfg.HealthInterval)
	defer ticker.Stop()
	for {
		verdicts := b.pool.verdictsOf(u)
		checkCtx, cancel := context.WithTimeout(ctx, b.cfg.HealthTimeout)
		err := b.probe(checkCtx, u.peer.Address)
		cancel()
		if ctx.Err() != nil {
			return
		}
		b.pool.checked(u, verdicts, err)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// probe asks hosts for their health.
type probe struct {
	client *http.Client
	path   string
}

func newProbe(cfg Config) *probe {
	return &probe{path: cfg.HealthPath, client: &http.Client{
		// A new connection each time: an old one would not show that the host
		// accepts no more.
		Transport:     &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{}).DialContext},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// check returns nil when the host at the address is well.
func (p *probe) check(ctx context.Context, address string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+p.path, nil)
	if err != nil {
		return err
	}
	res, err := p.client.Do(req)
	if errors.Is(err, context.DeadlineExceeded) {
		return errors.New("health check: no answer in time")
	}
	if err != nil {
		return fmt.Errorf("health check: %w", err)
	}
	// The connection is not used again, so that the body need not be read.
	_ = res.Body.Close()
	if res.StatusCode < 200 || res.StatusCode > 399 {
		return fmt.Errorf("health check: status %d", res.StatusCode)
	}
	return nil
}
