// Package replicatest is the conformance kit of replicated databases. The nodes of every
// engine must pass it.
//
// The kit starts, kills and pauses nodes, each on a copy of one seeded template. It uses
// them as the system does: through a store over SQL, and over the admin address as
// sut.Replication describes. It asserts no wall time of the machine.
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

// Engine starts nodes of one engine.
type Engine interface {
	// Start starts a node. The first start of a name uses a copy of the template, later
	// starts use the node's existing data. Start returns when the node is ready.
	Start(t *testing.T, name string, knobs sut.Knobs, role sut.Replication) Node
	// Counts is the number of records in the template.
	Counts() sut.DataCounts
}

// Node is a running database node.
type Node interface {
	Address() string // host:port of its SQL interface
	Admin() string   // host:port of its admin address
	Secret() sut.Secret
	// Kill kills all its processes, as SIGKILL does, and returns when they have exited.
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
		{"copies of the template replicate without a rebuild", follows},
		{"replicas refuse writes", refusesWrites},
		{"large rows are replicated", largeRows},
		{"a replica catches up after a restart", catchesUp},
		{"a replica is promoted", promotes},
		{"an old primary returns as a replica", oldPrimary},
		{"every loss of quick promotions is kept", quickPromotions},
		{"an old epoch is refused", oldEpoch},
		{"sync waits for a replica", synchronous},
		{"an artificial lag is exact", lag},
		{"random transactions result in equal copies", random},
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
	next   photos.ID // last id of a new record
}

// member is a node and a store that uses only this node.
type member struct {
	Node
	kit   *kit
	name  string
	store *store.Store
}

func (k *kit) id() photos.ID { k.next++; return k.next }

// start starts a node.
func (k *kit) start(name string, knobs sut.Knobs, role sut.Replication) *member {
	k.t.Helper()
	c := &member{Node: k.engine.Start(k.t, name, knobs, role), kit: k, name: name}
	k.t.Cleanup(func() { c.Kill(k.t) })
	var err error
	config := store.Config{Databases: []sut.Peer{c.peer()}, Password: c.Secret(), MaxConns: 8}
	if c.store, err = store.Open(config); err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(c.store.Close)
	return c
}

// pair starts a primary and a replica, and waits until the replica serves.
func (k *kit) pair(knobs sut.Knobs) (primary, replica *member) {
	k.t.Helper()
	primary = k.start("db-1", knobs, sut.Replication{Epoch: 1})
	replica = k.start("db-2", knobs, sut.Replication{Epoch: 1, Primary: primary.at()})
	replica.awaitServing("db-1")
	return primary, replica
}

func (c *member) peer() sut.Peer { return sut.Peer{Node: c.name, Address: c.Address()} }

func (c *member) at() *sut.Peer {
	p := c.peer()
	return &p
}

// admin gets the node's replication status, or puts a replication role.
func (c *member) admin(method string, document any) (code int, status sut.ReplicationStatus, text string) {
	c.kit.t.Helper()
	code, text = c.ask(method, sut.ReplicationPath, document, &status)
	return code, status, text
}

// ask sends a request to the node's admin address. It decodes the body of a 200 into
// answer.
func (c *member) ask(method, path string, document, answer any) (code int, text string) {
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
	req.Header.Set("Authorization", c.Secret().Bearer())
	response, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = response.Body.Close() }() // read only
	received, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode == http.StatusOK {
		err = json.Unmarshal(received, answer)
	}
	if err != nil {
		c.kit.t.Fatalf("%s: %v: %s", c.name, err, received)
	}
	return response.StatusCode, string(received)
}

func (c *member) status() sut.ReplicationStatus {
	c.kit.t.Helper()
	_, status, _ := c.admin(http.MethodGet, nil)
	return status
}

// setRole gives the node a replication role.
func (c *member) setRole(role sut.Replication) {
	c.kit.t.Helper()
	if code, _, text := c.admin(http.MethodPut, role); code != http.StatusOK {
		c.kit.t.Fatalf("%s: set role %+v: %d %s", c.name, role, code, text)
	}
}

// eventually waits for a condition on the node's status.
func (c *member) eventually(what string, holds func(sut.ReplicationStatus) bool) sut.ReplicationStatus {
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
	c.kit.t.Fatalf("%s: condition not met within %v: %s; last status: %s", c.name, patience, what, last)
	return sut.ReplicationStatus{}
}

func (c *member) awaitServing(primary string) {
	c.kit.t.Helper()
	c.eventually("it serves", func(s sut.ReplicationStatus) bool {
		return s.Serves && s.Connected && s.Following == primary
	})
}

// photo is the id of the seeded photo with an index, from 1.
func (k *kit) photo(index int) photos.ID { return photos.PhotoID(index, k.engine.Counts()) }

// like likes a photo by its index and returns the acknowledged version.
func (c *member) like(photo int) int64 {
	c.kit.t.Helper()
	version, err := c.store.Like(context.Background(), c.kit.photo(photo), 1)
	if err != nil {
		c.kit.t.Fatalf("%s: %v", c.name, err)
	}
	return version
}

// awaitVersion waits until the node has this or a later version of a photo.
func (c *member) awaitVersion(photo int, version int64) {
	c.kit.t.Helper()
	c.eventually(fmt.Sprintf("it has version %d of photo %d", version, photo), func(sut.ReplicationStatus) bool {
		p, err := c.store.Photo(context.Background(), c.kit.photo(photo))
		return err == nil && p.Version >= version
	})
}

// sameAs waits until the node holds the same data as another one. The other node must not
// change meanwhile.
func (c *member) sameAs(other *member) {
	c.kit.t.Helper()
	want, err := other.store.Digest(context.Background())
	if err != nil {
		c.kit.t.Fatal(err)
	}
	c.eventually("it holds the same data as "+other.name, func(sut.ReplicationStatus) bool {
		got, err := c.store.Digest(context.Background())
		return err == nil && got == want
	})
}
