package store

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/stagebench/stagebench/sut/photos"
)

// A denormalised feed is a list of photos at the shard of its reader. Workers push each new photo to the feeds of the
// followers of its owner. The feed is derived from other rows: it is built when it is read, it may be lost, and it does
// not move with its bucket. Nobody unfollows, so each row of the table feeds is true for ever, and only a missing row
// is an error. The state of a feed says since which photo none is missing.
//
// A feed has the photos that its build found. It gets each photo that was committed after the state existed, because
// that photo is pushed later. So the state must exist before the build asks for photos, and the build must ask
// primaries.

const (
	// feedLife is the age at which a feed is built again. Rows that a failover has lost are missing until then. Nothing
	// is pushed to a feed of twice this age, because clocks differ and nobody may read it any more.
	feedLife = 10 * time.Minute
	// buildTimeout bounds a build. Its reader then asks as if nothing were stored, also replicas.
	buildTimeout = 2 * time.Second
	// buildPatience is the age at which a build counts as dead.
	buildPatience = 10 * time.Second
	// feedDepth is the number of photos that a build finds at least, if there are so many.
	feedDepth = rowsPerInsert
	// photosPerQuery is the number of photos that one statement reads by id.
	photosPerQuery = 20
	// readersPerPush is the number of followers to whom a photo is pushed at once.
	readersPerPush = 100
)

const (
	feedColumns = `user_id, created_us, photo`
	pushColumns = `user_id, photo, created_us`
	stateFields = `token, begun_us, state, floor_us, floor_photo, pulled`

	// The state and the rows are of one moment. A feed without rows has one with the photo 0.
	sqlStoredFeed = `select s.token, s.begun_us, s.state, s.floor_us, s.floor_photo, s.pulled, ` +
		`coalesce(f.created_us, 0) as created_us, coalesce(f.photo, 0) as photo from feed_states s left join (` +
		`select created_us, photo from feeds where user_id = $1 order by created_us desc, photo desc limit $2) f ` +
		`on (f.created_us, f.photo) >= (s.floor_us, s.floor_photo) where s.user_id = $1`
	sqlPhotosByID = `select ` + photoColumns + ` from photos where id in ` +
		`($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)`
	sqlNewestOf = `select ` + photoColumns + ` from photos where user_id = $1 order by created_us desc, id desc limit $2`

	// A build claims a state that is still the one that its reader saw. Otherwise another build is faster.
	sqlClaimFeed = `insert into feed_states (user_id, ` + stateFields + `) select user_id, $1, $2, 'building', 0, 0, '' ` +
		`from residents where user_id = $3 on conflict (user_id) do update set token = excluded.token, ` +
		`begun_us = excluded.begun_us, state = excluded.state where feed_states.token = $4`
	sqlEmptyFeed = `delete from feeds where user_id = $1 ` +
		`and exists (select 1 from feed_states where user_id = $1 and token = $2)`
	sqlFeedBuilt = `update feed_states set state = 'built', floor_us = $1, floor_photo = $2, pulled = $3 ` +
		`where user_id = $4 and token = $5`
	sqlForgetFeed = `delete from feed_states where user_id = $1`
	// A follow that is not committed yet must meet a build, also if there was no state: both write the row.
	sqlOutdateFeed = `insert into feed_states (user_id, ` + stateFields + `) values ($1, $2, 0, 'outdated', 0, 0, '') ` +
		`on conflict (user_id) do update set token = excluded.token, begun_us = 0, state = excluded.state`
	// The followed users whose photos are not pushed. All of them are read, so gather leaves out those of other shards.
	sqlPulled = `select f.followee from follows f join users u on u.id = f.followee ` +
		`where f.follower = $1 and u.followers >= $2`

	// The table pushes is the outbox of photos that are not in all feeds yet. The photo 0 stands for the moment at which
	// its user got too many followers: their feeds must be built again, and pull the photos of the user from then on.
	sqlAddPush = `insert into pushes (` + pushColumns + `) select id, $1, $2 from users where id = $3 and followers < $4`
	sqlAddPull = `insert into pushes (` + pushColumns + `) select id, 0, 0 from users where id = $1 and followers = $2 ` +
		`on conflict do nothing`
	sqlPushes = `select p.user_id, p.photo, p.created_us, u.followers from pushes p join users u on u.id = p.user_id ` +
		`join residents r on r.user_id = p.user_id join owned w on w.bucket = r.bucket where w.` + readableHere +
		` order by p.created_us, p.photo limit $1`
	sqlFollowers = `select follower from follows where followee = $1 order by follower`
	sqlPush      = `insert into feeds (` + feedColumns + `) select user_id, $1, $2 from feed_states ` +
		`where user_id = $3 and begun_us > $4 on conflict do nothing`
	sqlDeletePush = `delete from pushes where user_id = $1 and photo = $2`
)

// servingFeeds lists the statements that a host sends to shards if feeds are denormalised.
func servingFeeds() []Statement {
	id := []Type{BigInt}
	two := []Type{BigInt, BigInt}
	four := []Type{BigInt, BigInt, BigInt, BigInt}
	photo := columns(photoColumns, photoTypes())
	return []Statement{
		{
			Name: "stored feed", SQL: sqlStoredFeed, Params: two, Columns: columns(stateFields+", created_us, photo",
				[]Type{Text, BigInt, Text, BigInt, BigInt, Text, BigInt, BigInt}),
		},
		{Name: "photos by id", SQL: sqlPhotosByID, Params: slices.Repeat(id, photosPerQuery), Columns: photo},
		{Name: "newest of user", SQL: sqlNewestOf, Params: two, Columns: photo},
		{Name: "claim feed", SQL: sqlClaimFeed, Params: []Type{Text, BigInt, BigInt, Text}},
		{Name: "empty feed", SQL: sqlEmptyFeed, Params: []Type{BigInt, Text}},
		addFeedRows(),
		{Name: "feed is built", SQL: sqlFeedBuilt, Params: []Type{BigInt, BigInt, Text, BigInt, Text}},
		{Name: "forget feed", SQL: sqlForgetFeed, Params: id},
		{Name: "outdate feed", SQL: sqlOutdateFeed, Params: []Type{BigInt, Text}},
		{Name: "pulled users", SQL: sqlPulled, Params: two, Columns: columns("followee", id)},
		{Name: "add push", SQL: sqlAddPush, Params: four},
		{Name: "add pull", SQL: sqlAddPull, Params: two},
		{Name: "page of pushes", SQL: sqlPushes, Params: id, Columns: columns(pushColumns+", followers", four)},
		{Name: "followers", SQL: sqlFollowers, Params: id, Columns: columns("follower", id)},
		{Name: "push", SQL: sqlPush, Params: four},
		{Name: "delete push", SQL: sqlDeletePush, Params: two},
	}
}

// derivedTables lists the tables of the feeds of a bucket. Their rows do not move with it.
func derivedTables() []shardTable {
	ofUser := []string{`user_id in ` + residents}
	return []shardTable{
		{table{name: "feeds", columns: feedColumns, types: []Type{BigInt, BigInt, BigInt}}, ofUser, true, false},
		{table{name: "feed_states"}, ofUser, true, false},
	}
}

// addFeedRows inserts rowsPerInsert rows of a feed, unless they are there.
func addFeedRows() Statement {
	s := derivedTables()[0].insert(rowsPerInsert)
	s.SQL += " on conflict do nothing"
	return s
}

// feedSchema returns the statements that create the tables of denormalised feeds.
func feedSchema() []Statement {
	const feeds = `create table if not exists feeds (user_id bigint not null, created_us bigint not null, ` +
		`photo bigint not null, primary key (user_id, created_us, photo))`
	return []Statement{
		{Name: "create feeds", SQL: feeds, SQLite: feeds + " without rowid"},
		{Name: "create feed states", SQL: `create table if not exists feed_states (user_id bigint not null primary key, ` +
			`token text not null, begun_us bigint not null, state text not null, floor_us bigint not null, ` +
			`floor_photo bigint not null, pulled text not null)`},
		{Name: "create pushes", SQL: `create table if not exists pushes (user_id bigint not null, ` +
			`photo bigint not null, created_us bigint not null, primary key (user_id, photo))`},
	}
}

// denormalised reports whether feeds are denormalised.
func (s *Store) denormalised() bool { return s.config.PushBelow > 0 && s.used.Load().sharded() }

// storedFeed is what the shard of a reader has of a feed.
type storedFeed struct {
	token   string // identifies the build; "" = there is no state
	begunUS int64
	state   string
	rows    []photos.Photo // newest first; only CreatedUS and ID are set
	// oldest is the last row, if there may be more, or the oldest photo that the build found. No photo that is newer is
	// missing. The zero value means that none at all is missing.
	oldest photos.Photo
	pulled []photos.ID // followed users whose photos are not pushed
}

// pushedFeed returns a feed from what was pushed to it, or builds it.
func (s *Store) pushedFeed(ctx context.Context, user photos.ID, limit int) ([]photos.Photo, error) {
	f, err := s.stored(ctx, user, limit)
	if err != nil {
		return nil, err
	}
	age := time.Since(time.UnixMicro(f.begunUS))
	switch {
	case f.state == "built" && age < feedLife:
		if list, enough, err := s.photosOf(ctx, f, limit); enough || err != nil {
			return list, err
		}
		// Photos were deleted, or an earlier reader needed fewer.
	case f.state == "building" && age < buildPatience:
		return s.gatherFeed(ctx, user, limit, false)
	}
	return s.build(ctx, user, limit, f.token)
}

// stored reads at most limit rows of a feed.
func (s *Store) stored(ctx context.Context, user photos.ID, limit int) (f storedFeed, err error) {
	err = s.read(ctx, photos.BucketOf(user), func(ctx context.Context, d on) error {
		f = storedFeed{} // without what an earlier attempt has read
		var pulled string
		b := d.batch()
		b.Queue(sqlStoredFeed, user, limit).Query(func(rows pgx.Rows) error {
			for rows.Next() {
				var p photos.Photo
				if err := rows.Scan(&f.token, &f.begunUS, &f.state, &f.oldest.CreatedUS, &f.oldest.ID, &pulled,
					&p.CreatedUS, &p.ID); err != nil {
					return err
				}
				if p.ID != 0 {
					f.rows = append(f.rows, p)
				}
			}
			return rows.Err()
		})
		if err := d.pool.SendBatch(ctx, &b.Batch).Close(); err != nil || pulled == "" {
			return err
		}
		return json.Unmarshal([]byte(pulled), &f.pulled)
	})
	slices.SortFunc(f.rows, newer)
	if len(f.rows) == limit {
		f.oldest = f.rows[limit-1]
	}
	return f, err
}

// photosOf returns the photos of a stored feed, newest first. enough is false if it may lack some of the limit.
func (s *Store) photosOf(ctx context.Context, f storedFeed, limit int) (list []photos.Photo, enough bool, err error) {
	if list, err = s.fetch(ctx, f, limit); err != nil {
		return nil, false, err
	}
	slices.SortFunc(list, newer)
	// A user whose photos are pulled may have been one of those whose photos are pushed.
	list = slices.CompactFunc(list, func(a, b photos.Photo) bool { return a.ID == b.ID })
	if i := slices.IndexFunc(list, func(p photos.Photo) bool { return newer(p, f.oldest) > 0 }); i >= 0 {
		list = list[:i] // photos are pulled from a time of which others are missing
	}
	return list[:min(limit, len(list))], f.oldest.ID == 0 || len(list) >= limit, nil
}

// fetch reads the photos of a feed that still exist, and the newest photos of those users whose photos are not pushed.
// It asks the shards that have them, each once, at the same time.
func (s *Store) fetch(ctx context.Context, f storedFeed, limit int) (list []photos.Photo, err error) {
	if len(f.rows)+len(f.pulled) == 0 {
		return nil, nil
	}
	err = s.repeat(ctx, func(ctx context.Context, m *owners) error {
		type question struct {
			sql  string
			args []any
		}
		asked := map[int][]question{} // by shard
		for shard, rows := range group(m, f.rows, bucketOf) {
			for some := range slices.Chunk(rows, photosPerQuery) {
				q := question{sql: sqlPhotosByID}
				for i := range photosPerQuery { // padded with the last one
					q.args = append(q.args, some[min(i, len(some)-1)].ID)
				}
				asked[shard] = append(asked[shard], q)
			}
		}
		for _, user := range f.pulled {
			shard := m.owner[photos.BucketOf(user)]
			asked[shard] = append(asked[shard], question{sqlNewestOf, []any{user, limit}})
		}
		var mu sync.Mutex
		list = nil
		return eachShard(s, asked, func(at *databases, asked []question) error {
			var found []photos.Photo
			err := s.readFrom(ctx, s.readable(at), guard{}, func(ctx context.Context, d on) error {
				found = nil // without what an earlier attempt has read
				var b pgx.Batch
				expect(&b, m.since[at.shard])
				for _, q := range asked {
					b.Queue(q.sql, q.args...).Query(func(rows pgx.Rows) error {
						some, err := collect(rows, limit, scanPhoto)
						found = append(found, some...)
						return err
					})
				}
				expect(&b, m.since[at.shard])
				return d.pool.SendBatch(ctx, &b).Close()
			})
			mu.Lock()
			defer mu.Unlock()
			list = append(list, found...)
			return err
		})
	})
	return list, err
}

// build returns a feed from all shards, and stores it. seen is the token of the state that its reader saw.
//
// The token is compared at the end, so a build that another one or a follow has overtaken, or whose bucket has moved,
// leaves a feed that is not built. A build that cannot store the feed still answers.
func (s *Store) build(ctx context.Context, user photos.ID, limit int, seen string) ([]photos.Photo, error) {
	token, depth, claimed := rand.Text(), max(limit, feedDepth), false
	caller := ctx
	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	if err := s.write(ctx, photos.BucketOf(user), func(ctx context.Context, d on) error {
		b := d.batch()
		b.add(sqlClaimFeed, token, time.Now().UnixMicro(), user, seen)
		// Old rows go now. At the end of the build, this would delete what was pushed meanwhile.
		b.add(sqlEmptyFeed, user, token)
		changed, err := b.send(ctx, d)
		claimed = err == nil && changed[0] > 0
		return err
	}); err != nil || !claimed { // the primary is away, or another build is faster
		return s.gatherFeed(caller, user, limit, false)
	}
	var list []photos.Photo
	var pulled []photos.ID
	var all errgroup.Group
	all.Go(func() (err error) {
		list, err = s.gatherFeed(ctx, user, depth, true)
		return err
	})
	all.Go(func() (err error) {
		pulled, err = gather(ctx, s, query{shard: sqlPulled, primary: true}, math.MaxInt, scanID, cmp.Compare[photos.ID],
			photos.BucketOf, user, s.config.PushBelow)
		return err
	})
	if err := all.Wait(); err != nil {
		return s.gatherFeed(caller, user, limit, false)
	}
	if s.storeFeed(ctx, user, token, list, pulled, len(list) < depth) == nil {
		s.built.Inc()
	}
	return list[:min(limit, len(list))], nil
}

// storeFeed stores a feed that was built. whole means that list has all photos.
func (s *Store) storeFeed(
	ctx context.Context, user photos.ID, token string, list []photos.Photo, pulled []photos.ID, whole bool,
) error {
	text, err := json.Marshal(pulled)
	if err != nil {
		return err
	}
	var oldest photos.Photo
	if !whole {
		oldest = list[len(list)-1]
	}
	return s.write(ctx, photos.BucketOf(user), func(ctx context.Context, d on) error {
		b := d.batch()
		for some := range slices.Chunk(list, rowsPerInsert) {
			var args []any
			for i := range rowsPerInsert { // padded with the last row
				p := some[min(i, len(some)-1)]
				args = append(args, user, p.CreatedUS, p.ID)
			}
			b.add(addFeedRows().SQL, args...)
		}
		b.add(sqlFeedBuilt, oldest.CreatedUS, oldest.ID, string(text), user, token)
		_, err := b.send(ctx, d)
		return err
	})
}

// push is a photo that is not in all feeds yet. Its id is 0 if its user has just got too many followers.
type push struct {
	owner, photo         photos.ID
	createdUS, followers int64
}

// RelayPhotos brings at most limit new photos of each shard to the feeds of their owners' followers, and returns how
// many. It may be called by several callers at once.
func (s *Store) RelayPhotos(ctx context.Context, limit int) (relayed int, err error) {
	defer wrap(&err, "relay photos")
	var silent silence
	return relayAll(ctx, s, sqlPushes, limit, func(row pgx.CollectableRow) (p push, err error) {
		err = row.Scan(&p.owner, &p.photo, &p.createdUS, &p.followers)
		return p, err
	}, func(ctx context.Context, p push) error { return s.relayPhoto(ctx, p, &silent) })
}

// silence is the shards that did not answer during a call of RelayPhotos. They are asked once, not for each photo.
type silence struct {
	mu     sync.Mutex
	shards map[int]error
}

// of returns the error of a shard that did not answer, and otherwise what do returns.
func (s *silence) of(shard int, do func() error) error {
	s.mu.Lock()
	err := s.shards[shard]
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if err = do(); errors.Is(err, photos.ErrUnavailable) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.shards == nil {
			s.shards = map[int]error{}
		}
		s.shards[shard] = err
	}
	return err
}

// relayPhoto pushes a photo, and then deletes it from the outbox.
//
// The followers are read after the photo was committed. A follow that comes later is in no build that began before its
// mirror: see relay. So a feed that misses the push is built after the photo was committed, and finds it.
func (s *Store) relayPhoto(ctx context.Context, p push, silent *silence) error {
	var readers []photos.ID
	bucket := photos.BucketOf(p.owner)
	if p.photo == 0 || p.followers < int64(s.config.PushBelow) {
		if err := s.route(ctx, bucket, func(ctx context.Context, _ *owners, d *databases, g guard) error {
			return s.readFrom(ctx, []*database{d.primary}, g, func(ctx context.Context, d on) error {
				b := d.batch()
				b.Queue(sqlFollowers, p.owner).Query(func(rows pgx.Rows) (err error) {
					readers, err = collect(rows, math.MaxInt, scanID)
					return err
				})
				return d.pool.SendBatch(ctx, &b.Batch).Close()
			})
		}); err != nil {
			return err
		}
	}
	var errs []error // of some readers, which must not hold up the feeds of others
	for some := range slices.Chunk(readers, readersPerPush) {
		errs = append(errs, s.repeat(ctx, func(ctx context.Context, m *owners) error {
			return s.pushTo(ctx, m, p, some, silent)
		}))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return s.write(ctx, bucket, func(ctx context.Context, d on) error {
		b := d.batch()
		b.add(sqlDeletePush, p.owner, p.photo)
		deleted, err := b.send(ctx, d)
		if err == nil && deleted[0] > 0 && p.photo != 0 {
			s.pushed.Inc()
			s.lag.Add(max(0, time.Since(time.UnixMicro(p.createdUS)).Seconds()*1000))
		}
		return err
	})
}

// pushTo adds a photo to the feeds of some readers. If it got too many followers, or their shard is full, these feeds
// are built again.
func (s *Store) pushTo(ctx context.Context, m *owners, p push, readers []photos.ID, silent *silence) error {
	alive := time.Now().Add(-2 * feedLife).UnixMicro()
	return eachShard(s, group(m, readers, photos.BucketOf), func(at *databases, readers []photos.ID) error {
		var g guard
		for _, reader := range readers {
			if b := photos.BucketOf(reader); !slices.Contains(g.buckets, b) {
				g.buckets = append(g.buckets, b)
			}
		}
		forget := func() error {
			return s.writeTo(ctx, at, g, func(ctx context.Context, d on) error {
				b := d.batch()
				for _, reader := range readers {
					b.add(sqlForgetFeed, reader)
				}
				_, err := b.send(ctx, d)
				return err
			})
		}
		return silent.of(at.shard, func() error {
			if p.photo == 0 {
				return forget()
			}
			err := s.writeTo(ctx, at, g, func(ctx context.Context, d on) error {
				b := d.batch()
				for _, reader := range readers {
					b.add(sqlPush, p.createdUS, p.photo, reader, alive)
				}
				changed, err := b.send(ctx, d)
				if err == nil {
					for _, rows := range changed {
						s.pushedRows.Add(float64(rows))
					}
				}
				return err
			})
			if errors.Is(err, photos.ErrFull) {
				err = forget()
			}
			return err
		})
	})
}

// countFeeds counts the work for denormalised feeds.
func (s *Store) countFeeds() error {
	var errs []error
	for counter, o := range map[*prometheus.Counter]prometheus.CounterOpts{
		&s.built:      {Name: "stagebench_feed_builds_total", Help: "Feeds that were built from all shards and stored."},
		&s.pushed:     {Name: "stagebench_feed_pushed_photos_total", Help: "Photos that were pushed to all feeds."},
		&s.pushedRows: {Name: "stagebench_feed_pushed_rows_total", Help: "Rows that were pushed to feeds."},
		&s.lag: {
			Name: "stagebench_feed_lag_milliseconds_total", Help: "Sum of the times from an upload to the last push of it.",
		},
	} {
		*counter = prometheus.NewCounter(o)
		if s.config.Registry != nil {
			errs = append(errs, s.config.Registry.Register(*counter))
		}
	}
	return errors.Join(errs...)
}
