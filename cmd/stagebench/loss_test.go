package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stagebench/stagebench/cmd/internal/cell"
	"github.com/stagebench/stagebench/results/history"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/workloads/driver"
)

// partition is a proxy between a replica and its primary. It passes bytes on until cut is called.
type partition struct {
	listener net.Listener
	primary  string // address

	mu    sync.Mutex
	conns []net.Conn // guarded by mu
	ended bool       // guarded by mu
}

// newPartition starts a proxy in front of the primary.
func newPartition(t *testing.T, primary string) *partition {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &partition{listener: listener, primary: primary}
	var all sync.WaitGroup
	t.Cleanup(func() {
		p.cut()
		all.Wait()
	})
	all.Go(func() {
		for {
			replica, err := listener.Accept()
			if err != nil {
				return
			}
			all.Go(func() { p.pass(replica) })
		}
	})
	return p
}

// pass connects a replica to the primary until one of them closes the connection.
func (p *partition) pass(replica net.Conn) {
	defer replica.Close()
	primary, err := net.Dial("tcp", p.primary)
	if err != nil {
		return
	}
	defer primary.Close()
	if !p.add(replica, primary) {
		return
	}
	var reverse sync.WaitGroup
	reverse.Go(func() {
		_, _ = io.Copy(primary, replica) // ends with either connection
		_ = primary.Close()
	})
	_, _ = io.Copy(replica, primary)
	_ = replica.Close()
	reverse.Wait()
}

// add registers connections for cut. It returns false after cut.
func (p *partition) add(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns = append(p.conns, conns...)
	return !p.ended
}

// cut closes all connections and refuses new ones. It may be called again.
func (p *partition) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	_ = p.listener.Close()
	for _, c := range p.conns {
		_ = c.Close()
	}
}

// partitioned makes a replica follow its primary through a partition.
func (r *rig) partitioned(t *testing.T, replica, primary string) *partition {
	t.Helper()
	p := newPartition(t, r.address(t, primary))
	document, err := json.Marshal(sut.Replication{
		Epoch:   r.replication(t, primary).Epoch,
		Primary: &sut.Peer{Node: primary, Address: p.listener.Addr().String()},
	})
	if err != nil {
		t.Fatal(err)
	}
	response := r.admin(t, http.MethodPut, replica, sut.ReplicationPath, document)
	defer func() { _ = response.Body.Close() }() // read to its end
	if text, err := io.ReadAll(response.Body); err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s does not follow %s through a proxy: %s %s %v", replica, primary, response.Status, text, err)
	}
	r.awaitConnected(t, replica, true)
	return p
}

// awaitConnected waits until a replica receives changes from its primary, or until it receives none.
func (r *rig) awaitConnected(t *testing.T, replica string, connected bool) {
	t.Helper()
	eventually(t, fmt.Sprintf("connected of %s is %t", replica, connected), func() bool {
		return r.replication(t, replica).Connected == connected
	})
}

// killForGood kills a node. The node does not restart until it is resumed.
func (r *rig) killForGood(t *testing.T, node string) {
	t.Helper()
	// A paused node that dies does not restart.
	if err := r.Pause(node); err != nil {
		t.Fatal(err)
	}
	for _, n := range r.Status() {
		if n.Node == node {
			if err := syscall.Kill(n.PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// The only replica is cut off from its primary, then the primary dies. With async, every write that
// was acknowledged after the cut is lost. The result of the run and the report of the failover both
// say exactly which writes that are. With sync, no such write is acknowledged, so none is lost.
func TestPrimaryDiesWithoutItsReplica(t *testing.T) {
	t.Parallel()
	for name, knobs := range failovers() {
		if name == "native/sync" {
			continue // TestPrimaryIsKilled and the tests of sut/postgres show that it waits for its replica
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			async := knobs["db.sync"] == "async"
			r := bringUpSized(t, sut.Replicas, with(knobs, sut.Knobs{
				"db.replicas": "1", "blob.hosts": "1", "web.hosts": "1",
			}), roomy)
			link := r.partitioned(t, "db-2", "db-1")
			r.connect(t, comments{shipped(t, "write-heavy")}, driver.ClientConfig{Connections: 16})
			r.stepper.History = history.New()
			before := r.load(t, 40, time.Second, 0, nil)
			r.awaitCopies(t)
			link.cut()
			r.awaitConnected(t, "db-2", false)
			kept := r.comments(t, "db-2")
			after := r.load(t, 40, time.Second, 0, nil)
			if failed(before) > 0 || async && failed(after) > 0 {
				t.Fatalf("before the cut %+v %v, after it %+v %v", before.Ledger, before.Causes, after.Ledger, after.Causes)
			}
			written := r.comments(t, "db-1")
			r.killForGood(t, "db-1")
			r.awaitEvent(t, "is the primary of epoch 2")
			if err := r.Resume("db-1"); err != nil {
				t.Fatal(err)
			}
			r.awaitBack(t, "db-1")
			r.awaitCopies(t)
			if held := r.comments(t, "db-2"); !maps.Equal(held, kept) {
				t.Errorf("the new primary holds %d comments, and held %d when it was cut off", len(held), len(kept))
			}
			missing := maps.Clone(written)
			maps.DeleteFunc(missing, func(id string, _ bool) bool { return kept[id] })
			reported := r.lostComments(t)
			writes, err := cell.CheckWrites(t.Context(), r.stepper.History, r.stepper.Clients, driver.ReadBack{
				Timeout: 10 * time.Second, MaxWait: time.Second, Pause: 50 * time.Millisecond,
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d + %d acknowledged, %d missing; the result says %+v",
				before.Ledger.OK, after.Ledger.OK, len(missing), writes)
			if !async {
				// What is missing was never acknowledged. A write may reach db-1 after written was read.
				if after.Ledger.OK > 0 || writes.Lost > 0 || writes.Acknowledged != before.Ledger.OK {
					t.Errorf("sync acknowledged %d writes without its replica; the result says %+v", after.Ledger.OK, writes)
				}
				return
			}
			if !maps.Equal(reported, missing) {
				t.Errorf("%d comments are missing, %d are reported lost: %v, %v", len(missing), len(reported), missing, reported)
			}
			if len(missing) == 0 || int64(len(missing)) != after.Ledger.OK {
				t.Errorf("%d writes were acknowledged after the cut, %d are missing", after.Ledger.OK, len(missing))
			}
			if writes.Lost != int64(len(missing)) || writes.Acknowledged != before.Ledger.OK+after.Ledger.OK {
				t.Errorf("the result says %+v, but %d of %d acknowledged writes are missing",
					writes, len(missing), before.Ledger.OK+after.Ledger.OK)
			}
		})
	}
}

// lostComments returns the comments that the report of the failovers calls lost. Each must be there once, and no loss
// may be unknown.
func (r *rig) lostComments(t *testing.T) map[string]bool {
	t.Helper()
	recovery, err := r.Recover(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	reported := map[string]bool{}
	for _, l := range recovery.Lost {
		t.Logf("%s: %d commits with %d changes lost in epoch %d", l.Node, l.Commits, len(l.Changes), l.Epoch)
		if l.Unknown {
			t.Errorf("%s: the loss of epoch %d is unknown: %s", l.Node, l.Epoch, l.Partial)
		}
		for _, c := range l.Changes {
			if c.Table != "comments" || c.Op != sut.Inserted {
				continue
			}
			if reported[c.Key] {
				t.Errorf("comment %s is reported twice", c.Key)
			}
			reported[c.Key] = true
		}
	}
	return reported
}
