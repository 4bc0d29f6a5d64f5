package local

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets"
)

// TestScaleReplicas checks that a new replica is used after it has caught up, that callers
// forget a leaving replica before it is stopped, and that the primary is never removed.
func TestScaleReplicas(t *testing.T) {
	t.Parallel()
	s := allTiers(t, sut.Knobs{"cache.read": "read_through", "db.probe_interval": shortInterval})
	s.options.restartDelay = time.Second // longer than the detection of the dead primary
	s.behave("db-3", "never catches up")
	system := s.up(t)
	uses := func() string { return wired(configOf(t, status(t, system, "web-1").Address).Wiring) }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := system.Scale(ctx, "replica", 2)
		done <- err
	}()
	eventually(t, "db-3 follows", func() bool {
		last, known := system.sets()[0].supervisor.Last("db-3")
		return known && last.Following == "db-1"
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) || count(system, sut.DB) != 2 {
		t.Errorf("error %v, %v", err, system.Topology().Nodes)
	}
	s.behave("db-3", "")
	scale(t, system, "replica", 3)
	if got := uses(); got != "cache:cache-1 db:db-1+db-2+db-3+db-4 blob:blob-1" {
		t.Errorf("web-1 uses %s", got)
	}
	if got := status(t, system, "db-4"); got.ReplicationRole != targets.Replica || got.State != targets.Serving {
		t.Errorf("%+v", got)
	}
	from := len(s.trace(t))
	scale(t, system, "replica", 1)
	if got := uses(); got != "cache:cache-1 db:db-1+db-2 blob:blob-1" {
		t.Errorf("web-1 uses %s", got)
	}
	if got := s.wiringsFrom(t, from); !slices.Contains(got, "cache-1 cache:cache-1 db:db-1+db-2-db-3-db-4") {
		t.Errorf("the wirings of the cache host, which reads databases, are missing: %q", got)
	}
	_, err := system.Scale(t.Context(), "replica", 0)
	if err == nil || !strings.Contains(err.Error(), "at least one host must stay") {
		t.Errorf("scale to no replica: %v", err)
	}
	if err := system.Kill("primary"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "db-2 is the primary, and db-1 serves reads", func() bool {
		return uses() == "cache:cache-1 db:db-2+db-1 blob:blob-1"
	})
	scale(t, system, "replica", 2)
	eventually(t, "db-3 serves reads", func() bool { return uses() == "cache:cache-1 db:db-2+db-1+db-3 blob:blob-1" })
	if err := system.Kill("primary"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "db-2 serves reads", func() bool { return strings.Contains(uses(), "+db-2") })
	if status(t, system, "db-3").ReplicationRole == targets.Primary {
		const removed = "db-3 would be removed, but it is the primary now"
		if _, err := system.Scale(t.Context(), "replica", 1); err == nil || !strings.Contains(err.Error(), removed) {
			t.Errorf("removal of the primary: %v", err)
		}
	}
}

// TestAChangeOfReplicasStays checks a change of replicas that cannot be rolled back,
// because the primary has died. The new topology stays, and the system works with it.
func TestAChangeOfReplicasStays(t *testing.T) {
	t.Parallel()
	s := allTiers(t, sut.Knobs{"db.replicas": "2", "db.probe_failures": "30", "db.probe_interval": shortInterval})
	s.options.neverRestart, s.options.FailoverSilence = true, timeout // no failover before the end of the change
	system := s.up(t)
	s.behave("web-1", "waits when it drains")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := system.Scale(ctx, "replica", 1)
		done <- err
	}()
	// The failover supervisor sends the first wirings, one or two, and Scale the last one.
	eventually(t, "web-1 drains db-3", func() bool {
		got := s.wirings(t, "web-1")
		return len(got) > 0 && strings.Contains(got[len(got)-1], "-db-3")
	})
	if err := system.Kill("primary"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the supervisor has detected the death", func() bool {
		err := system.sets()[0].supervisor.SetNodes(t.Context(), []string{"db-2"}) // always refused: db-1 is the primary
		return strings.Contains(err.Error(), "does not answer")
	})
	cancel()
	const stays = "and the change stays: the primary db-1 does not answer"
	if err := <-done; err == nil || !strings.Contains(err.Error(), stays) {
		t.Errorf("error %v", err)
	}
	s.behave("web-1", "")
	if count(system, sut.DB) != 2 || system.node("db-3") != nil {
		t.Errorf("the change did not stay: %+v", system.Status())
	}
	_, err := system.Scale(t.Context(), "replica", 2)
	if err == nil || !strings.Contains(err.Error(), "the primary db-1 is dead") {
		t.Errorf("scale without a primary: %v", err)
	}
	eventually(t, "db-2 is the primary", func() bool { return len(system.Failovers()) == 1 })
	scale(t, system, "web", 2)
}
