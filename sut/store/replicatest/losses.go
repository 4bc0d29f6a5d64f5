package replicatest

import (
	"fmt"
	"maps"
	"net/http"
	"testing"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
)

// comment adds a comment and returns its id as text.
func (c *member) comment() string {
	c.kit.t.Helper()
	id := c.kit.id()
	comment := photos.Comment{ID: id, PhotoID: c.kit.photo(5), UserID: 2, Text: "well done", CreatedUS: 1}
	if _, err := c.store.Comment(c.kit.t.Context(), comment); err != nil {
		c.kit.t.Fatalf("%s: %v", c.name, err)
	}
	return fmt.Sprint(id)
}

// losses returns the losses of the node's old copies.
func (c *member) losses() (all []sut.Lost) {
	c.kit.t.Helper()
	for _, name := range c.status().Kept {
		var lost sut.Lost
		if code, text := c.ask(http.MethodGet, sut.LostPath+"?copy="+name, nil, &lost); code != http.StatusOK {
			c.kit.t.Fatalf("%s: lost changes: %d %s", c.name, code, text)
		}
		all = append(all, lost)
	}
	return all
}

// lostComments returns the ids of the lost comments that the node's old copies have, each with the epoch of its copy.
func (c *member) lostComments() map[string]int64 {
	c.kit.t.Helper()
	all := map[string]int64{}
	for _, l := range c.losses() {
		if l.Unknown {
			c.kit.t.Errorf("%s: the loss of epoch %d is unknown: %s", c.name, l.Epoch, l.Partial)
		}
		for _, change := range l.Changes {
			if change.Table != "comments" {
				continue
			}
			if all[change.Key] > 0 {
				c.kit.t.Errorf("%s lists comment %s twice", c.name, change.Key)
			}
			all[change.Key] = l.Epoch
		}
	}
	return all
}

// Primaries die in quick succession, and nobody asks for losses meanwhile. A replica of the first primary is promoted
// after it has missed the second one completely. Each node keeps all its losses, across restarts.
func quickPromotions(t *testing.T, k *kit) {
	first, second := k.pair(nil)
	third := k.start("db-3", nil, sut.Replication{Epoch: 1, Primary: first.at()})
	third.awaitServing("db-1")
	version := first.like(5)
	second.awaitVersion(5, version)
	third.awaitVersion(5, version)
	first.Kill(t)
	second.setRole(sut.Replication{Epoch: 2})
	lost2 := second.comment()
	second.Kill(t)
	third.setRole(sut.Replication{Epoch: 3})
	third.comment()
	second = k.start("db-2", nil, sut.Replication{Epoch: 3, Primary: third.at()})
	second.awaitServing("db-3")
	second.sameAs(third)

	second.Kill(t)
	lost3 := third.comment()
	third.Kill(t)
	second = k.start("db-2", nil, sut.Replication{Epoch: 3, Primary: third.at()})
	second.setRole(sut.Replication{Epoch: 4})
	second.comment()
	third = k.start("db-3", nil, sut.Replication{Epoch: 4, Primary: second.at()})
	third.awaitServing("db-2")
	third.sameAs(second)

	third.Kill(t)
	lost4 := second.comment()
	second.Kill(t)
	third = k.start("db-3", nil, sut.Replication{Epoch: 4, Primary: second.at()})
	third.setRole(sut.Replication{Epoch: 5})
	third.comment()
	second = k.start("db-2", nil, sut.Replication{Epoch: 5, Primary: third.at()})
	second.awaitServing("db-3")
	second.sameAs(third)

	if got, want := second.lostComments(), (map[string]int64{lost2: 2, lost4: 4}); !maps.Equal(got, want) {
		t.Errorf("db-2 lists the lost comments %v, want %v", got, want)
	}
	if got, want := third.lostComments(), (map[string]int64{lost3: 3}); !maps.Equal(got, want) {
		t.Errorf("db-3 lists the lost comments %v, want %v", got, want)
	}
	if kept := second.status().Kept; len(kept) != 2 {
		t.Errorf("db-2 keeps %v, want 2 copies", kept)
	}
}
