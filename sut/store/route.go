package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
)

// A request for the rows of a bucket goes to the shard that owns the bucket. The shards themselves know what they
// own, in their table owned, and a Store has a copy of it. The copy may be old, so each operation carries a guard: if
// the shard does not own the bucket any more, or must not write it now, the operation changes nothing. The Store then
// reads the owners again and repeats the operation, until QueryTimeout. So a bucket that moves delays requests and
// fails none.

// errRefused is the error of an operation on rows that the shard does not own now, or must not write now.
var errRefused = errors.New("the shard does not own the rows now")

// retryFirst and retryMost bound the time between two attempts of an operation that was refused. It doubles. The first
// repetition comes at once.
const (
	retryFirst = time.Millisecond
	retryMost  = 50 * time.Millisecond
)

// askPatience bounds the wait for one shard that is asked what it owns, so that it does not hold up the others.
const askPatience = time.Second

// refused reports whether a shard refused an operation.
func refused(err error) bool { return errors.Is(err, errRefused) || isState(err, checkViolation) }

// guard lists the buckets that a shard must own. The zero value is the guard of operations without shards.
type guard struct {
	buckets []photos.Bucket
	writes  bool
}

// queue adds the statements of the guard to a batch that has no other statements yet.
func (g guard) queue(b *pgx.Batch) {
	for _, bucket := range g.buckets {
		if g.writes { // violates a constraint, which ends the transaction, if the bucket must not be written
			b.Queue(sqlGuardWrite, int64(bucket), time.Now().UnixMicro())
			continue
		}
		b.Queue(sqlGuardRead, int64(bucket)).QueryRow(func(row pgx.Row) error {
			var owned int64
			if err := row.Scan(&owned); errors.Is(err, pgx.ErrNoRows) {
				return errRefused
			} else {
				return err
			}
		})
	}
}

// on is a database, and the guard of an operation on it.
type on struct {
	*database
	guard guard
}

// row runs a statement that returns at most one row.
func (d on) row(ctx context.Context, scan func(pgx.Row) error, sql string, args ...any) error {
	if d.guard.buckets == nil {
		return scan(d.pool.QueryRow(ctx, sql, args...))
	}
	b := d.batch()
	b.Queue(sql, args...).QueryRow(scan)
	return d.pool.SendBatch(ctx, &b.Batch).Close()
}

// value runs a statement that returns at most one number, and stores it in dest.
func (d on) value(ctx context.Context, dest *int64, sql string, args ...any) error {
	return d.row(ctx, func(row pgx.Row) error { return row.Scan(dest) }, sql, args...)
}

// first returns the databases that have what is not sharded: the first shard.
func (s *Store) first() *databases { return (*s.used.Load())[0] }

// countShards counts requests by the number of shards that they need, and operations by shard.
func (s *Store) countShards() error {
	s.operations = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "stagebench_store_shard_operations_total",
		Help: "Operations on the records of one shard.",
	}, []string{"shard"})
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "stagebench_store_requests_total",
		Help: "Requests for records of a sharded database, by the shards that they need: one or many.",
	}, []string{"shards"})
	for _, d := range *s.used.Load() { // a shard without operations counts, too
		s.operations.WithLabelValues(strconv.Itoa(d.shard))
	}
	s.one, s.many = requests.WithLabelValues("one"), requests.WithLabelValues("many")
	if s.config.Registry == nil {
		return nil
	}
	return errors.Join(s.config.Registry.Register(requests), s.config.Registry.Register(s.operations))
}

// BucketLoad returns the number of operations on the rows of each bucket so far.
func (s *Store) BucketLoad() []int64 {
	all := make([]int64, photos.Buckets)
	for b := range all {
		all[b] = s.load[b].Load()
	}
	return all
}

// route runs an operation at the shard that owns a bucket. It repeats the operation while shards refuse it.
func (s *Store) route(
	ctx context.Context, b photos.Bucket, do func(context.Context, *owners, *databases, guard) error,
) error {
	if !s.used.Load().sharded() {
		return do(ctx, nil, s.first(), guard{})
	}
	s.one.Inc()
	s.load[b].Add(1)
	return s.repeat(ctx, func(ctx context.Context, m *owners) error {
		d := s.used.Load().of(m.owner[b])
		if d == nil { // the bucket is between two shards
			return errRefused
		}
		s.operations.WithLabelValues(strconv.Itoa(d.shard)).Inc()
		return do(ctx, m, d, guard{buckets: []photos.Bucket{b}})
	})
}

// repeat runs an operation with the present owners, until it is not refused, or for QueryTimeout.
func (s *Store) repeat(ctx context.Context, do func(context.Context, *owners) error) error {
	limited, cancel := context.WithTimeout(ctx, s.config.QueryTimeout)
	defer cancel()
	var m *owners
	for wait := time.Duration(0); ; wait = min(2*wait+retryFirst, retryMost) {
		var err error
		if m, err = s.readOwners(limited, m); err != nil {
			return classify(ctx, err)
		}
		if err = do(limited, m); !refused(err) {
			return err
		}
		select {
		case <-time.After(wait):
		case <-limited.Done():
			if ctx.Err() != nil {
				return classify(ctx, ctx.Err())
			}
			return fmt.Errorf("%w: the rows move to another shard for longer than %v", photos.ErrUnavailable,
				s.config.QueryTimeout)
		}
	}
}

// owners is what a Store knows of the owners of all buckets. The value is immutable.
type owners struct {
	owner [photos.Buckets]int       // number of the shard; 0 = no shard owns the bucket now
	since map[int]int64             // by shard: the epoch of the last change of what it owns
	rows  map[int][]sut.ShardBucket // by shard
	whole bool                      // each bucket has an owner
}

// readOwners returns owners that are newer than old. Concurrent calls read them once.
func (s *Store) readOwners(ctx context.Context, old *owners) (*owners, error) {
	if now := s.owners.Load(); now != old && now != nil {
		return now, nil
	}
	// One caller reads for all, so the end of its request must not be an error of the others.
	result := s.refreshing.DoChan("", func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.config.QueryTimeout)
		defer cancel()
		read, err := s.askOwners(ctx, s.owners.Load())
		if err == nil {
			s.owners.Store(read)
		}
		return read, err
	})
	select {
	case r := <-result:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*owners), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// askOwners asks all shards what they own. A shard that does not answer has what it had.
func (s *Store) askOwners(ctx context.Context, old *owners) (*owners, error) {
	used := *s.used.Load()
	answers, errs := make([][]sut.ShardBucket, len(used)), make([]error, len(used))
	var all errgroup.Group
	for i, d := range used {
		all.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, askPatience)
			defer cancel()
			answers[i], errs[i] = s.owned(ctx, d)
			return nil
		})
	}
	_ = all.Wait() // the errors are in errs
	made := &owners{since: map[int]int64{}, rows: map[int][]sut.ShardBucket{}}
	for i, d := range used {
		switch {
		case errs[i] == nil:
			made.rows[d.shard] = answers[i]
		case old != nil && old.rows[d.shard] != nil:
			made.rows[d.shard] = old.rows[d.shard]
		case len(errs) == 1 || i == len(errs)-1 && len(made.rows) == 0:
			return nil, errors.Join(errs...)
		}
	}
	made.decide()
	return made, nil
}

// decide sets the owner of each bucket. If two shards own it, because a failover has forgotten a move, the newer one
// has it.
func (m *owners) decide() {
	var epochs [photos.Buckets]int64
	for shard, rows := range m.rows {
		for _, o := range rows {
			m.since[shard] = max(m.since[shard], o.Epoch)
			if o.Owned() && o.Epoch > epochs[o.Bucket] {
				m.owner[o.Bucket], epochs[o.Bucket] = shard, o.Epoch
			}
		}
	}
	m.whole = !slices.Contains(m.owner[:], 0)
}

// Buckets returns what the only shard of this store knows of buckets, in no order.
func (s *Store) Buckets(ctx context.Context) (all []sut.ShardBucket, err error) {
	defer wrap(&err, "buckets")
	return s.owned(ctx, s.first())
}

// owned reads what a shard owns from its primary, or from a replica.
func (s *Store) owned(ctx context.Context, d *databases) (all []sut.ShardBucket, err error) {
	order := append([]*database{d.primary}, d.replicas...)
	err = s.readFrom(ctx, order, guard{}, func(ctx context.Context, d on) error {
		rows, err := d.pool.Query(ctx, sqlOwned)
		if err != nil {
			return err
		}
		all, err = pgx.CollectRows(rows, scanOwned)
		return err
	})
	return all, err
}

func scanOwned(row pgx.CollectableRow) (o sut.ShardBucket, err error) {
	err = row.Scan(&o.Bucket, &o.Epoch, &o.State)
	return o, err
}

// query is a query that lists rows of all buckets: its text for one database, and for a shard, which leaves out the
// rows of buckets that the shard does not own.
type query struct {
	plain, shard string
	primary      bool // only primaries answer
}

// gather runs a query at all shards, and returns at most limit rows in the given order.
//
// Each row is found once, even while buckets move. Each shard answers with the rows of the buckets that it owns, and
// the answer counts only if what it owns is what the Store expects, before and after the query. So the answers of all
// shards are of one distribution of all buckets.
func gather[T any](
	ctx context.Context, s *Store, q query, limit int, scan func(pgx.Row) (T, error), order func(a, b T) int,
	bucket func(T) photos.Bucket, args ...any,
) (list []T, err error) {
	if limit <= 0 {
		return []T{}, nil
	}
	if !s.used.Load().sharded() {
		err = s.readFrom(ctx, s.readable(s.first()), guard{}, func(ctx context.Context, d on) error {
			rows, err := d.pool.Query(ctx, q.plain, args...)
			if err != nil {
				return err
			}
			list, err = collect(rows, limit, scan)
			return err
		})
		return list, err
	}
	s.many.Inc()
	answers := map[int]*answer[T]{} // by shard
	err = s.repeat(ctx, func(ctx context.Context, m *owners) error {
		if !m.whole {
			return errRefused
		}
		used := *s.used.Load()
		var all errgroup.Group // without a shared context: an answer stays valid if another shard refuses
		for _, d := range used {
			// The answer of an earlier attempt counts if the shard still owns what it owned then.
			if got := answers[d.shard]; got != nil && got.complete && got.since == m.since[d.shard] {
				continue
			}
			got := &answer[T]{since: m.since[d.shard]}
			answers[d.shard] = got
			all.Go(func() error {
				order := []*database{d.primary}
				if !q.primary {
					order = s.readable(d)
				}
				err := s.readFrom(ctx, order, guard{}, func(ctx context.Context, d on) error {
					var b pgx.Batch
					expect(&b, got.since)
					b.Queue(q.shard, args...).Query(func(rows pgx.Rows) (err error) {
						got.list, err = collect(rows, limit, scan)
						return err
					})
					expect(&b, got.since)
					return d.pool.SendBatch(ctx, &b).Close()
				})
				got.complete = err == nil
				return err
			})
		}
		if err := all.Wait(); err != nil {
			return err
		}
		list = nil
		for _, d := range used {
			for _, row := range answers[d.shard].list {
				// While a move is under way, or if a failover has forgotten one, two shards may own a bucket. The newer one
				// has it. Its answer has the same rows, so none is missing after the limit.
				if m.owner[bucket(row)] == d.shard {
					list = append(list, row)
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(list, order)
	return list[:min(limit, len(list))], nil
}

// answer is what a shard has answered, when it owned the buckets that it has owned since an epoch.
type answer[T any] struct {
	since    int64
	list     []T
	complete bool
}

// expect makes a batch fail unless the last change of what the shard owns was in the given epoch.
func expect(b *pgx.Batch, since int64) {
	b.Queue(sqlSince).QueryRow(func(row pgx.Row) error {
		var epoch int64
		if err := row.Scan(&epoch); err != nil {
			return err
		}
		if epoch != since {
			return errRefused
		}
		return nil
	})
}

func collect[T any](rows pgx.Rows, limit int, scan func(pgx.Row) (T, error)) ([]T, error) {
	return pgx.AppendRows(make([]T, 0, min(limit, 64)), rows,
		func(row pgx.CollectableRow) (T, error) { return scan(row) })
}

// shardName is the name of a shard for people.
func shardName(shard int) string { return "shard " + strconv.Itoa(shard) }

// group returns a list by the shard that owns the bucket of each value.
func group[T any](m *owners, list []T, bucket func(T) photos.Bucket) map[int][]T {
	groups := map[int][]T{}
	for _, v := range list {
		shard := m.owner[bucket(v)]
		groups[shard] = append(groups[shard], v)
	}
	return groups
}

// eachShard runs an operation at shards at the same time. groups has what each of them needs for it.
func eachShard[T any](s *Store, groups map[int][]T, do func(at *databases, group []T) error) error {
	used := s.used.Load()
	for shard := range groups {
		if used.of(shard) == nil { // a bucket is between two shards
			return errRefused
		}
	}
	var all errgroup.Group
	for shard, group := range groups {
		all.Go(func() error { return do(used.of(shard), group) })
	}
	return all.Wait()
}
