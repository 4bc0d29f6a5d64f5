package dbadmin

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/node/process"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/store"
)

const (
	// moverConns is the maximum number of connections to each database. Buckets move one by one.
	moverConns = 1
	maxLease   = time.Minute
)

// buckets moves buckets to a shard. The connections stay open between two moves.
type buckets struct {
	own    sut.Peer
	secret sut.Secret

	mu    sync.Mutex // held during each request: buckets move one by one
	store *store.Store
}

// AddBuckets adds the endpoint sut.BucketsPath of a database of a shard, own, to mux. close ends its connections.
func AddBuckets(mux *http.ServeMux, own sut.Peer, secret sut.Secret) (closeAll func()) {
	b := &buckets{own: own, secret: secret}
	mux.HandleFunc("GET "+sut.BucketsPath, func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		defer b.mu.Unlock()
		s, err := b.over([]sut.Peer{b.own})
		var known []sut.ShardBucket
		if err == nil {
			known, err = s.Buckets(r.Context())
		}
		if err != nil {
			process.SendError(w, http.StatusServiceUnavailable, err, "")
			return
		}
		process.SendJSON(w, http.StatusOK, known)
	})
	b.handle(mux, http.MethodPut, func(ctx context.Context, s *store.Store, m store.BucketMove) (any, error) {
		moved, err := s.MoveBucket(ctx, m)
		return sut.BucketMoved{Rows: moved.Rows, PauseNS: moved.Pause.Nanoseconds()}, err
	})
	b.handle(mux, http.MethodDelete, func(ctx context.Context, s *store.Store, m store.BucketMove) (any, error) {
		return struct{}{}, s.CleanBucket(ctx, m)
	})
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.store != nil {
			b.store.Close()
		}
	}
}

// handle adds the handler of a method that takes a sut.BucketMove.
func (b *buckets) handle(
	mux *http.ServeMux, method string, do func(context.Context, *store.Store, store.BucketMove) (any, error),
) {
	mux.HandleFunc(method+" "+sut.BucketsPath, func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		defer b.mu.Unlock()
		var m sut.BucketMove
		err := process.DecodeStrictly(r.Body, &m)
		if err == nil {
			err = checkMove(m)
		}
		if err != nil {
			process.SendError(w, http.StatusBadRequest, err, `send {"bucket": 7, "from": 1, "to": 2, "epoch": 2, `+
				`"lease_ns": 5000000000, "databases": [{"node": "db-1", "address": "127.0.0.1:5432", "shard": 1}, ...]}`)
			return
		}
		s, err := b.over(m.Databases)
		var done any
		if err == nil {
			done, err = do(r.Context(), s, store.BucketMove{
				Bucket: photos.Bucket(m.Bucket), From: m.From, To: m.To, Epoch: m.Epoch, Lease: time.Duration(m.LeaseNS),
				Breath: time.Duration(m.BreathNS),
			})
		}
		if err != nil {
			process.SendError(w, http.StatusServiceUnavailable, err, "try again with a higher epoch")
			return
		}
		process.SendJSON(w, http.StatusOK, done)
	})
}

func checkMove(m sut.BucketMove) error {
	switch {
	case m.Bucket < 0 || m.Bucket >= photos.Buckets:
		return fmt.Errorf("there is no bucket %d", m.Bucket)
	case m.From < 1 || m.To < 1:
		return fmt.Errorf("the bucket cannot move from shard %d to shard %d", m.From, m.To)
	case m.LeaseNS < 1 || m.LeaseNS > maxLease.Nanoseconds() || m.BreathNS < 0 || m.BreathNS > maxLease.Nanoseconds():
		return fmt.Errorf("a lease of %v or a breath of %v is not between 0 and %v", time.Duration(m.LeaseNS),
			time.Duration(m.BreathNS), maxLease)
	case len(m.Databases) == 0:
		return fmt.Errorf("there are no databases")
	}
	for _, p := range m.Databases {
		if p.Shard < 1 {
			return fmt.Errorf("database %s has no shard", p.Node)
		}
	}
	return process.CheckPeers(m.Databases...)
}

// over returns the store over some databases.
func (b *buckets) over(databases []sut.Peer) (s *store.Store, err error) {
	if b.store != nil {
		return b.store, b.store.SetDatabases(databases)
	}
	b.store, err = store.Open(store.Config{
		Databases: databases, Password: b.secret, MaxConns: moverConns, Name: "reshard",
	})
	return b.store, err
}
