package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
)

// replicaPatience is how late the replicas of a shard may be when its buckets move.
const replicaPatience = 3 * time.Second

// BucketMove is the move of a bucket from one shard to another.
type BucketMove struct {
	Bucket   photos.Bucket
	From, To int // numbers of shards
	// Epoch is that of the copy and of the release. The target owns the bucket since the next one. Both are higher than
	// those of every earlier change.
	Epoch int64
	// Lease is how long the writes of the bucket may be held back. After that the move fails and changes nothing.
	Lease time.Duration
	// Breath is a wait between copy and fence. A host with a CPU budget may have used it up by the copy. If it has it
	// again when the fence begins, the writes wait for a shorter time.
	Breath time.Duration
	// OnStep is called before each step of MoveBucket; nil = nothing.
	OnStep func(step string)
}

// BucketMoved says what a move did.
type BucketMoved struct {
	Rows  int           // rows of the bucket
	Pause time.Duration // time for which writes of the bucket were held back
}

// MoveBucket moves a bucket while both shards serve. It has these steps, each of which is one transaction:
//
//	copy     the target empties the bucket and inserts its rows; both copies are compared
//	fence    the source refuses writes of the bucket; those that had begun have ended
//	compare  the bucket is copied again if it was written meanwhile
//	release  the source refuses reads, too, if the fence still holds
//	take     the target owns the bucket
//
// Between fence and take, writes of the bucket wait; between release and take, reads wait, too. The source keeps its
// rows until CleanBucket. Before take, all replicas of the source that answer have the release, so none of them can
// become a primary that owns the bucket, too.
//
// A move from a shard to itself takes back a bucket that the shard has released, and that no other shard owns. A move
// that was interrupted at any step is continued or undone by the next call for the same bucket. After an error the
// bucket may be without an owner until then. Calls for one bucket must not be concurrent.
func (s *Store) MoveBucket(ctx context.Context, m BucketMove) (moved BucketMoved, err error) {
	defer wrap(&err, "move bucket %d from shard %d to shard %d", m.Bucket, m.From, m.To)
	from, to := s.used.Load().of(m.From), s.used.Load().of(m.To)
	if from == nil || to == nil {
		return moved, errors.New("there are no such two shards")
	}
	if from == to {
		return moved, s.set(ctx, from, sqlRetake, m.Epoch, int64(m.Bucket))
	}
	source, err := s.bucketAt(ctx, from.primary, m.Bucket)
	if err != nil {
		return moved, err
	}
	target, err := s.bucketAt(ctx, to.primary, m.Bucket)
	if err != nil {
		return moved, err
	}
	if m.OnStep == nil {
		m.OnStep = func(string) {}
	}
	begin, copied := time.Now(), m.Epoch
	left := source.State == sut.BucketReleased || source.State == sut.BucketGone
	switch {
	case target.Owned() && !source.Owned():
		return moved, nil // an earlier call has done it
	case target.Owned() && target.Epoch > source.Epoch:
		// The source has lost the release in a failover. What the target has is newer.
		if err := s.fence(ctx, m, from); err != nil {
			return moved, err
		}
		err := s.release(ctx, m, from)
		return BucketMoved{Pause: time.Since(begin)}, err
	case left && target.State == sut.BucketCopied && target.Epoch == source.Epoch:
		copied = source.Epoch // only the last step is missing
	case source.State == sut.BucketReleased:
		// The target has lost its copy. The source still has the rows.
		if err := s.set(ctx, from, sqlRetake, m.Epoch, int64(m.Bucket)); err != nil {
			return moved, fmt.Errorf("take it back: %w", err)
		}
		return moved, errors.New("the copy was lost, and the bucket is at its old shard again")
	case source.Owned():
		if moved.Rows, begin, err = s.copyAndRelease(ctx, m, from, to); err != nil {
			return moved, err
		}
	default:
		return moved, errors.New("neither of the two shards owns it or has released it")
	}
	m.OnStep("take")
	if err := s.set(ctx, to, sqlTake, m.Epoch+1, int64(m.Bucket), copied); err != nil {
		return moved, fmt.Errorf("take: %w", err)
	}
	moved.Pause = time.Since(begin)
	// A replica that becomes the primary without the take leaves the bucket without an owner, until the next call.
	return moved, s.awaitReplicas(ctx, to, sut.ShardBucket{
		Bucket: int(m.Bucket), Epoch: m.Epoch + 1, State: sut.BucketOwned,
	}, replicaPatience)
}

// copyAndRelease does the steps of a move up to release, and returns when the fence began. After an error before
// release, the fence is gone.
func (s *Store) copyAndRelease(
	ctx context.Context, m BucketMove, from, to *databases,
) (rows int, fenced time.Time, err error) {
	m.OnStep("copy")
	copied, err := s.copyBucket(ctx, m, from, to)
	if err != nil {
		return 0, fenced, fmt.Errorf("copy: %w", err)
	}
	m.OnStep("fence")
	select {
	case <-time.After(m.Breath):
	case <-ctx.Done():
		return 0, fenced, context.Cause(ctx)
	}
	fenced = time.Now()
	if err := s.fence(ctx, m, from); err != nil {
		return 0, fenced, err
	}
	undo, undone := sqlUnfence, []any{int64(m.Bucket)}
	defer func() {
		if err != nil { // if this fails, too, the lease ends, or the next call takes the bucket back
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.config.QueryTimeout)
			defer cancel()
			_ = s.set(ctx, from, undo, undone...)
		}
	}()
	m.OnStep("compare")
	last, err := s.bucketRows(ctx, from.primary, m.Bucket)
	if err == nil && !slices.Equal(digests(copied), digests(last)) { // it was written meanwhile
		last, err = s.copyBucket(ctx, m, from, to)
	}
	if err != nil {
		return 0, fenced, fmt.Errorf("copy: %w", err)
	}
	m.OnStep("release")
	if err := s.release(ctx, m, from); err != nil {
		return 0, fenced, err
	}
	// Otherwise a replica could become a primary that still owns the bucket.
	undo, undone = sqlRetake, []any{m.Epoch + 1, int64(m.Bucket)}
	released := sut.ShardBucket{Bucket: int(m.Bucket), Epoch: m.Epoch, State: sut.BucketReleased}
	return len(slices.Concat(last...)), fenced, s.awaitReplicas(ctx, from, released, m.Lease)
}

// fence makes a shard refuse writes of a bucket. It returns when those that had begun have ended.
func (s *Store) fence(ctx context.Context, m BucketMove, at *databases) error {
	err := s.setDrained(ctx, at, sqlFence, func(now time.Time) []any {
		return []any{now.Add(m.Lease).UnixMicro(), int64(m.Bucket)}
	})
	if err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	return nil
}

// release makes a shard give a bucket up, if the fence still holds.
func (s *Store) release(ctx context.Context, m BucketMove, at *databases) error {
	err := s.setDrained(ctx, at, sqlRelease, func(now time.Time) []any {
		return []any{m.Epoch, int64(m.Bucket), now.UnixMicro()}
	})
	if err != nil {
		return fmt.Errorf("release: %w", err)
	}
	return nil
}

// set changes the state of a bucket at a shard. It is an error if the bucket is not in the state before it.
func (s *Store) set(ctx context.Context, at *databases, sql string, args ...any) error {
	return s.writeTo(ctx, at, guard{}, func(ctx context.Context, d on) error {
		b := d.batch()
		b.add(sql, args...)
		return changedOne(b.sendFound(ctx, d))
	})
}

// setDrained is like set, but it first waits until the writes at the shard have ended that had begun before. args gets
// the time after that: no write that began earlier is still to come.
func (s *Store) setDrained(ctx context.Context, at *databases, sql string, args func(now time.Time) []any) error {
	return s.writeTo(ctx, at, guard{}, func(ctx context.Context, d on) error {
		return pgx.BeginFunc(ctx, d.pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, sqlDrain); err != nil {
				return err
			}
			done, err := tx.Exec(ctx, sql, args(time.Now())...)
			if err == nil && done.RowsAffected() == 0 {
				err = pgx.ErrNoRows
			}
			return changedOne(err)
		})
	})
}

func changedOne(err error) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return errors.New("the bucket is not in the state for this step: another call has changed it, or its lease has ended")
	}
	return err
}

// bucketAt reads the state of a bucket at a database. The zero value means that the database knows nothing of it.
func (s *Store) bucketAt(ctx context.Context, d *database, b photos.Bucket) (o sut.ShardBucket, err error) {
	err = s.readFrom(ctx, []*database{d}, guard{}, func(ctx context.Context, d on) error {
		rows, err := d.pool.Query(ctx, sqlOwnedBy, int64(b))
		if err != nil {
			return err
		}
		found, err := pgx.CollectRows(rows, scanOwned)
		if len(found) > 0 {
			o = found[0]
		}
		return err
	})
	return o, err
}

// awaitReplicas waits until all replicas that answer have the state of a bucket.
func (s *Store) awaitReplicas(
	ctx context.Context, at *databases, want sut.ShardBucket, patience time.Duration,
) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, replica := range at.replicas {
		for wait := retryFirst; ; {
			have, err := s.bucketAt(ctx, replica, photos.Bucket(want.Bucket))
			if have.Epoch >= want.Epoch && have.State == want.State {
				break
			}
			if err != nil && ctx.Err() == nil && nobodyThere(err) {
				break // it is not promoted before it has caught up
			}
			wait = min(2*wait, retryMost)
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return fmt.Errorf("replica %s of %s is more than %v late\ntry again when it has caught up: stagebench status",
					replica.peer.Node, shardName(at.shard), patience)
			}
		}
	}
	return nil
}

// copyBucket replaces the rows of a bucket at the target by those of the source, compares both, and returns them.
func (s *Store) copyBucket(ctx context.Context, m BucketMove, from, to *databases) (source [][][]any, err error) {
	if source, err = s.bucketRows(ctx, from.primary, m.Bucket); err != nil {
		return nil, err
	}
	err = s.writeTo(ctx, to, guard{}, func(ctx context.Context, d on) error {
		b := d.batch()
		queueDelete(b, m.Bucket)
		for i, t := range shardTables() {
			for rows := range slices.Chunk(source[i], rowsPerInsert) {
				if args := slices.Concat(rows...); len(rows) == rowsPerInsert && textOf(args) <= textPerInsert {
					b.add(t.insertMoved(rowsPerInsert).SQL, args...)
					continue
				}
				for _, row := range rows {
					b.add(t.insertMoved(1).SQL, row...)
				}
			}
		}
		b.add(sqlCopied, int64(m.Bucket), m.Epoch)
		_, err := b.send(ctx, d)
		return err
	})
	if err != nil {
		return nil, err
	}
	target, err := s.bucketRows(ctx, to.primary, m.Bucket)
	if err != nil {
		return nil, err
	}
	return source, same(source, target)
}

// same returns an error unless the target has the rows of the source. A follow between the bucket and a user of the
// target may be there although the source has not got it yet.
func same(source, target [][][]any) error {
	for i, t := range shardTables() {
		there := digests(target[i : i+1])
		missing := slices.ContainsFunc(digests(source[i:i+1]), func(d digest) bool {
			_, found := slices.BinarySearchFunc(there, d, compareDigests)
			return !found
		})
		if missing || len(source[i]) != len(target[i]) && !t.shared {
			return fmt.Errorf("the copy of %s differs: %d rows instead of %d", t.name, len(target[i]), len(source[i]))
		}
	}
	return nil
}

// digest identifies a row.
type digest [sha256.Size]byte

func compareDigests(a, b digest) int { return bytes.Compare(a[:], b[:]) }

// digests returns the digests of rows, by table, in order.
func digests(tables [][][]any) (all []digest) {
	for i, rows := range tables {
		for _, row := range rows {
			var text strings.Builder
			fmt.Fprint(&text, i)
			for _, v := range row {
				fmt.Fprintf(&text, " %T %q", v, fmt.Sprint(v))
			}
			all = append(all, sha256.Sum256([]byte(text.String())))
		}
	}
	slices.SortFunc(all, compareDigests)
	return all
}

// bucketRows reads the rows of a bucket, by table in the order of shardTables. Nothing may write them meanwhile.
func (s *Store) bucketRows(ctx context.Context, at *database, bucket photos.Bucket) (rows [][][]any, err error) {
	tables := shardTables()
	err = s.readFrom(ctx, []*database{at}, guard{}, func(ctx context.Context, d on) error {
		rows = make([][][]any, len(tables))
		var b pgx.Batch
		for i, t := range tables {
			b.Queue(t.ofBucket(), int64(bucket)).Query(func(found pgx.Rows) error {
				for found.Next() {
					row, err := found.Values()
					if err != nil {
						return err
					}
					rows[i] = append(rows[i], row)
				}
				return found.Err()
			})
		}
		return d.pool.SendBatch(ctx, &b).Close()
	})
	return rows, err
}

// queueDelete deletes the rows of a bucket.
func queueDelete(b *batch, bucket photos.Bucket) {
	for _, t := range slices.Backward(slices.Concat(shardTables(), derivedTables())) {
		for _, sql := range t.deletes() {
			b.add(sql, int64(bucket))
		}
	}
}

// CleanBucket deletes the rows of a bucket that has moved from the shard that it was moved from. It changes nothing
// before the target and all its replicas that answer own the bucket. Call it later than Config.QueryTimeout after the
// move: an operation that began before it may still read the rows.
func (s *Store) CleanBucket(ctx context.Context, m BucketMove) (err error) {
	defer wrap(&err, "clean bucket %d at %s", m.Bucket, shardName(m.From))
	from, to := s.used.Load().of(m.From), s.used.Load().of(m.To)
	if from == nil || to == nil {
		return errors.New("there are no such two shards")
	}
	target, err := s.bucketAt(ctx, to.primary, m.Bucket)
	if err != nil {
		return err
	}
	source, err := s.bucketAt(ctx, from.primary, m.Bucket)
	if err != nil {
		return err
	}
	if !target.Owned() || source.Owned() {
		return fmt.Errorf("%s does not own it, so %s keeps its rows", shardName(m.To), shardName(m.From))
	}
	if err := s.awaitReplicas(ctx, to, target, replicaPatience); err != nil {
		return err
	}
	return s.writeTo(ctx, from, guard{}, func(ctx context.Context, d on) error {
		b := d.batch()
		queueDelete(b, m.Bucket)
		b.add(sqlGone, int64(m.Bucket))
		_, err := b.send(ctx, d)
		return err
	})
}
