package store

import (
	"slices"
	"strconv"
)

// The tables that only a shard has. An engine without shards does not have them.
const (
	ownedColumns    = `bucket, epoch, state, until_us`
	residentColumns = `user_id, bucket`
	nameColumns     = `login, bucket, user_id`
)

// The statements of shards. A bucket is read at its owner, also behind a fence, and written only without a fence that
// holds. bucketShift and buckets of photos.ID are in the condition mine.
const (
	readableHere = `state in ('owned', 'fenced')`
	mine         = `exists (select 1 from owned o where o.bucket = p.id / 4096 % 1024 and o.` + readableHere + `)`

	sqlGuardRead = `select bucket from owned where bucket = $1 and ` + readableHere
	// The table refused is always empty: its constraint refuses each row. A write inserts a row, and so ends its own
	// transaction, if its bucket must not be written. It locks the table, too, which sqlDrain uses.
	sqlGuardWrite = `insert into refused (bucket) select $1 from (select 1) one where not exists ` +
		`(select 1 from owned where bucket = $1 and (state = 'owned' or state = 'fenced' and until_us < $2))`
	// PostgreSQL waits for all transactions that write, and lets no other begin until the end of this one. In SQLite
	// there is only one at a time.
	sqlDrain       = `lock table refused in share mode`
	sqlDrainSQLite = `delete from refused`

	sqlOwned   = `select bucket, epoch, state from owned`
	sqlOwnedBy = `select bucket, epoch, state from owned where bucket = $1`
	sqlSince   = `select coalesce(max(epoch), 0) as epoch from owned`
	sqlName    = `select user_id from names where login = $1`

	sqlShardFeed = `select p.id, p.user_id, p.title, p.state, p.width, p.height, p.bytes, p.created_us, ` +
		`p.likes, p.comments, p.version, p.done_us from (` +
		`select p.id, p.created_us from follows f join photos p on p.user_id = f.followee where f.follower = $1 and ` +
		mine + ` order by +p.created_us desc, p.id desc limit $2) n join photos p on p.id = n.id ` +
		`order by n.created_us desc, n.id desc`
	sqlShardNewest = `select ` + photoColumns + ` from photos p where ` + mine +
		` order by created_us desc, id desc limit $1`
	sqlShardProcessing = `select id from photos p where state = 'processing' and created_us < $1 and ` + mine +
		` order by created_us, id limit $2`

	// A follow of a user of another shard. The row of the follower's shard is the truth, and the outbox has it until the
	// followee's shard has a copy, the mirror. The row in mirrors makes that shard count it once.
	sqlFollowElsewhere = `insert into follows (follower, followee, created_us) select id, $1, $2 from users where id = $3`
	sqlAddOutbox       = `insert into outbox (follower, followee, created_us) ` +
		`select follower, followee, created_us from follows where follower = $1 and followee = $2`
	// The rows of users whose bucket is at another shard wait for their deletion.
	sqlOutbox = `select o.follower, o.followee, o.created_us from outbox o join residents r on r.user_id = o.follower ` +
		`join owned w on w.bucket = r.bucket where w.` + readableHere + ` order by o.follower, o.followee limit $1`
	sqlDeleteOutbox = `delete from outbox where follower = $1 and followee = $2`
	// These two are in the catalogue as inserts of moved rows.
	sqlAddMirror    = `insert into mirrors (follower, followee, created_us) values ($1, $2, $3)`
	sqlMirrorFollow = `insert into follows (follower, followee, created_us) values ($1, $2, $3) on conflict do nothing`

	// The states of a bucket that moves, in order: see Store.MoveBucket.
	sqlFence   = `update owned set state = 'fenced', until_us = $1 where bucket = $2 and ` + readableHere
	sqlUnfence = `update owned set state = 'owned', until_us = 0 where bucket = $1 and state = 'fenced'`
	sqlCopied  = `insert into owned (bucket, epoch, state, until_us) values ($1, $2, 'copied', 0) ` +
		`on conflict (bucket) do update set epoch = excluded.epoch, state = excluded.state, until_us = 0`
	sqlRelease = `update owned set state = 'released', epoch = $1 where bucket = $2 and state = 'fenced' and until_us > $3`
	sqlTake    = `update owned set state = 'owned', epoch = $1 where bucket = $2 and state = 'copied' and epoch = $3`
	sqlGone    = `update owned set state = 'gone' where bucket = $1 and state in ('released', 'copied')`
	sqlRetake  = `update owned set state = 'owned', epoch = $1 where bucket = $2 and state = 'released'`
)

// servingShards lists the statements that a host sends to shards, besides those of serving.
func servingShards() []Statement {
	id := []Type{BigInt}
	two := []Type{BigInt, BigInt}
	three := []Type{BigInt, BigInt, BigInt}
	photo := columns(photoColumns, photoTypes())
	owned := columns("bucket, epoch, state", []Type{BigInt, BigInt, Text})
	return []Statement{
		{Name: "guard read", SQL: sqlGuardRead, Params: id, Columns: columns("bucket", id)},
		{Name: "guard write", SQL: sqlGuardWrite, Params: two},
		{Name: "owned buckets", SQL: sqlOwned, Columns: owned},
		{Name: "last change of owned buckets", SQL: sqlSince, Columns: columns("epoch", id)},
		{Name: "user of login name", SQL: sqlName, Params: []Type{Text}, Columns: columns("user_id", id)},
		{Name: "feed of shard", SQL: sqlShardFeed, Params: two, Columns: photo},
		{Name: "newest of shard", SQL: sqlShardNewest, Params: id, Columns: photo},
		{Name: "photos in processing of shard", SQL: sqlShardProcessing, Params: two, Columns: columns("id", id)},
		{Name: "follow elsewhere", SQL: sqlFollowElsewhere, Params: three},
		{Name: "add to outbox", SQL: sqlAddOutbox, Params: two},
		{Name: "page of outbox", SQL: sqlOutbox, Params: id, Columns: columns(followColumns, followTypes())},
		{Name: "delete from outbox", SQL: sqlDeleteOutbox, Params: two},
	}
}

// moving lists the statements that move buckets between shards.
func moving() []Statement {
	id := []Type{BigInt}
	two := []Type{BigInt, BigInt}
	all := []Statement{
		{Name: "drain writers", SQL: sqlDrain, SQLite: sqlDrainSQLite},
		{
			Name: "owned bucket", SQL: sqlOwnedBy, Params: id,
			Columns: columns("bucket, epoch, state", []Type{BigInt, BigInt, Text}),
		},
		{Name: "fence bucket", SQL: sqlFence, Params: two},
		{Name: "unfence bucket", SQL: sqlUnfence, Params: id},
		{Name: "bucket is copied", SQL: sqlCopied, Params: two},
		{Name: "release bucket", SQL: sqlRelease, Params: []Type{BigInt, BigInt, BigInt}},
		{Name: "take bucket", SQL: sqlTake, Params: []Type{BigInt, BigInt, BigInt}},
		{Name: "bucket is gone", SQL: sqlGone, Params: id},
		{Name: "take bucket back", SQL: sqlRetake, Params: two},
	}
	for _, t := range shardTables() {
		all = append(all, Statement{
			Name: t.name + " of bucket", SQL: t.ofBucket(), Params: id, Columns: columns(t.columns, t.types),
		})
		for _, rows := range []int{1, rowsPerInsert} {
			if insert := t.insertMoved(rows); t.added || t.shared {
				all = append(all, insert)
			}
		}
	}
	for _, t := range slices.Concat(shardTables(), derivedTables()) {
		for i, sql := range t.deletes() {
			all = append(all, Statement{Name: "delete " + t.name + " of bucket " + strconv.Itoa(i), SQL: sql, Params: id})
		}
	}
	return all
}

// ownedTable is the table of the buckets that a shard knows of.
func ownedTable() table {
	return table{name: "owned", columns: ownedColumns, types: []Type{BigInt, BigInt, Text, BigInt}}
}

// residents are the users of a bucket.
const residents = `(select user_id from residents where bucket = $1)`

// shardTable describes how the rows of a bucket are found in a table.
type shardTable struct {
	table
	of     []string // conditions: a row for which one of them is true belongs to the bucket
	added  bool     // only shards have the table
	shared bool     // a row can belong to two buckets
}

// shardTables lists the tables whose rows move with their bucket, in the order in which rows are inserted. Rows are
// deleted in the opposite order, because the rows of a user are found with residents.
func shardTables() []shardTable {
	t := tables()
	follow := []string{`follower in ` + residents, `followee in ` + residents}
	added := func(name, columns string, types []Type, of string) shardTable {
		return shardTable{table{name: name, columns: columns, types: types}, []string{of}, true, false}
	}
	two := []Type{BigInt, BigInt}
	return []shardTable{
		added("residents", residentColumns, two, `bucket = $1`),
		added("names", nameColumns, []Type{Text, BigInt, BigInt}, `bucket = $1`),
		{t[0], []string{`id in ` + residents}, false, false},
		{t[1], []string{`user_id in ` + residents}, false, false},
		{t[2], []string{`photo_id in (select id from photos where user_id in ` + residents + `)`}, false, false},
		{t[3], follow, false, true},
		added("outbox", followColumns, followTypes(), follow[0]),
		added("mirrors", followColumns, followTypes(), follow[1]),
		added("pushes", pushColumns, []Type{BigInt, BigInt, BigInt}, `user_id in `+residents),
	}
}

// ofBucket returns the statement that reads the rows of a bucket. A row that belongs to the bucket twice is read once.
func (t shardTable) ofBucket() (sql string) {
	for i, condition := range t.of {
		if i > 0 {
			sql += ` union `
		}
		sql += `select ` + t.columns + ` from ` + t.name + ` where ` + condition
	}
	return sql
}

// deletes returns the statements that delete the rows of a bucket. A row of two buckets stays if the other one is here.
func (t shardTable) deletes() (all []string) {
	for _, condition := range t.of {
		sql := `delete from ` + t.name + ` where ` + condition
		if t.shared {
			sql += ` and not exists (select 1 from residents r where r.bucket <> $1 and ` +
				`(r.user_id = follows.follower or r.user_id = follows.followee))`
		}
		all = append(all, sql)
	}
	return all
}

// insertMoved returns the statement that inserts this number of moved rows. A row of two buckets may be there already.
func (t shardTable) insertMoved(rows int) Statement {
	s := t.insert(rows)
	if t.shared {
		s.Name, s.SQL = s.Name+" unless there", s.SQL+" on conflict do nothing"
	}
	return s
}

// shardSchema returns the statements that create the tables of a shard, besides those of schema.
func shardSchema() []Statement {
	create := func(name, sql string) Statement { return Statement{Name: "create " + name, SQL: sql} }
	return append(feedSchema(),
		create("owned", `create table if not exists owned (bucket bigint not null primary key, epoch bigint not null, `+
			`state text not null, until_us bigint not null)`),
		create("owned by epoch", `create index if not exists owned_by_epoch on owned (epoch)`),
		create("refused", `create table if not exists refused (bucket bigint not null primary key check (bucket < 0))`),
		create("residents", `create table if not exists residents (user_id bigint not null primary key, `+
			`bucket bigint not null)`),
		create("residents by bucket", `create index if not exists residents_by_bucket on residents (bucket)`),
		create("names", `create table if not exists names (login text not null primary key, bucket bigint not null, `+
			`user_id bigint not null)`),
		create("names by bucket", `create index if not exists names_by_bucket on names (bucket)`),
		create("outbox", `create table if not exists outbox (follower bigint not null, followee bigint not null, `+
			`created_us bigint not null, primary key (follower, followee))`),
		create("mirrors", `create table if not exists mirrors (follower bigint not null, followee bigint not null, `+
			`created_us bigint not null, primary key (follower, followee))`),
		create("mirrors by followee", `create index if not exists mirrors_by_followee on mirrors (followee)`),
		create("follows by followee", `create index if not exists follows_by_followee on follows (followee)`),
	)
}
