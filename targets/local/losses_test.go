package local

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// lossOf returns the loss of comments that were each written by a commit of their own.
func lossOf(node, old string, commits ...int) sut.Lost {
	lost := sut.Lost{Node: node, Copy: old, Epoch: 1, Commits: len(commits), Changes: []sut.LostChange{}}
	for _, c := range commits {
		lost.Changes = append(lost.Changes, sut.LostChange{
			Commit: fmt.Sprint("1/", c), Table: "comments", Key: fmt.Sprint(c), Op: sut.Inserted,
		})
	}
	return lost
}

// A loss is in the ledger once, however often its copy is read, and also if a replica had a part of it.
func TestLossesAreListedOnce(t *testing.T) {
	l := newLosses()
	notKept := sut.Lost{Node: "db-2", Copy: "epoch-3", Changes: []sut.LostChange{}, Unknown: true, Partial: sut.NotKept}
	for range 2 {
		l.add(lossOf("db-1", "epoch-1", 4, 5, 6))
	}
	l.add(lossOf("db-2", "epoch-1", 3, 4))
	l.add(lossOf("db-2", "epoch-2", 5))
	l.add(notKept)
	other := lossOf("db-4", "epoch-1", 4) // a commit of another shard, with the same number
	other.Shard = 2
	l.add(other)
	want := []sut.Lost{lossOf("db-1", "epoch-1", 4, 5, 6), lossOf("db-2", "epoch-1", 3), notKept, other}
	if got := l.list(); !reflect.DeepEqual(got, want) {
		t.Errorf("the ledger has\n%+v, want\n%+v", got, want)
	}
	l.replayed(want[0], 2)
	l.replayed(want[1], 1)
	if got := l.list(); got[0].Replayed || !got[1].Replayed || len(l.left(got[0])) != 1 || len(l.left(got[1])) != 0 {
		t.Errorf("replayed are %+v", got)
	}
}

// The system collects a loss without being asked, and then lets the node remove its copy. A loss that cannot be read is
// reported as unknown, also after its node was removed.
func TestLossesAreCollected(t *testing.T) {
	t.Parallel()
	s := allTiers(t, sut.Knobs{"db.replicas": "2", "db.probe_interval": shortInterval})
	s.behave("db-2", "keeps a copy")
	s.behave("db-3", "keeps an unreadable copy")
	system := s.up(t)
	var users sync.WaitGroup // they ask while the system collects
	for range 8 {
		users.Go(func() {
			for len(system.Losses()) == 0 {
				recovery, err := system.Recover(t.Context(), false)
				if err != nil {
					t.Error(err)
				}
				for _, lost := range recovery.Lost {
					if strings.Contains(lost.Partial, "no old copy") {
						t.Errorf("%s: %s", lost.Node, lost.Partial)
					}
				}
			}
		})
	}
	users.Wait()
	eventually(t, "the loss of db-2 is collected, and that of db-3 is tried", func() bool {
		return len(system.Losses()) == 1 && len(system.losses.keeps("db-3")) == 1
	})
	eventually(t, "db-2 removes its copy", func() bool {
		return strings.Contains(strings.Join(s.trace(t), " "), "dropped epoch-1")
	})
	for range 2 {
		recovery, err := system.Recover(t.Context(), false)
		if err != nil || len(recovery.Lost) != 2 || recovery.Lost[0].Changes[0].New["id"] != int64(1<<62+1) ||
			recovery.Lost[1].Node != "db-3" || !recovery.Lost[1].Unread {
			t.Fatalf("report %+v, %v", recovery, err)
		}
	}
	scale(t, system, "replica", 1)
	recovery, err := system.Recover(t.Context(), false)
	if err != nil || len(recovery.Lost) != 2 {
		t.Fatalf("report %+v, %v", recovery, err)
	}
	if lost := recovery.Lost[1]; lost.Node != "db-3" || !lost.Unknown || lost.Unread ||
		!strings.Contains(lost.Partial, "removed") || !strings.Contains(lost.Partial, "it is broken") {
		t.Errorf("the report of the removed node is %+v", lost)
	}
}

// handleLost adds the handlers for the old copies of a database.
func (n *testNode) handleLost(mux *http.ServeMux) {
	mux.HandleFunc("GET "+sut.LostPath, func(w http.ResponseWriter, r *http.Request) {
		select { // another request can overtake this one
		case <-time.After(20 * time.Millisecond):
		case <-r.Context().Done():
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.dropped {
			http.Error(w, "there is no old copy", http.StatusInternalServerError)
			return
		}
		_ = json.NewEncoder(w).Encode(n.lost(r.FormValue("copy")))
	})
	mux.HandleFunc("POST "+sut.LostPath, func(w http.ResponseWriter, r *http.Request) {
		var order sut.Replay
		if err := json.NewDecoder(r.Body).Decode(&order); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		n.trace("replays over %d", len(order.Databases))
		_ = json.NewEncoder(w).Encode(sut.Replayed{})
	})
	mux.HandleFunc("DELETE "+sut.LostPath, func(w http.ResponseWriter, r *http.Request) {
		n.trace("dropped %s", r.FormValue("copy"))
		n.mu.Lock()
		defer n.mu.Unlock()
		n.dropped = true
		w.WriteHeader(http.StatusNoContent)
	})
}

// lost returns what the node's old copy has, or that it cannot be read.
func (n *testNode) lost(name string) sut.Lost {
	if behaviourOf(n.config.Node) == "keeps an unreadable copy" {
		return sut.Lost{Node: n.config.Node, Copy: name, Epoch: 1, Unknown: true, Unread: true, Partial: "it is broken"}
	}
	return sut.Lost{Node: n.config.Node, Copy: name, Epoch: 1, Commits: 1, Changes: []sut.LostChange{{
		Commit: n.config.Node, Table: "photos", Key: "1", Op: sut.Inserted, New: sut.Values{"id": int64(1<<62 + 1)},
	}}}
}
