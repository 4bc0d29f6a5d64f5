// Package replicatest is the conformance kit of databases with copies: the nodes
// of both engines pass it, and those of any third must.
//
// It needs nodes that it may start, kill and pause, each on a copy of one seeded
// template. It drives them as others do: over SQL, through a store, and over
// their admin address, as sut.Replication describes it. It asserts no wall time
// of the machine.
package replicatest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/store"
)

// Engine makes nodes of one engine.
type Engine interface {
	// Start starts the node of that name: the first time on a copy of the template,
	// later on what it left. It returns when the node is ready.
	Start(t *testing.T, name string, knobs sut.Knobs, told sut.Replication) Node
	// Counts is what the template holds.
	Counts() sut.DataCounts
}

// Node is a running database node.
type Node interface {
	Address() string // of its SQL
	Admin() string   // host:port
	// Kill ends it with all its processes as SIGKILL does, and returns when it is
	// gone.
	Kill(t *testing.T)
	Pause(t *testing.T)
	Resume(t *testing.T)
}

// patience bounds every wait of the kit.
const patience = 60 * time.Second

// Run checks the nodes of an engine.
func Run(t *testing.T, engine Engine) {
	for _, check := range []struct {
		name string
		run  func(*testing.T, *kit)
	}{
		{"copies of one template follow without being fetched", follows},
		{"replicas refuse writes", refusesWrites},
		{"large rows arrive", largeRows},
		{"a replica catches up after its death", catchesUp},
		{"a replica takes the place of the primary", promotes},
		{"an old primary comes back as a replica", oldPrimary},
		{"an old epoch is refused", oldEpoch},
		{"sync waits for a replica", synchronous},
		{"an artificial lag is exact", lag},
		{"random transactions make equal copies", random},
	} {
		t.Run(check.name, func(t *testing.T) {
			check.run(t, &kit{t: t, engine: engine, next: photos.ID(1 << 40)})
		})
	}
}

// kit is the nodes of one check.
type kit struct {
	t      *testing.T
	engine Engine
	next   photos.ID // of new records
}

// copied is a node with a store that reads and writes it alone.
type copied struct {
	Node
	kit   *kit
	name  string
	store *store.Store
}

func (k *kit) id() photos.ID { k.next++; return k.next }

// start starts a node.
func (k *kit) start(name string, knobs sut.Knobs, told sut.Replication) *copied {
	k.t.Helper()
	c := &copied{Node: k.engine.Start(k.t, name, knobs, told), kit: k, name: name}
	k.t.Cleanup(func() { c.Kill(k.t) })
	var err error
	if c.store, err = store.Open(store.Config{Primary: c.peer(), MaxConns: 8}); err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(c.store.Close)
	return c
}

// pair starts a primary and a replica that serves.
func (k *kit) pair(knobs sut.Knobs) (primary, replica *copied) {
	k.t.Helper()
	primary = k.start("db-1", knobs, sut.Replication{Epoch: 1})
	replica = k.start("db-2", knobs, sut.Replication{Epoch: 1, Primary: primary.at()})
	replica.awaitServing("db-1")
	return primary, replica
}

func (c *copied) peer() sut.Peer { return sut.Peer{Node: c.name, Address: c.Address()} }

func (c *copied) at() *sut.Peer {
	p := c.peer()
	return &p
}

// admin asks the node how its copy stands, or tells it what to be.
func (c *copied) admin(method string, document any) (code int, status sut.ReplicationStatus, text string) {
	c.kit.t.Helper()
	code, text = c.ask(method, sut.ReplicationPath, document, &status)
	return code, status, text
}

// ask asks the node at its admin address; what it answers with 200 goes to answer.
func (c *copied) ask(method, path string, document, answer any) (code int, text string) {
	c.kit.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var body io.Reader
	if document != nil {
		encoded, err := json.Marshal(document)
		if err != nil {
			c.kit.t.Fatal(err)
		}
		body = bytes.NewReader(encoded)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+c.Admin()+path, body)
	if err != nil {
		c.kit.t.Fatal(err)
	}
	req.Close = true
	response, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = response.Body.Close() }() // read only
	said, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode == http.StatusOK {
		err = json.Unmarshal(said, answer)
	}
	if err != nil {
		c.kit.t.Fatalf("%s: %v: %s", c.name, err, said)
	}
	return response.StatusCode, string(said)
}

func (c *copied) status() sut.ReplicationStatus {
	c.kit.t.Helper()
	_, status, _ := c.admin(http.MethodGet, nil)
	return status
}

// become tells the node what to be.
func (c *copied) become(told sut.Replication) {
	c.kit.t.Helper()
	if code, _, text := c.admin(http.MethodPut, told); code != http.StatusOK {
		c.kit.t.Fatalf("%s becomes %+v: %d %s", c.name, told, code, text)
	}
}

// until waits for a condition on the node's status.
func (c *copied) until(what string, holds func(sut.ReplicationStatus) bool) sut.ReplicationStatus {
	c.kit.t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	var last string
	for time.Now().Before(deadline) {
		code, status, text := c.admin(http.MethodGet, nil)
		if code == http.StatusOK && holds(status) {
			return status
		}
		last = text
		<-tick.C
	}
	c.kit.t.Fatalf("%s: not within %v: %s: %s", c.name, patience, what, last)
	return sut.ReplicationStatus{}
}

func (c *copied) awaitServing(primary string) {
	c.kit.t.Helper()
	c.until("it serves", func(s sut.ReplicationStatus) bool { return s.Serves && s.Connected && s.Following == primary })
}

// photo is the id of the seeded photo with that index.
func (k *kit) photo(index int) photos.ID { return photos.PhotoID(index, k.engine.Counts()) }

// like adds a like to the photo with that index and returns the version that was
// acknowledged.
func (c *copied) like(photo int) int64 {
	c.kit.t.Helper()
	version, err := c.store.Like(context.Background(), c.kit.photo(photo), 1)
	if err != nil {
		c.kit.t.Fatalf("%s: %v", c.name, err)
	}
	return version
}

// awaitVersion waits until the copy has that version of the photo with that index.
func (c *copied) awaitVersion(photo int, version int64) {
	c.kit.t.Helper()
	c.until(fmt.Sprintf("it has version %d of photo %d", version, photo), func(sut.ReplicationStatus) bool {
		p, err := c.store.Photo(context.Background(), c.kit.photo(photo))
		return err == nil && p.Version >= version
	})
}

// sameAs waits until a copy holds what another one does, which is at rest.
func (c *copied) sameAs(other *copied) {
	c.kit.t.Helper()
	want, err := other.store.Digest(context.Background())
	if err != nil {
		c.kit.t.Fatal(err)
	}
	c.until("it holds what "+other.name+" does", func(sut.ReplicationStatus) bool {
		got, err := c.store.Digest(context.Background())
		return err == nil && got == want
	})
}
