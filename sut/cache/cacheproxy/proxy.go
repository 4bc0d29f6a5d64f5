// Package cacheproxy is the caching proxy of a cache host. It loads missing records
// from the database (read-through). It also writes records, either at once
// (write-through) or later in batches (write-back). It keeps its values in the
// embedded cache of the same process or in a native server beside it. Clients speak
// RESP to it; Commands lists the commands.
//
// Each key belongs to one cache host, so one proxy sees all loads and writes of a key.
// This prevents a race of look-aside: a value that was read before a write is never
// stored after that write. Single flight is exact for the same reason: one load serves
// all concurrent misses of a key, across all web hosts.
//
// Write-back acknowledges likes, comments and renames as soon as they are in memory.
// It merges all writes of a record, and flushes many records in one transaction.
// Writes that are not flushed are lost when the host dies, although they were
// acknowledged. That is the price of the strategy, and it is reported. The backlog is
// separate from the cached values, so eviction cannot lose it. New photos and
// deletions are always written through, because their image bytes are also written at
// once.
//
// All methods may be called concurrently. Usual order of calls: New, Commands,
// SetMoving when cache hosts are added or removed, Close. Times to live are
// time.Duration values.
package cacheproxy

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/singleflight"

	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/photos"
)

// Values stores the cached values: opaque bytes by key.
type Values interface {
	Get(ctx context.Context, key string) (value []byte, found bool, err error)
	// Set stores a value. The time to live is greater than 0.
	Set(ctx context.Context, key string, value []byte, ttl time.Duration) error
	Delete(ctx context.Context, key string) error
}

// Records is the database behind the cache.
type Records interface {
	photos.Records
	// WriteBack stores records in the state that the writes left them in. It returns
	// the ids of records that were deleted, or changed by another writer, since their
	// Base version. A record with Resent set may be stored already.
	WriteBack(ctx context.Context, written []photos.PendingWrite) (refused []photos.ID, err error)
}

// Config is the configuration of a proxy.
type Config struct {
	Values  Values
	Records Records
	// TTL is the time to live of photos and users. FeedTTL is that of lists of photos,
	// which writes do not invalidate; 0 = lists are not cached.
	TTL, FeedTTL time.Duration
	// SingleFlight merges concurrent misses of a key into one load.
	SingleFlight bool
	// FlushInterval is the time between two flushes of write-back; 0 = all writes are
	// written through.
	FlushInterval time.Duration
	Timeout       time.Duration // for all the work of one command; 0 = 5 s
	Registry      prometheus.Registerer
	Log           *slog.Logger
}

// Proxy is the caching proxy of one cache host.
type Proxy struct {
	config  Config
	metrics metrics
	flights singleflight.Group
	stripes [stripeCount]stripe
	backlog *backlog // nil = all writes are written through

	flushLock      chan struct{} // full while a flush holds the lock
	batchLimit     int           // rows of the next batch; guarded by flushLock
	flushRequested chan struct{} // wakes the flusher before its interval ends
	stopFlusher    context.CancelFunc
	flusher        sync.WaitGroup
}

// New returns a proxy. With write-back it starts the flusher.
func New(c Config) (*Proxy, error) {
	c.Timeout = cmp.Or(c.Timeout, 5*time.Second)
	switch {
	case c.Values == nil || c.Records == nil || c.Log == nil || c.Registry == nil:
		return nil, errors.New("cacheproxy: Values, Records, Log and Registry are required")
	case c.TTL <= 0 || c.FeedTTL < 0:
		return nil, fmt.Errorf("cacheproxy: TTL is %v, want more than 0; FeedTTL is %v, want 0 or more",
			c.TTL, c.FeedTTL)
	case c.FlushInterval < 0 || c.Timeout < 0:
		return nil, fmt.Errorf("cacheproxy: FlushInterval is %v and Timeout is %v: want 0 or more",
			c.FlushInterval, c.Timeout)
	}
	p := &Proxy{
		config: c, flushLock: make(chan struct{}, 1), batchLimit: maxBatchRows, flushRequested: make(chan struct{}, 1),
	}
	for i := range p.stripes {
		p.stripes[i].locked = make(chan struct{}, 1)
	}
	var flusherCtx context.Context
	flusherCtx, p.stopFlusher = context.WithCancel(context.Background())
	if c.FlushInterval > 0 {
		p.backlog = newBacklog()
	}
	p.metrics = newMetrics(p.backlog)
	if err := p.metrics.register(c.Registry); err != nil {
		p.stopFlusher()
		return nil, fmt.Errorf("cacheproxy: %w", err)
	}
	if p.backlog != nil {
		p.flusher.Go(func() { p.flushLoop(flusherCtx) })
	}
	return p, nil
}

// Close flushes all acknowledged writes and stops the proxy. When it returns nil, later
// writes are refused. When ctx ends first, the error contains the number of unflushed
// writes; the caller may call Close again, or lose these writes.
func (p *Proxy) Close(ctx context.Context) error {
	p.stopFlusher()
	p.flusher.Wait()
	if p.backlog == nil {
		return nil
	}
	return p.flushUntil(ctx, p.backlog.closeIfEmpty)
}

// SetMoving turns write-back off while keys move between hosts, and on again
// afterwards. The new host of a key does not know the backlog of the old one, so all
// writes are written through meanwhile. SetMoving(ctx, true) returns when the backlog
// is flushed, or an error when ctx ends first.
func (p *Proxy) SetMoving(ctx context.Context, moving bool) error {
	if p.backlog == nil {
		return nil
	}
	p.backlog.setPaused(moving)
	if !moving {
		return nil
	}
	return p.flushUntil(ctx, func() bool { return p.backlog.count() == 0 })
}

// flushUntil repeats flushes until done returns true, or until ctx ends.
func (p *Proxy) flushUntil(ctx context.Context, done func() bool) error {
	retry := time.NewTicker(min(p.config.FlushInterval, maxFlushRetry))
	defer retry.Stop()
	for {
		err := p.flush(ctx)
		switch {
		case done():
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("cacheproxy: %d acknowledged writes were not flushed: %w",
				p.backlog.count(), errors.Join(err, ctx.Err()))
		case err != nil:
			select {
			case <-retry.C:
			case <-ctx.Done():
			}
		}
	}
}

// maxFlushRetry is the longest pause before flushUntil retries.
const maxFlushRetry = 100 * time.Millisecond

// stripeCount is the number of stripes. A stripe is a set of keys with a common lock.
const stripeCount = 1024

// stripe is the lock of a set of keys. A goroutine holds it while it writes a key, and
// while it stores a loaded value.
type stripe struct {
	locked chan struct{} // full while a goroutine holds the lock
	writes uint64        // number of writes so far; guarded by locked
}

func (p *Proxy) stripe(key string) *stripe {
	h := uint32(2166136261) // FNV-1a
	for i := range len(key) {
		h = (h ^ uint32(key[i])) * 16777619
	}
	return &p.stripes[h%stripeCount]
}

func (s *stripe) lock(ctx context.Context) error {
	select {
	case s.locked <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: timed out waiting for other writes of the same record: %w",
			photos.ErrUnavailable, ctx.Err())
	}
}

func (s *stripe) unlock() { <-s.locked }

// Get returns the cached value of a key. It never loads.
func (p *Proxy) Get(ctx context.Context, key string) (value []byte, found bool, err error) {
	if value, found := p.backlog.value(key); found {
		return value, true, nil
	}
	return p.config.Values.Get(ctx, key)
}

// Set stores a value that a client has read from the database. It does nothing when
// the key has unflushed writes, because these are newer.
func (p *Proxy) Set(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	s := p.stripe(key)
	if err := s.lock(ctx); err != nil {
		return err
	}
	defer s.unlock()
	if _, newer := p.backlog.value(key); newer {
		return nil
	}
	return p.config.Values.Set(ctx, key, value, ttl)
}

// Delete removes the cached value of a key after a write that bypassed the proxy.
func (p *Proxy) Delete(ctx context.Context, key string) error {
	s := p.stripe(key)
	if err := s.lock(ctx); err != nil {
		return err
	}
	defer s.unlock()
	p.discardLoads(s, key)
	return p.config.Values.Delete(ctx, key)
}

// discardLoads makes loads that started before a write obsolete: they do not store
// their value, and later callers do not share it. The caller holds the stripe of the
// key.
func (p *Proxy) discardLoads(s *stripe, key string) {
	s.writes++
	p.flights.Forget(key)
}

// Fetch returns the encoded record of a key. hit is true when the cache had it;
// otherwise the record was loaded from the database.
func (p *Proxy) Fetch(ctx context.Context, text string) (value []byte, hit bool, err error) {
	key, err := cache.ParseKey(text)
	if err != nil {
		return nil, false, err
	}
	// An error of the cached values counts as a miss: the database has the record.
	if value, found, err := p.Get(ctx, text); err == nil && found {
		return value, true, nil
	}
	if !p.config.SingleFlight {
		value, err := p.load(ctx, key)
		return value, false, err
	}
	loaded, err, _ := p.flights.Do(text, func() (any, error) {
		// Another load may have ended between the miss and this call. The second Get
		// prevents that the record is loaded twice.
		if value, found, err := p.Get(ctx, text); err == nil && found {
			return value, nil
		}
		return p.load(ctx, key)
	})
	value, _ = loaded.([]byte)
	return value, false, err
}

// load reads a record from the database. It stores the record unless the key was
// written during the read.
func (p *Proxy) load(ctx context.Context, key cache.Key) ([]byte, error) {
	text := key.String()
	s := p.stripe(text)
	if err := s.lock(ctx); err != nil {
		return nil, err
	}
	writesBefore := s.writes
	// A write may have been added since the caller missed. It may be flushed during the
	// read below. Without this check, the older record from the database would be
	// returned.
	newer, found := p.backlog.value(text)
	s.unlock()
	if found {
		return newer, nil
	}
	p.metrics.loads.Inc()
	record, ttl, err := p.readRecord(ctx, key)
	if err != nil {
		return nil, err
	}
	value, err := json.Marshal(record)
	if err != nil || ttl == 0 {
		return value, err
	}
	if err := s.lock(ctx); err != nil {
		return nil, err
	}
	defer s.unlock()
	if newer, found = p.backlog.value(text); found {
		return newer, nil
	}
	if s.writes == writesBefore {
		p.store(ctx, text, value, ttl)
	}
	return value, nil
}

// readRecord reads the record or the list of a key from the database. It also returns
// the time to live.
func (p *Proxy) readRecord(ctx context.Context, key cache.Key) (record any, ttl time.Duration, err error) {
	switch key.Kind {
	case cache.PhotoRecord:
		record, err = p.config.Records.Photo(ctx, key.ID)
		return record, p.config.TTL, err
	case cache.UserRecord:
		record, err = p.config.Records.User(ctx, key.ID)
		return record, p.config.TTL, err
	case cache.Feed:
		record, err = p.config.Records.Feed(ctx, key.ID, key.Limit)
	default:
		record, err = p.config.Records.Newest(ctx, key.Limit)
	}
	return record, p.config.FeedTTL, err
}

// store caches a value. When that fails, it removes the old value of the key. When
// both fail, clients read the old value until it expires.
func (p *Proxy) store(ctx context.Context, key string, value []byte, ttl time.Duration) {
	if err := p.config.Values.Set(ctx, key, value, ttl); err != nil {
		p.metrics.errors.Inc()
		p.remove(ctx, key)
	}
}

func (p *Proxy) remove(ctx context.Context, key string) {
	if err := p.config.Values.Delete(ctx, key); err != nil {
		p.metrics.errors.Inc()
	}
}
