package blob_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/blob"
	"github.com/stagebench/stagebench/sut/photos"
)

const (
	seeded   = 40      // photos of the initial data set
	uploaded = 1 << 50 // ids of uploaded photos start here
	// testTimeout bounds calls that are not expected to come near it.
	testTimeout = time.Minute
)

func dataSet() sut.DataCounts { return sut.DataCounts{Users: 7, Photos: seeded} }

func seededID(index int) photos.ID { return photos.PhotoID(index, dataSet()) }

// member is a blob node that starts with a copy of the data set.
type member struct {
	*blob.Handler
	dir  *blob.Dir
	peer sut.Peer
}

func newMember(t *testing.T, n, copies int) *member {
	t.Helper()
	m := &member{dir: openDir(t), peer: sut.Peer{Node: fmt.Sprintf("blob-%d", n)}}
	for i := range seeded {
		put(t, m.dir, seededID(1+i), fmt.Sprint(i))
	}
	m.Handler = blob.NewHandler(blob.HandlerConfig{
		Secret: secret,
		Dir:    m.dir, Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry(),
		Node: m.peer.Node, Copies: copies, Seeded: dataSet(),
	})
	server := httptest.NewServer(m.Handler)
	t.Cleanup(server.Close)
	m.peer.Address = server.Listener.Addr().String()
	return m
}

// changeMembers changes the members in the same steps as the harness.
func changeMembers(t *testing.T, rings []*blob.Ring, from, to []*member) {
	t.Helper()
	active := func(m *member) bool { return slices.Contains(to, m) }
	all := slices.Clone(to)
	var staying, listed []sut.Peer
	for _, m := range from {
		if !active(m) {
			all = append(all, m)
		}
	}
	for _, m := range all {
		p := m.peer
		if p.Draining = !active(m); !p.Draining {
			staying = append(staying, p)
		}
		listed = append(listed, p)
	}
	setMembers := func(moving bool) {
		for _, m := range all {
			if err := m.SetMembers(t.Context(), listed, moving); err != nil {
				t.Errorf("set the members of %s: %v", m.peer.Node, err)
			}
		}
	}
	setPeers := func(peers []sut.Peer) {
		for _, r := range rings {
			if err := r.SetPeers(t.Context(), peers); err != nil {
				t.Error(err)
			}
		}
	}
	setMembers(true)
	setPeers(listed)
	setMembers(false)
	setPeers(staying)
}

// Nodes are added and removed under load. No request may fail, no object may be lost and
// no deleted object may return. In the end each object is on its owners.
func TestMembersChangeUnderLoad(t *testing.T) {
	for _, copies := range []int{1, 2} {
		t.Run(fmt.Sprint(copies, " copies"), func(t *testing.T) { changeMembersUnderLoad(t, copies) })
	}
}

func changeMembersUnderLoad(t *testing.T, copies int) {
	var members []*member
	for n := range 4 {
		members = append(members, newMember(t, n+1, copies))
	}
	first := members[:copies]
	var peers []sut.Peer
	for _, m := range first {
		peers = append(peers, m.peer)
	}
	for _, m := range first {
		if err := m.SetMembers(t.Context(), peers, false); err != nil {
			t.Fatal(err)
		}
	}
	var rings []*blob.Ring
	for range 2 {
		r, err := blob.NewRing(blob.RingConfig{
			Secret: secret,
			Peers:  peers, Copies: copies, Registry: prometheus.NewRegistry(),
		}.WithTimeout(testTimeout))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(r.Close)
		rings = append(rings, r)
	}
	l := &blobLoad{rings: rings, kept: map[photos.ID]bool{}}
	for i := range seeded {
		l.kept[seededID(1+i)] = true
	}
	stop := l.run(t)
	for range 2 {
		l.delete(t)
		changeMembers(t, rings, first, members)
		l.delete(t)
		changeMembers(t, rings, members, members[1:])
		l.delete(t)
		changeMembers(t, rings, members[1:], first)
	}
	stop()
	for id, kept := range l.kept {
		_, err := rings[0].Get(t.Context(), id, photos.VariantThumb)
		if kept && err != nil || !kept && !errors.Is(err, photos.ErrNotFound) {
			t.Errorf("photo %d, kept %t: %v", id, kept, err)
		}
		for _, m := range members {
			_, err := m.dir.Head(t.Context(), id, photos.VariantThumb)
			owner := slices.Contains(first, m) // as many members as copies
			if stored := err == nil; !id.Seeded() && stored && !kept || kept && owner && !stored {
				t.Errorf("photo %d, kept %t, is on %s: %t", id, kept, m.peer.Node, stored)
			}
		}
	}
}

// blobLoad writes, reads and deletes objects until it is stopped.
type blobLoad struct {
	rings []*blob.Ring
	last  atomic.Int64 // newest id

	mu   sync.Mutex
	kept map[photos.ID]bool // false = deleted
}

func (l *blobLoad) run(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	l.last.Store(uploaded)
	var all sync.WaitGroup
	for i := range 4 {
		ring := l.rings[i%len(l.rings)]
		all.Go(func() {
			for ctx.Err() == nil {
				id := photos.ID(l.last.Add(1))
				if err := ring.Put(t.Context(), id, photos.VariantThumb, []byte("x")); err != nil {
					t.Errorf("put %d: %v", id, err)
				}
				for _, id := range []photos.ID{id, seededID(1 + int(id%(seeded/2))), uploaded + (id-uploaded)/2} {
					l.read(t, ring, id)
				}
				l.mu.Lock()
				l.kept[id] = id%3 != 0
				l.mu.Unlock()
				if id%3 == 0 {
					if err := ring.Delete(t.Context(), id, photos.VariantThumb); err != nil {
						t.Errorf("delete %d: %v", id, err)
					}
				}
			}
		})
	}
	return func() {
		cancel()
		all.Wait()
	}
}

// read reads an object, unless it was or will be deleted.
func (l *blobLoad) read(t *testing.T, ring *blob.Ring, id photos.ID) {
	l.mu.Lock()
	kept := l.kept[id]
	l.mu.Unlock()
	if !kept {
		return
	}
	if _, err := ring.Get(t.Context(), id, photos.VariantThumb); err != nil {
		t.Errorf("get %d: %v", id, err)
	}
}

// delete deletes three seeded photos that no reader uses.
func (l *blobLoad) delete(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	deleted := 0
	for i := seeded/2 + 1; i <= seeded && deleted < 3; i++ {
		id := seededID(i)
		if !l.kept[id] {
			continue
		}
		if err := l.rings[0].Delete(t.Context(), id, photos.VariantThumb); err != nil {
			t.Errorf("delete %d: %v", id, err)
		}
		l.kept[id] = false
		deleted++
	}
}

// A client deletes an object while a node pushes it to its new owners. The delete reaches
// the new owners before the push. The object must not return.
func TestDeleteDuringMove(t *testing.T) {
	for _, copies := range []int{1, 2} {
		t.Run(fmt.Sprint(copies, " copies"), func(t *testing.T) {
			from, id := newMember(t, 1, copies), photos.ID(uploaded)
			if err := from.SetMembers(t.Context(), []sut.Peer{from.peer}, false); err != nil {
				t.Fatal(err)
			}
			put(t, from.dir, id, "x")
			leaving := from.peer
			leaving.Draining = true
			peers := []sut.Peer{leaving}
			var to []*member
			for n := range copies {
				m := newMember(t, 2+n, copies)
				// The first push begins before the delete and ends after it.
				server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.Method == http.MethodPut {
						_ = from.dir.Delete(r.Context(), id, photos.VariantThumb) // absent after the first push
					}
					m.ServeHTTP(w, r)
				}))
				t.Cleanup(server.Close)
				m.peer.Address = server.Listener.Addr().String()
				to, peers = append(to, m), append(peers, m.peer)
			}
			if err := from.SetMembers(t.Context(), peers, false); err != nil {
				t.Error(err)
			}
			for _, m := range to {
				if _, err := m.dir.Head(t.Context(), id, photos.VariantThumb); !errors.Is(err, photos.ErrNotFound) {
					t.Errorf("the deleted object is on %s: %v", m.peer.Node, err)
				}
			}
		})
	}
}

// A node that cannot move its objects returns an error and loses nothing. The next call
// with the same members moves them.
func TestFailedMoveIsRepeated(t *testing.T) {
	here, there := newMember(t, 1, 1), newMember(t, 2, 1)
	if err := here.SetMembers(t.Context(), []sut.Peer{here.peer}, false); err != nil {
		t.Fatal(err)
	}
	for id := photos.ID(uploaded); id < uploaded+20; id++ {
		put(t, here.dir, id, "x")
	}
	away := there.peer
	away.Address = "127.0.0.1:1"
	leaving := here.peer
	leaving.Draining = true
	if err := here.SetMembers(t.Context(), []sut.Peer{leaving, away}, false); !errors.Is(err, photos.ErrUnavailable) {
		t.Errorf("with no node that can take the objects: %v", err)
	}
	if err := here.SetMembers(t.Context(), []sut.Peer{leaving, there.peer}, false); err != nil {
		t.Error(err)
	}
	for id := photos.ID(uploaded); id < uploaded+20; id++ {
		for _, m := range []*member{here, there} { // a draining node keeps its objects
			if _, err := m.dir.Head(t.Context(), id, photos.VariantThumb); err != nil {
				t.Errorf("%s: %v", m.peer.Node, err)
			}
		}
	}
}
