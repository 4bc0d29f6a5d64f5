package store

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
)

// Type is the SQL type of a parameter or of a result column.
type Type string

// The types that the catalogue uses.
const (
	BigInt Type = "bigint" // 64 bits
	Int    Type = "int"    // 32 bits
	Text   Type = "text"   // UTF-8 without NUL
)

// Column is one column of a result.
type Column struct {
	Name string
	Type Type
}

// Statement is one statement that a Store sends. It uses the common subset of
// PostgreSQL and SQLite. Parameters are $1, $2 ... in the order of their first
// appearance. There are no casts, no functions of time and no other words that only
// one engine has.
type Statement struct {
	// Name is unique in the catalogue and stable, for logs and tests.
	Name string
	// SQL is the text that is sent. It never changes at run time.
	SQL string
	// Params are the types of $1, $2 ...
	Params []Type
	// Columns describe the returned rows; nil = the statement returns no rows.
	Columns []Column
	// SQLite is the text that SQLite runs instead of SQL, to get a better table
	// layout, or because SQLite has no locks of tables; empty = SQLite runs SQL.
	SQLite string
}

// rowsPerInsert is the number of rows of a bulk insert. It is large enough that the
// cost per message is small compared to the cost of the rows.
const rowsPerInsert = 50

// The statements of the operations.
const (
	userColumns  = `id, login, name, password, created_us, photos, followers, following, version`
	photoColumns = `id, user_id, title, state, width, height, bytes, created_us, likes, comments, version, done_us`

	commentColumns = `id, photo_id, user_id, text, created_us`
	followColumns  = `follower, followee, created_us`

	sqlUser        = `select ` + userColumns + ` from users where id = $1`
	sqlUserByLogin = `select ` + userColumns + ` from users where login = $1`
	sqlPhoto       = `select ` + photoColumns + ` from photos where id = $1`

	// The inner query finds the newest photos with an index alone. The outer query
	// then reads full rows only for these. The plus prevents PostgreSQL from using the
	// index by time: it would scan the photos of all users until it has found enough
	// photos of followed users.
	sqlFeed = `select p.id, p.user_id, p.title, p.state, p.width, p.height, p.bytes, p.created_us, ` +
		`p.likes, p.comments, p.version, p.done_us from (` +
		`select p.id, p.created_us from follows f join photos p on p.user_id = f.followee where f.follower = $1 ` +
		`order by +p.created_us desc, p.id desc limit $2) n join photos p on p.id = n.id ` +
		`order by n.created_us desc, n.id desc`
	sqlNewest = `select ` + photoColumns + ` from photos order by created_us desc, id desc limit $1`

	// The insert selects from users, so it inserts no row if the user does not exist.
	sqlAddPhoto = `insert into photos ` +
		`(` + photoColumns + `) select $1, id, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11 from users where id = $12`
	sqlCountPhoto = `update users set photos = photos + 1, version = version + 1 where id = $1`

	sqlRename     = `update photos set title = $1, version = version + 1 where id = $2 and user_id = $3 returning version`
	sqlPhotoOwner = `select user_id from photos where id = $1`
	// A photo is processed once: who comes second finds no row.
	sqlFinish = `update photos set state = $1, done_us = $2, version = version + 1 where id = $3 ` +
		`and state = 'processing' returning version`
	// Both engines use the index of the photos in processing only if the condition has its text.
	sqlProcessing = `select id from photos where state = 'processing' and created_us < $1 ` +
		`order by created_us, id limit $2`
	sqlLike = `update photos set likes = likes + 1, version = version + 1 where id = $1 returning version`

	sqlCountComment = `update photos set comments = comments + 1, version = version + 1 where id = $1 returning version`
	sqlAddComment   = `insert into comments (id, photo_id, user_id, text, created_us) ` +
		`select $1, id, $2, $3, $4 from photos where id = $5`

	// The three statements of a write-back run in one transaction: lock the photo's
	// row, insert the comments, update the photo. All have the same condition: the row
	// has the base version, or the batch is resent and the row already has the new
	// state. A row with the new version but another state was changed by another
	// writer, so it is refused. The comments come before the update: after it, the
	// condition could no longer tell a stored batch from the same state written by
	// another writer. The lock prevents a concurrent change between the statements,
	// which could leave comments of a refused photo.
	sqlWriteBack = `update photos set title = $1, likes = $2, comments = $3, version = $4 where id = $5 and ` +
		`(version = $6 or version = $4 and title = $1 and likes = $2 and comments = $3 and $7 = 1)`
	sqlWriteBackLock = `update photos set version = version where id = $1 and ` +
		`(version = $2 or version = $3 and title = $4 and likes = $5 and comments = $6 and $7 = 1)`
	sqlWriteBackComment = `insert into comments (id, photo_id, user_id, text, created_us) ` +
		`select $1, id, $2, $3, $4 from photos where id = $5 and ` +
		`(version = $6 or version = $7 and title = $8 and likes = $9 and comments = $10 and $11 = 1) on conflict do nothing`

	// A delete first locks the photo's row. A concurrent delete waits here and then
	// finds no row. Without the lock, the user's counter could decrease twice.
	sqlLockPhoto    = `update photos set version = version + 1 where id = $1 and user_id = $2`
	sqlUncountPhoto = `update users set photos = photos - 1, version = version + 1 where id = $1 ` +
		`and exists (select 1 from photos where id = $2 and user_id = $1)`
	sqlDeleteComments = `delete from comments where photo_id = $1 ` +
		`and exists (select 1 from photos where id = $1 and user_id = $2)`
	sqlDeletePhoto = `delete from photos where id = $1 and user_id = $2`
	sqlAddFollow   = `insert into follows (follower, followee, created_us) ` +
		`select a.id, b.id, $1 from users a, users b where a.id = $2 and b.id = $3`
	sqlCountFollowing = `update users set following = following + 1, version = version + 1 where id = $1 ` +
		`and exists (select 1 from follows where follower = $1 and followee = $2)`
	sqlCountFollower = `update users set followers = followers + 1, version = version + 1 where id = $1 ` +
		`and exists (select 1 from follows where followee = $1 and follower = $2)`

	// A session never changes, so adding it again changes nothing. There is no index on the expiry: see schema.
	sqlAddSession     = `insert into sessions (id, user_id, expires_us) values ($1, $2, $3) on conflict do nothing`
	sqlSession        = `select user_id, expires_us from sessions where id = $1`
	sqlRemoveSession  = `delete from sessions where id = $1`
	sqlSessions       = `select id, expires_us from sessions where id > $1 order by id limit $2`
	sqlExpireSessions = `delete from sessions where id > $1 and id <= $2 and expires_us <= $3`
)

// The types of all columns of a table, in their order.
func userTypes() []Type {
	return []Type{BigInt, Text, Text, Text, BigInt, BigInt, BigInt, BigInt, BigInt}
}

func photoTypes() []Type {
	return []Type{BigInt, BigInt, Text, Text, Int, Int, BigInt, BigInt, BigInt, BigInt, BigInt, BigInt}
}
func commentTypes() []Type { return []Type{BigInt, BigInt, BigInt, Text, BigInt} }
func followTypes() []Type  { return []Type{BigInt, BigInt, BigInt} }

// Statements is the catalogue of all statements that a Store sends, except BEGIN,
// COMMIT, ROLLBACK and an empty ping. The embedded engine runs only these.
func Statements() []Statement {
	all := slices.Concat(schema(), shardSchema(), serving(), servingShards(), servingFeeds(), moving())
	all = append(all, ownedTable().insert(1), ownedTable().insert(rowsPerInsert))
	for _, t := range append(tables(), ownedTable(), shardTables()[0].table, shardTables()[1].table) {
		all = append(all, t.analyze())
	}
	for _, t := range tables() {
		for _, rows := range []int{1, rowsPerInsert} {
			all = append(all, t.insert(rows))
		}
		all = append(all, t.pages())
	}
	return all
}

// serving lists the statements that a host sends while it serves. The other statements
// create and fill a database.
func serving() []Statement {
	user := columns(userColumns, userTypes())
	photo := columns(photoColumns, photoTypes())
	version := []Column{{Name: "version", Type: BigInt}}
	id := []Type{BigInt}
	two := []Type{BigInt, BigInt}
	return []Statement{
		{Name: "user", SQL: sqlUser, Params: id, Columns: user},
		{Name: "user by login", SQL: sqlUserByLogin, Params: []Type{Text}, Columns: user},
		{Name: "photo", SQL: sqlPhoto, Params: id, Columns: photo},
		{Name: "feed", SQL: sqlFeed, Params: two, Columns: photo},
		{Name: "newest", SQL: sqlNewest, Params: id, Columns: photo},
		{
			Name: "add photo", SQL: sqlAddPhoto,
			Params: []Type{BigInt, Text, Text, Int, Int, BigInt, BigInt, BigInt, BigInt, BigInt, BigInt, BigInt},
		},
		{Name: "count photo", SQL: sqlCountPhoto, Params: id},
		{Name: "rename photo", SQL: sqlRename, Params: []Type{Text, BigInt, BigInt}, Columns: version},
		{Name: "owner of photo", SQL: sqlPhotoOwner, Params: id, Columns: []Column{{Name: "user_id", Type: BigInt}}},
		{Name: "finish photo", SQL: sqlFinish, Params: []Type{Text, BigInt, BigInt}, Columns: version},
		{Name: "photos in processing", SQL: sqlProcessing, Params: two, Columns: []Column{{Name: "id", Type: BigInt}}},
		{Name: "like", SQL: sqlLike, Params: id, Columns: version},
		{Name: "count comment", SQL: sqlCountComment, Params: id, Columns: version},
		{Name: "add comment", SQL: sqlAddComment, Params: []Type{BigInt, BigInt, Text, BigInt, BigInt}},
		{Name: "write back photo", SQL: sqlWriteBack, Params: []Type{Text, BigInt, BigInt, BigInt, BigInt, BigInt, Int}},
		{
			Name: "lock photo for write-back", SQL: sqlWriteBackLock,
			Params: []Type{BigInt, BigInt, BigInt, Text, BigInt, BigInt, Int},
		},
		{
			Name: "write back comment", SQL: sqlWriteBackComment,
			Params: []Type{BigInt, BigInt, Text, BigInt, BigInt, BigInt, BigInt, Text, BigInt, BigInt, Int},
		},
		{Name: "lock photo", SQL: sqlLockPhoto, Params: two},
		{Name: "uncount photo", SQL: sqlUncountPhoto, Params: two},
		{Name: "delete comments", SQL: sqlDeleteComments, Params: two},
		{Name: "delete photo", SQL: sqlDeletePhoto, Params: two},
		{Name: "add follow", SQL: sqlAddFollow, Params: []Type{BigInt, BigInt, BigInt}},
		{Name: "count following", SQL: sqlCountFollowing, Params: two},
		{Name: "count follower", SQL: sqlCountFollower, Params: two},
		{Name: "add session", SQL: sqlAddSession, Params: []Type{Text, BigInt, BigInt}},
		{
			Name: "session", SQL: sqlSession, Params: []Type{Text},
			Columns: columns("user_id, expires_us", two),
		},
		{Name: "remove session", SQL: sqlRemoveSession, Params: []Type{Text}},
		{
			Name: "page of sessions", SQL: sqlSessions, Params: []Type{Text, BigInt},
			Columns: columns("id, expires_us", []Type{Text, BigInt}),
		},
		{Name: "expire sessions", SQL: sqlExpireSessions, Params: []Type{Text, Text, BigInt}},
	}
}

// table describes a table for Load and Rows. The columns of its key come first.
type table struct {
	name    string
	columns string // names, separated by ", "
	types   []Type
	key     int    // number of columns of the key
	page    string // condition, order and limit of a page of rows after a key
}

func tables() []table {
	const byID = "id > $1 order by id limit $2"
	return []table{
		{"users", userColumns, userTypes(), 1, byID},
		{"photos", photoColumns, photoTypes(), 1, byID},
		{"comments", commentColumns, commentTypes(), 1, byID},
		{"follows", followColumns, followTypes(), 2, "(follower, followee) > ($1, $2) order by follower, followee limit $3"},
	}
}

// pages returns the statement that reads a page of rows, in the order of the key.
func (t table) pages() Statement {
	return Statement{
		Name: "page of " + t.name, SQL: "select " + t.columns + " from " + t.name + " where " + t.page,
		Params: append(slices.Clone(t.types[:t.key]), BigInt), Columns: columns(t.columns, t.types),
	}
}

// analyze returns the statement that analyzes the table after it was loaded.
func (t table) analyze() Statement {
	return Statement{Name: "analyze " + t.name, SQL: "analyze " + t.name}
}

// insert returns the statement that inserts this number of rows.
func (t table) insert(rows int) Statement {
	s := Statement{Name: "insert " + strconv.Itoa(rows) + " " + t.name}
	var text strings.Builder
	text.WriteString("insert into " + t.name + " (" + t.columns + ") values ")
	for row := range rows {
		if row > 0 {
			text.WriteString(", ")
		}
		for i := range t.types {
			text.WriteString([]string{"($", ", $"}[min(i, 1)] + strconv.Itoa(row*len(t.types)+i+1))
		}
		text.WriteByte(')')
		s.Params = append(s.Params, t.types...)
	}
	s.SQL = text.String()
	return s
}

// columns returns the columns for names, separated by ", ", and their types.
func columns(names string, types []Type) []Column {
	var all []Column
	for i, name := range strings.Split(names, ", ") {
		all = append(all, Column{Name: name, Type: types[i]})
	}
	return all
}

// schema returns the statements that create the tables and indexes. A statement does
// nothing if its object exists. SQLite stores a table in the order of an "integer
// primary key", or of another key with "without rowid". With the common SQL, every
// read by key would search two trees instead of one.
func schema() []Statement {
	one := func(name, common, key, own string) Statement {
		s := Statement{Name: "create " + name, SQL: common}
		if key != "" {
			s.SQLite = strings.Replace(common, key, own, 1)
		}
		return s
	}
	const id, rowID = "id bigint primary key", "id integer primary key"
	return []Statement{
		one("users", `create table if not exists users (id bigint primary key, login text not null unique, `+
			`name text not null, password text not null, created_us bigint not null, photos bigint not null, `+
			`followers bigint not null, following bigint not null, version bigint not null)`, id, rowID),
		one("photos", `create table if not exists photos (id bigint primary key, user_id bigint not null, `+
			`title text not null, state text not null, width int not null, height int not null, bytes bigint not null, `+
			`created_us bigint not null, likes bigint not null, comments bigint not null, version bigint not null, `+
			`done_us bigint not null)`, id, rowID),
		one("comments", `create table if not exists comments (id bigint primary key, photo_id bigint not null, `+
			`user_id bigint not null, text text not null, created_us bigint not null)`, id, rowID),
		one("follows", `create table if not exists follows (follower bigint not null, followee bigint not null, `+
			`created_us bigint not null, primary key (follower, followee))`, "followee))", "followee)) without rowid"),
		// The index has all columns of the feed's inner query, which then reads no row
		// of photos.
		one("photos by user", `create index if not exists photos_by_user on photos (user_id, created_us, id)`, "", ""),
		one("photos by time", `create index if not exists photos_by_time on photos (created_us, id)`, "", ""),
		// The outbox of photos that have to be processed. It is empty most of the time.
		one("photos in processing", `create index if not exists photos_in_processing on photos (created_us, id) `+
			`where state = 'processing'`, "", ""),
		one("comments by photo", `create index if not exists comments_by_photo on comments (photo_id)`, "", ""),
		// There is no index on the expiry. It would make each login write a second index, and a change of an expiry
		// would need new entries in all indexes of PostgreSQL; without it, the free space of each page is enough.
		one("sessions", `create table if not exists sessions (id text primary key, user_id bigint not null, `+
			`expires_us bigint not null) with (fillfactor = 80)`, "with (fillfactor = 80)", "without rowid"),
	}
}

// SchemaDigest identifies the schema: equal schemas have equal digests. It is part of
// the name of a template of a loaded database.
func SchemaDigest() string {
	sum := sha256.New()
	for _, s := range slices.Concat(schema(), shardSchema()) {
		sum.Write([]byte(s.SQL + "\n" + s.SQLite + "\n"))
	}
	return hex.EncodeToString(sum.Sum(nil)[:8])
}
