package balance

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"testing"

	"github.com/stagebench/stagebench/sut"
)

// poolOf makes a pool of n hosts whose addresses are unreachable.
func poolOf(n int, policy string) *pool {
	cfg := sut.Balancing{Policy: policy}
	for i := range n {
		peer := sut.Peer{Node: fmt.Sprintf("web-%d", i+1), Address: fmt.Sprintf("192.0.2.%d:80", i+1)}
		cfg.Peers = append(cfg.Peers, peer)
	}
	return newPool(Config{Balancing: cfg.Complete(), Log: slog.New(slog.DiscardHandler)})
}

// TestRoundRobinIsExactUnderConcurrency: concurrent requests are spread exactly evenly,
// not only approximately.
func TestRoundRobinIsExactUnderConcurrency(t *testing.T) {
	t.Parallel()
	p := poolOf(3, sut.PolicyRoundRobin)
	var all sync.WaitGroup
	for range 30 {
		all.Go(func() {
			for range 100 {
				p.release(p.acquire(p.routes.Load().all(), pick{}), succeeded, "", 0)
			}
		})
	}
	all.Wait()
	for _, u := range p.status() {
		if u.Requests != 1000 || u.InFlight != 0 {
			t.Errorf("%s: %d requests, %d in flight, want 1000 and 0", u.Node, u.Requests, u.InFlight)
		}
	}
}

// TestStickyUsersKeepTheTurn: requests with a sticky cookie do not change the round
// robin order of the other requests.
func TestStickyUsersKeepTheTurn(t *testing.T) {
	t.Parallel()
	p := poolOf(3, sut.PolicyRoundRobin)
	all := p.routes.Load().all()
	var got []string
	for range 6 {
		p.release(p.acquire(all, pick{sticky: "web-2"}), succeeded, "", 0)
		u := p.acquire(all, pick{sticky: "web-99"})
		got = append(got, u.node)
		p.release(u, succeeded, "", 0)
	}
	if want := "[web-1 web-2 web-3 web-1 web-2 web-3]"; fmt.Sprint(got) != want {
		t.Errorf("picked %v, want %s", got, want)
	}
}

func TestAcquireSkipsTriedHosts(t *testing.T) {
	t.Parallel()
	p := poolOf(3, sut.PolicyLeastConn)
	all := p.routes.Load().all()
	var tried []*upstream
	for range 3 {
		u := p.acquire(all, pick{sticky: "web-2", tried: tried})
		if u == nil {
			t.Fatalf("no host available after %d", len(tried))
		}
		tried = append(tried, u)
	}
	if tried[0].node != "web-2" {
		t.Errorf("first picked %s, want web-2 of the cookie", tried[0].node)
	}
	if u := p.acquire(all, pick{tried: tried}); u != nil {
		t.Errorf("picked %s a second time", u.node)
	}
}

func TestHostsGoDownAndUp(t *testing.T) {
	t.Parallel()
	p := poolOf(2, sut.PolicyRoundRobin)
	u := p.members[0]
	sick := errors.New("sick")

	p.checked(u, p.refusalsOf(u), sick)
	p.checked(u, p.refusalsOf(u), sick)
	if got := p.status()[0]; got.Up || got.WentDown != 1 || got.Cause != "sick" {
		t.Errorf("after two bad checks: %+v", got)
	}
	if got := p.acquire(p.routes.Load().all(), pick{sticky: "web-1"}); got.node != "web-2" {
		t.Error("a host that is down was picked")
	}
	p.checked(u, p.refusalsOf(u), nil)
	if got := p.status()[0]; !got.Up || got.WentUp != 1 || got.Cause != "" {
		t.Errorf("after a good check: %+v", got)
	}

	// The order of events: the host answers a check, the host dies, a connection is
	// refused, the result of the check is applied.
	refusals := p.refusalsOf(u)
	p.unreachable(p.acquire(p.routes.Load().all(), pick{sticky: "web-1"}), syscall.ECONNREFUSED, 0)
	p.checked(u, refusals, nil)
	if got := p.status()[0]; got.Up || got.WentDown != 2 {
		t.Errorf("a stale check marked a dead host up: %+v", got)
	}
	p.checked(u, p.refusalsOf(u), nil)
	if got := p.status()[0]; !got.Up || got.WentUp != 2 {
		t.Errorf("after a good check: %+v", got)
	}
}
