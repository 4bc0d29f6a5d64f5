package balance

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// members returns upstreams web-N for the given numbers.
func members(numbers ...int) sut.Upstreams {
	var m sut.Upstreams
	for _, n := range numbers {
		m.Peers = append(m.Peers, sut.Peer{Node: fmt.Sprintf("web-%d", n), Address: fmt.Sprintf("192.0.2.%d:80", n)})
	}
	return m
}

// TestNewMemberIsCheckedAtOnce: a new member is checked at once, and then at each
// interval until it is removed.
func TestNewMemberIsCheckedAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBalancer(t, Config{Balancing: sut.Balancing{HealthInterval: time.Second}}, "192.0.2.1:80")
		began := time.Now()
		probes := make(chan string, 100)
		b.probe = func(_ context.Context, address string) error {
			if strings.HasPrefix(address, "192.0.2.2:") {
				probes <- time.Since(began).String()
			}
			return nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); b.run(ctx) }()
		time.Sleep(1500 * time.Millisecond)
		b.pool.setMembers(members(1, 2))
		if s := b.pool.statusOf(t, "web-2"); s.Up || s.Cause != "not checked yet" {
			t.Errorf("before its first check: %+v", s)
		}
		if err := b.SetUpstreams(ctx, members(1, 2)); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if s := b.pool.statusOf(t, "web-2"); !s.Up || s.WentUp != 1 {
			t.Errorf("after its first check: %+v", s)
		}
		time.Sleep(time.Second)
		// After its removal it is not checked.
		if err := b.SetUpstreams(ctx, members(1)); err != nil {
			t.Error(err)
		}
		time.Sleep(10 * time.Second)
		cancel()
		<-done
		close(probes)
		var got []string
		for p := range probes {
			got = append(got, p)
		}
		if want := "[1.5s 2.5s]"; fmt.Sprint(got) != want {
			t.Errorf("checked at %v, want %s", got, want)
		}
	})
}

// TestDrainingHostComesBack: a host that becomes a member again while it drains keeps
// its counts, and the SetUpstreams call that waits for its drain returns.
func TestDrainingHostComesBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBalancer(t, Config{}, "192.0.2.1:80", "192.0.2.2:80")
		u := b.pool.acquire(b.pool.routes.Load().all(), pick{sticky: "web-1"})
		first := make(chan error, 1)
		go func() { first <- b.SetUpstreams(t.Context(), members(2)) }()
		synctest.Wait()
		if s := b.pool.statusOf(t, "web-1"); s.Up || !s.Draining || s.InFlight != 1 {
			t.Errorf("while it drains: %+v", s)
		}
		if got := b.pool.acquire(b.pool.routes.Load().all(), pick{sticky: "web-1"}); got.node != "web-2" {
			t.Error("a draining host was picked")
		}
		if err := b.SetUpstreams(t.Context(), members(1, 2)); err != nil {
			t.Error(err)
		}
		if err := <-first; err != nil {
			t.Error(err)
		}
		if s := b.pool.statusOf(t, "web-1"); !s.Up || s.Draining || s.Requests != 1 {
			t.Errorf("as a member again: %+v", s)
		}
		b.pool.release(u, succeeded, "", 0)
		// The same name at another address is a new host.
		moved := members(1, 2)
		moved.Peers[0].Address = "192.0.2.9:80"
		if err := b.SetUpstreams(t.Context(), moved); err != nil {
			t.Error(err)
		}
		if s := b.pool.statusOf(t, "web-1"); s.Up || s.Requests != 0 || s.Address != "192.0.2.9:80" {
			t.Errorf("at another address: %+v", s)
		}
	})
}

func TestMembershipDoesNotWaitForEver(t *testing.T) {
	t.Parallel()
	b := newBalancer(t, Config{}, "192.0.2.1:80", "192.0.2.2:80")
	u := b.pool.acquire(b.pool.routes.Load().all(), pick{sticky: "web-1"})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := b.SetUpstreams(ctx, members(2))
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "web-1") {
		t.Errorf("error %v, want one about web-1", err)
	}
	b.pool.release(u, succeeded, "", 0)
	if err := b.SetUpstreams(t.Context(), members(2)); err != nil || len(b.pool.draining) > 0 {
		t.Errorf("error %v, draining %v", err, b.pool.draining)
	}
}

// TestPicksDuringChanges: every pick gets a host while the members change, and all
// in-flight counts return to 0.
func TestPicksDuringChanges(t *testing.T) {
	t.Parallel()
	cfg := Config{Balancing: sut.Balancing{Policy: sut.PolicyWeightedRoundRobin}}
	b := newBalancer(t, cfg, "192.0.2.1:80", "192.0.2.2:80", "192.0.2.3:80")
	p := b.pool
	stop := make(chan struct{})
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				routes := p.routes.Load()
				u := p.acquire(routes.all(), pick{})
				if u == nil {
					if routes == p.routes.Load() {
						t.Error("no host")
						return
					}
					continue
				}
				p.release(u, succeeded, "", 0)
			}
		})
	}
	for range 300 {
		for _, m := range []sut.Upstreams{members(3), members(1, 2, 3)} {
			if err := b.SetUpstreams(t.Context(), m); err != nil {
				t.Error(err)
			}
			for _, u := range p.unwatched() {
				p.checked(u, 0, nil)
			}
		}
	}
	close(stop)
	all.Wait()
	for _, s := range p.status() {
		if s.InFlight != 0 {
			t.Errorf("%+v", s)
		}
	}
	if len(p.draining) > 0 {
		t.Errorf("%d hosts still drain", len(p.draining))
	}
}

// TestNewRoutesReplaceOldOnes: SetUpstreams replaces all routes, with their conditions.
func TestNewRoutesReplaceOldOnes(t *testing.T) {
	t.Parallel()
	b := newBalancer(t, Config{}, "192.0.2.1:80", "192.0.2.2:80")
	req, err := http.NewRequest("GET", "/img/1", nil)
	if err != nil {
		t.Fatal(err)
	}
	hostsOfRequest := func() (nodes string) {
		for _, u := range b.pool.routes.Load().of(req).group.members {
			nodes += u.node + " "
		}
		return nodes
	}
	if got := hostsOfRequest(); got != "web-1 web-2 " {
		t.Errorf("without routes: %s", got)
	}
	for path, want := range map[string]string{"/img/*": "web-2 ", "/img/2": "web-1 web-2 ", "/img/1": "web-2 "} {
		m := members(1, 2)
		m.Routes = []sut.Route{{Path: path, To: []string{"web-2"}}}
		if err := b.SetUpstreams(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		if got := hostsOfRequest(); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

func TestStickyValue(t *testing.T) {
	t.Parallel()
	p := poolOf(4, sut.PolicyRoundRobin)
	r := newRouting([]sut.Route{{Path: "/upload", To: []string{"web-1"}}, {To: []string{"web-2", "web-3"}}}, p.members)
	for _, test := range []struct {
		sticky string
		group  int
		node   string
		want   string
	}{
		{"", 0, "web-1", "web-1"},
		{"web-2", 0, "web-1", "web-1:web-2"},       // web-2 belongs to another route: kept
		{"web-1:web-2", 1, "web-3", "web-3:web-1"}, // web-2 belongs to the same route: replaced
		{"web-9:web-2:web-2", 0, "web-1", "web-1:web-2"},
		{"web-4", 2, "web-3", "web-3"},
		{strings.Repeat("x:", 1000), 1, "web-2", "web-2"},
	} {
		got := stickyValue(test.sticky, r, (*r)[test.group].group, test.node)
		if got != test.want || !listsNode(got, test.node) {
			t.Errorf("%q with %s: %q, want %q", test.sticky, test.node, got, test.want)
		}
	}
	if listsNode("web-11:xweb-1", "web-1") || listsNode("", "web-1") {
		t.Error("a part of a name counts as the name")
	}
}
