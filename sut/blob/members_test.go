package blob_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/blob"
	"github.com/stagebench/stagebench/sut/photos"
)

// seeded is how many photos a member begins with, and uploaded is below the ids of
// others.
const (
	seeded   = 40
	uploaded = 1 << 50
)

func dataSet() sut.DataCounts { return sut.DataCounts{Users: 7, Photos: seeded} }

func seededID(index int) photos.ID { return photos.PhotoID(index, dataSet()) }

// member is a blob host that begins with a copy of the data set.
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
		Dir: m.dir, Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry(), Node: m.peer.Node, Copies: copies, Seeded: dataSet(),
	})
	server := httptest.NewServer(m.Handler)
	t.Cleanup(server.Close)
	m.peer.Address = server.Listener.Addr().String()
	return m
}

// become changes the members step by step, as whoever runs the hosts does.
func become(t *testing.T, rings []*blob.Ring, from, to []*member) {
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
	tellMembers := func(moving bool) {
		for _, m := range all {
			if err := m.SetMembers(t.Context(), listed, moving); err != nil {
				t.Errorf("tell %s: %v", m.peer.Node, err)
			}
		}
	}
	tellRings := func(peers []sut.Peer) {
		for _, r := range rings {
			if err := r.SetPeers(t.Context(), peers); err != nil {
				t.Error(err)
			}
		}
	}
	tellMembers(true)
	tellRings(listed)
	tellMembers(false)
	tellRings(staying)
}

// Hosts come and go under load: no request fails, no object is lost, none that was
// deleted comes back, and in the end each object is where it belongs.
func TestMembersChangeUnderLoad(t *testing.T) {
	for _, copies := range []int{1, 2} {
		t.Run(fmt.Sprint(copies, " copies"), func(t *testing.T) { membersChange(t, copies) })
	}
}

func membersChange(t *testing.T, copies int) {
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
		r, err := blob.NewRing(blob.RingConfig{Peers: peers, Copies: copies, Client: blob.ClientConfig{Timeout: patience}, Registry: prometheus.NewRegistry()})
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
		l.delete(t) // of the data set
		become(t, rings, first, members)
		l.delete(t)
		become(t, rings, members, members[1:])
		l.delete(t)
		become(t, rings, members[1:], first)
	}
	stop()
	for id, kept := range l.kept {
		_, err := rings[0].Get(t.Context(), id, photos.VariantThumb)
		if kept && err != nil || !kept && !errors.Is(err, photos.ErrNotFound) {
			t.Errorf("photo %d, kept %t: %v", id, kept, err)
		}
		for _, m := range members {
			_, err := m.dir.Head(t.Context(), id, photos.VariantThumb)
			belongs := slices.Contains(first, m) // as many as there are copies
			if there := err == nil; !id.Seeded() && there && !kept || kept && belongs && !there {
				t.Errorf("photo %d, kept %t, is on %s: %t", id, kept, m.peer.Node, there)
			}
		}
	}
}

// blobLoad writes, reads and deletes objects.
type blobLoad struct {
	rings []*blob.Ring
	last  atomic.Int64

	mu   sync.Mutex
	kept map[photos.ID]bool // false = deleted
}

// patience bounds what nothing comes near to.
const patience = 20e9

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

// read reads an object that nobody deletes meanwhile.
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

// delete deletes some photos of the data set that nobody reads.
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

// A host that cannot hand over says so, loses nothing, and does it when it is told again.
func TestHandOverIsRepeated(t *testing.T) {
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
		t.Errorf("with nobody to take it: %v", err)
	}
	if err := here.SetMembers(t.Context(), []sut.Peer{leaving, there.peer}, false); err != nil {
		t.Error(err)
	}
	for id := photos.ID(uploaded); id < uploaded+20; id++ {
		for _, m := range []*member{here, there} { // who leaves keeps serving
			if _, err := m.dir.Head(t.Context(), id, photos.VariantThumb); err != nil {
				t.Errorf("%s: %v", m.peer.Node, err)
			}
		}
	}
}
