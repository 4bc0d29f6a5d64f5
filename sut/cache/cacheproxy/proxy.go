// Package cacheproxy is what a cache host does by itself: it loads records that it
// does not have (read-through), and writes them, at once (write-through) or later in
// batches (write-back). It stands before the values of the cache, which are those of
// the embedded node or those of a server beside it, and is asked over RESP, by the
// commands that Commands lists.
//
// All that is known of a key is at one host, so that here, unlike with look-aside, a
// value that was read before a write cannot be stored after it: loads and writes of a
// key know of each other. Single flight is exact for the same reason: of all who miss
// a key at a time, on however many web hosts, one loads it.
//
// Write-back holds likes, comments and renames in memory, as the state of the record
// and the comments that were added, for a short time, and writes many in one
// transaction, those of one record as one. Whatever is not flushed is lost when the
// host dies, although it was acknowledged: that is the price of the strategy, and is
// reported. It is not among the values, so that no eviction can lose it. New photos
// and deletions are written through: they come with bytes that are written at once,
// too.
//
// All methods may be called concurrently. Usual order of calls: New, Commands,
// SetMoving when cache hosts come or go, Close.
// Times to live are durations; contexts bound every call.
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

// Values is where the cache keeps what it has: opaque texts by key.
type Values interface {
	Get(ctx context.Context, key string) (value []byte, found bool, err error)
	// Set stores a value for some time, more than 0.
	Set(ctx context.Context, key string, value []byte, ttl time.Duration) error
	Delete(ctx context.Context, key string) error
}

// Records is the store of records behind the cache.
type Records interface {
	photos.Records
	// WriteBack stores records as writes have left them, and names those that are gone
	// or that somebody else has written since. What is marked as resent may be there
	// already.
	WriteBack(ctx context.Context, written []photos.Written) (refused []photos.ID, err error)
}

// Config is what a front is made of.
type Config struct {
	Values  Values
	Records Records
	// TTL is how long a photo or a user is kept, FeedTTL a list of photos, which no
	// write removes; 0 = lists are not kept.
	TTL, FeedTTL time.Duration
	// SingleFlight has one of several requests that miss a key at a time load it, for
	// all of them.
	SingleFlight bool
	// FlushInterval is the time between two batches of write-back; 0 = everything is
	// written through.
	FlushInterval time.Duration
	// MaxUnflushed is how many records may wait to be flushed; who writes another one
	// then waits, too. 0 = 10,000.
	MaxUnflushed int
	Timeout      time.Duration // of everything that a command does; 0 = 5 s
	Registry     prometheus.Registerer
	Log          *slog.Logger
}

// Proxy loads and writes what a cache host is asked for.
type Proxy struct {
	config  Config
	figures figures
	flights singleflight.Group
	stripes [stripes]stripe
	pending *pending // nil = everything is written through

	flushing chan struct{} // held by who writes back
	rows     int           // that the next batch may have; the holder of flushing may change it
	urgent   chan struct{} // asks the flusher to begin
	stop     context.CancelFunc
	flusher  sync.WaitGroup
}

// New returns a front; with write-back it begins to flush.
func New(c Config) (*Proxy, error) {
	c.Timeout = cmp.Or(c.Timeout, 5*time.Second)
	c.MaxUnflushed = cmp.Or(c.MaxUnflushed, 10_000)
	switch {
	case c.Values == nil || c.Records == nil || c.Log == nil || c.Registry == nil:
		return nil, errors.New("cacheproxy: values, records, a log and a registry are needed")
	case c.TTL <= 0 || c.FeedTTL < 0:
		return nil, fmt.Errorf("cacheproxy: times to live of %v and %v: want more than 0, and 0 or more", c.TTL, c.FeedTTL)
	case c.FlushInterval < 0 || c.MaxUnflushed < 0 || c.Timeout < 0:
		return nil, errors.New("cacheproxy: negative limit")
	}
	f := &Proxy{config: c, flushing: make(chan struct{}, 1), rows: batchRows, urgent: make(chan struct{}, 1)}
	for i := range f.stripes {
		f.stripes[i].held = make(chan struct{}, 1)
	}
	var back context.Context
	back, f.stop = context.WithCancel(context.Background())
	if c.FlushInterval > 0 {
		f.pending = newPending(c.MaxUnflushed)
	}
	f.figures = newFigures(f.pending)
	if err := f.figures.register(c.Registry); err != nil {
		f.stop()
		return nil, fmt.Errorf("cacheproxy: %w", err)
	}
	if f.pending != nil {
		f.flusher.Go(func() { f.flushEach(back) })
	}
	return f, nil
}

// Close flushes what was acknowledged, and ends: a write that is still under way then is
// not acknowledged. The error says how many writes are lost because the context ended
// before.
func (f *Proxy) Close(ctx context.Context) error {
	f.stop()
	f.flusher.Wait()
	if f.pending == nil {
		return nil
	}
	return f.flushUntil(ctx, f.pending.seal)
}

// SetMoving says whether keys are changing their hosts. While they are, everything is
// written through, since their next host does not know what this one holds back; it
// returns when all of that is flushed, or with an error when ctx ends before.
func (f *Proxy) SetMoving(ctx context.Context, moving bool) error {
	if f.pending == nil {
		return nil
	}
	f.pending.pause(moving)
	if !moving {
		return nil
	}
	return f.flushUntil(ctx, func() bool { return f.pending.count() == 0 })
}

// flushUntil flushes until it is done, which is asked after each attempt.
func (f *Proxy) flushUntil(ctx context.Context, done func() bool) error {
	pause := time.NewTicker(min(f.config.FlushInterval, flushPause))
	defer pause.Stop()
	for {
		err := f.flush(ctx)
		switch {
		case done():
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("cacheproxy: %d acknowledged writes were not flushed: %w",
				f.pending.count(), errors.Join(err, ctx.Err()))
		case err != nil:
			select {
			case <-pause.C:
			case <-ctx.Done():
			}
		}
	}
}

// flushPause is the time between two attempts to flush everything, at most.
const flushPause = 100 * time.Millisecond

// stripes is into how many parts keys are divided, each with a lock of its own.
const stripes = 1024

// stripe is held by who writes a key of it, or stores a value that was read.
type stripe struct {
	held   chan struct{}
	writes uint64 // that there were; the holder may read and change it
}

func (f *Proxy) stripe(key string) *stripe {
	h := uint32(2166136261) // FNV-1a
	for i := range len(key) {
		h = (h ^ uint32(key[i])) * 16777619
	}
	return &f.stripes[h%stripes]
}

// hold waits for a stripe.
func (s *stripe) hold(ctx context.Context) error {
	select {
	case s.held <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: others write the same record: %w", photos.ErrUnavailable, ctx.Err())
	}
}

func (s *stripe) release() { <-s.held }

// Get returns what there is of a key, and loads nothing.
func (f *Proxy) Get(ctx context.Context, key string) (value []byte, found bool, err error) {
	if value, found := f.pending.text(key); found {
		return value, true, nil
	}
	return f.config.Values.Get(ctx, key)
}

// Set stores a value that somebody else has read. What has been written and not
// flushed is newer, and stays.
func (f *Proxy) Set(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	s := f.stripe(key)
	if err := s.hold(ctx); err != nil {
		return err
	}
	defer s.release()
	if _, newer := f.pending.text(key); newer {
		return nil
	}
	return f.config.Values.Set(ctx, key, value, ttl)
}

// Delete removes a value that a write elsewhere has made old.
func (f *Proxy) Delete(ctx context.Context, key string) error {
	s := f.stripe(key)
	if err := s.hold(ctx); err != nil {
		return err
	}
	defer s.release()
	f.written(s, key)
	return f.config.Values.Delete(ctx, key)
}

// written notes a write that is done: what was read before it is neither stored nor
// given to those who ask from now on. The holder of the key's stripe calls it.
func (f *Proxy) written(s *stripe, key string) {
	s.writes++
	f.flights.Forget(key)
}

// Fetch returns the text of a record, from the cache or, when it has none, from the
// records; hit says which.
func (f *Proxy) Fetch(ctx context.Context, text string) (value []byte, hit bool, err error) {
	key, err := cache.ParseKey(text)
	if err != nil {
		return nil, false, err
	}
	// Values that cannot be asked are not there: the records are.
	if value, found, err := f.Get(ctx, text); err == nil && found {
		return value, true, nil
	}
	if !f.config.SingleFlight {
		value, err := f.load(ctx, key)
		return value, false, err
	}
	loaded, err, _ := f.flights.Do(text, func() (any, error) {
		// Who missed just before another one had loaded it comes here after that.
		if value, found, err := f.Get(ctx, text); err == nil && found {
			return value, nil
		}
		return f.load(ctx, key)
	})
	value, _ = loaded.([]byte)
	return value, false, err
}

// load reads a record and keeps it, unless it was written meanwhile.
func (f *Proxy) load(ctx context.Context, key cache.Key) ([]byte, error) {
	text := key.String()
	s := f.stripe(text)
	if err := s.hold(ctx); err != nil {
		return nil, err
	}
	before := s.writes
	// Asked again here: what was written since the caller missed it may be flushed while
	// the records are read, and would then be covered by an older value.
	newer, found := f.pending.text(text)
	s.release()
	if found {
		return newer, nil
	}
	f.figures.loads.Inc()
	record, ttl, err := f.read(ctx, key)
	if err != nil {
		return nil, err
	}
	value, err := json.Marshal(record)
	if err != nil || ttl == 0 {
		return value, err
	}
	if err := s.hold(ctx); err != nil {
		return nil, err
	}
	defer s.release()
	if newer, found = f.pending.text(text); found {
		return newer, nil
	}
	if s.writes == before {
		f.keep(ctx, text, value, ttl)
	}
	return value, nil
}

// read reads what a key stands for from the records, with its time to live.
func (f *Proxy) read(ctx context.Context, key cache.Key) (record any, ttl time.Duration, err error) {
	switch key.Kind {
	case cache.PhotoRecord:
		record, err = f.config.Records.Photo(ctx, key.ID)
		return record, f.config.TTL, err
	case cache.UserRecord:
		record, err = f.config.Records.User(ctx, key.ID)
		return record, f.config.TTL, err
	case cache.Feed:
		record, err = f.config.Records.Feed(ctx, key.ID, key.Limit)
	default:
		record, err = f.config.Records.Newest(ctx, key.Limit)
	}
	return record, f.config.FeedTTL, err
}

// keep stores a value. When that fails, whatever the values had is removed; when that
// fails, too, it is old until its time is over.
func (f *Proxy) keep(ctx context.Context, key string, value []byte, ttl time.Duration) {
	if err := f.config.Values.Set(ctx, key, value, ttl); err != nil {
		f.figures.errors.Inc()
		f.drop(ctx, key)
	}
}

func (f *Proxy) drop(ctx context.Context, key string) {
	if err := f.config.Values.Delete(ctx, key); err != nil {
		f.figures.errors.Inc()
	}
}
