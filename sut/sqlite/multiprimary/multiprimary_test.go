package multiprimary

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
	"zombiezen.com/go/sqlite"

	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testDB is a database with its ledger, without a network.
type testDB struct {
	t      testing.TB
	path   string
	conn   *sqlite.Conn
	ledger *ledger
	clock  Clock
	limits replog.Limits
}

func open(t testing.TB, node string, wall func() time.Time, limits replog.Limits) *testDB {
	t.Helper()
	db := &testDB{t: t, path: filepath.Join(t.TempDir(), node), clock: Clock{Wall: wall}, limits: limits}
	db.reopen(node)
	db.exec("create table if not exists users (id integer primary key, login text unique, size real)")
	db.exec("create table if not exists likes (photo integer not null, user text not null, data blob, " +
		"primary key (photo, user)) without rowid")
	t.Cleanup(func() {
		if err := db.conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// reopen opens the database, and closes it first if it is open. A restart must not change the state of the ledger.
func (db *testDB) reopen(node string) {
	db.t.Helper()
	var before progress
	if db.conn != nil {
		before = db.ledger.now
		if err := db.conn.Close(); err != nil {
			db.t.Fatal(err)
		}
	}
	var err error
	if db.conn, err = sqlite.OpenConn(db.path); err != nil {
		db.t.Fatal(err)
	}
	db.exec("pragma synchronous = off")
	if db.ledger, err = openLedger(db.conn, node, 1, db.limits); err != nil {
		db.t.Fatal(err)
	}
	if before.heads != nil && !reflect.DeepEqual(before, db.ledger.now) {
		db.t.Errorf("after a restart, node %s is at %+v, want %+v", node, db.ledger.now, before)
	}
}

func (db *testDB) exec(sql string, params ...any) {
	db.t.Helper()
	if err := replog.Exec(db.conn, sql, params...); err != nil {
		db.t.Fatalf("%s: %v", sql, err)
	}
}

// transact runs one transaction of a client. Statements may fail with a violated constraint.
func (db *testDB) transact(k retention, commit bool, statements ...string) {
	db.t.Helper()
	db.exec("begin immediate")
	if err := db.ledger.Begin(); err != nil {
		db.t.Fatal(err)
	}
	for _, s := range statements {
		if err := replog.Exec(db.conn, s); err != nil && sqlite.ErrCode(err).ToPrimary() != sqlite.ResultConstraint {
			db.t.Fatalf("%s: %v", s, err)
		}
	}
	if !commit {
		db.ledger.drop()
		db.exec("rollback")
		return
	}
	changes, err := db.ledger.recorded()
	if err == nil && len(changes) > 0 {
		_, err = db.ledger.seal(changes, db.clock.Next(), k)
	}
	if err != nil {
		db.t.Fatal(err)
	}
	db.exec("commit")
	db.ledger.committed()
}

// apply applies entries in one transaction.
func (db *testDB) apply(k retention, all ...replog.Entry) error {
	db.t.Helper()
	db.exec("begin immediate")
	for i := range all {
		db.clock.Observe(all[i].AtUS)
		if err := db.ledger.apply(&all[i], k); err != nil {
			db.ledger.drop()
			db.exec("rollback")
			return err
		}
	}
	db.exec("commit")
	db.ledger.committed()
	return nil
}

// ownEntries returns the entries that the database made itself, with indexes above after.
func (db *testDB) ownEntries(after int64) []replog.Entry {
	db.t.Helper()
	found, err := readEntries(db.conn, 0, db.ledger.now.Last, &hello{All: true, Have: map[string]int64{}}, "")
	if err != nil {
		db.t.Fatal(err)
	}
	return slices.DeleteFunc(found, func(e replog.Entry) bool { return e.Origin != db.ledger.self || e.Seq <= after })
}

// rows returns the rows of a table as sorted lines of text.
func (db *testDB) rows(table string) (lines []string) {
	db.t.Helper()
	err := replog.Run(db.conn, "select * from "+table, nil, func(row *sqlite.Stmt) {
		lines = append(lines, fmt.Sprintf("%q", rowOf(row)))
	})
	if err != nil {
		db.t.Fatal(err)
	}
	slices.Sort(lines)
	return lines
}

func unlimited() replog.Limits { return replog.Limits{Entries: 1 << 20, Bytes: 1 << 40} }

// retainAll returns a retention that keeps everything.
func retainAll() retention { return retention{tombstonesUS: 0} }

// TestConverges lets three databases change few rows and exchange their changes in random order. Only the changes of
// one origin stay in order. A change may arrive before an earlier change of another origin on which it depends. At the
// end, all databases hold the outcome that follows from the set of all changes.
func TestConverges(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(seed, 0))
			at := time.UnixMicro(1_000_000)
			var dbs []*testDB
			for i := range 3 {
				// The clocks differ by more than the time between two changes.
				skew := time.Duration(random.IntN(1000)) * time.Microsecond
				dbs = append(dbs, open(t, fmt.Sprint("db-", i), func() time.Time { return at.Add(skew) }, unlimited()))
			}
			for range 300 {
				at = at.Add(time.Duration(random.IntN(3)) * time.Microsecond)
				db := dbs[random.IntN(3)]
				switch from := dbs[random.IntN(3)]; {
				case random.IntN(50) == 0:
					db.reopen(nodeOf(db.ledger.self))
				case random.IntN(2) == 0 || from == db:
					db.transact(retainAll(), random.IntN(8) > 0, randomStatements(random)...)
				default:
					db.receive(from, random.IntN(4))
				}
			}
			for _, db := range dbs {
				for _, from := range dbs {
					if from != db {
						db.receive(from, math.MaxInt)
					}
				}
			}
			checkOutcome(t, dbs)
			t.Logf("%+v", dbs[0].ledger.now)
		})
	}
}

// receive applies the next changes of another database, at most limit.
func (db *testDB) receive(from *testDB, limit int) {
	db.t.Helper()
	next := from.ownEntries(db.ledger.now.heads[from.ledger.self].seq)
	if err := db.apply(retainAll(), next[:min(limit, len(next))]...); err != nil {
		db.t.Fatal(err)
	}
}

func randomStatements(random *rand.Rand) (statements []string) {
	for range random.IntN(3) + 1 {
		id, login := random.IntN(7), random.IntN(2)
		statements = append(statements, []string{
			fmt.Sprintf("insert into users values (%d, 'login %d', 1.5)", id, login),
			fmt.Sprintf("insert into users values (%d, null, null)", id),
			fmt.Sprintf("update users set login = 'login %d' where id = %d", login, id),
			fmt.Sprintf("update users set size = size + 1 where id = %d", id),
			fmt.Sprintf("update users set id = 8 - id where id = %d", id),
			fmt.Sprintf("delete from users where id = %d", id),
			fmt.Sprintf("insert into likes values (%d, 'ann', x'')", id),
			fmt.Sprintf("update likes set data = x'0%d' where photo = %d", login, id),
			fmt.Sprintf("delete from likes where photo = %d", id),
		}[random.IntN(9)])
	}
	return statements
}

// checkOutcome compares databases that have all changes with the outcome that follows from the set of changes.
func checkOutcome(t *testing.T, dbs []*testDB) {
	t.Helper()
	type row struct {
		Change
		Version
	}
	winners := map[string]row{}
	bases := map[string]bool{}
	forks := int64(0)
	for _, db := range dbs {
		for _, e := range db.ownEntries(0) {
			changes, err := parseChanges(e.Changes)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range changes {
				id := c.Table + string(c.Key)
				base := fmt.Sprint(id, c.Base)
				if bases[base] {
					forks++
				}
				bases[base] = true
				version := Version{AtUS: e.AtUS, Origin: e.Origin}
				if version.Compare(winners[id].Version) > 0 {
					winners[id] = row{c, version}
				}
			}
		}
	}
	var ordered []row
	for _, w := range winners {
		ordered = append(ordered, w)
	}
	slices.SortFunc(ordered, func(a, b row) int {
		return cmp.Or(b.Version.Compare(a.Version), bytes.Compare(b.Key, a.Key))
	})
	want, taken, hidden := map[string][]string{}, map[any]bool{}, int64(0)
	for _, w := range ordered {
		switch {
		case w.Row == nil:
			continue
		case w.Table == "users" && w.Row[1] != nil && taken[w.Row[1]]:
			hidden++
			continue
		case w.Table == "users":
			taken[w.Row[1]] = true
		}
		want[w.Table] = append(want[w.Table], fmt.Sprintf("%q", w.Row))
	}
	for _, db := range dbs {
		for _, table := range []string{"users", "likes"} {
			slices.Sort(want[table])
			if got := db.rows(table); !slices.Equal(got, want[table]) {
				t.Errorf("%s: table %s has\n%v, want\n%v", db.ledger.self, table, got, want[table])
			}
		}
		if now := db.ledger.now; now.forks != forks || now.hidden != hidden {
			const text = "%s counts %d forks and %d hidden rows, want %d and %d"
			t.Errorf(text, db.ledger.self, now.forks, now.hidden, forks, hidden)
		}
	}
}

// TestHiddenRowsReturn: if several rows have the same UNIQUE value, the hidden row with the highest version returns
// when the value is free. The order in which the rows arrived does not matter.
func TestHiddenRowsReturn(t *testing.T) {
	t.Parallel()
	at := int64(0)
	wall := func() time.Time { at++; return time.UnixMicro(at) }
	var dbs []*testDB
	for i := range 4 {
		dbs = append(dbs, open(t, fmt.Sprint("db-", i), wall, unlimited()))
		dbs[i].transact(retainAll(), true, fmt.Sprintf("insert into users values (%d, 'x', null)", i))
	}
	dbs[3].transact(retainAll(), true, "update users set size = 1 where id = 3", "delete from users where id = 3")
	for i, order := range [][]int{{1, 2, 3}, {2, 3, 0}, {3, 0, 1}, {2, 1, 0}} {
		for _, j := range order {
			dbs[i].receive(dbs[j], 1)
		}
		for _, j := range order {
			dbs[i].receive(dbs[j], math.MaxInt)
		}
	}
	checkOutcome(t, dbs)
	// The row with the value gets another one, so a hidden row returns. The deletion of that row frees the value again.
	dbs[2].transact(retainAll(), true, "update users set login = 'y' where id = 2")
	dbs[0].receive(dbs[2], 1)
	dbs[0].transact(retainAll(), true, "delete from users where id = 1")
	if got, want := dbs[0].rows("users"), []string{`['\x00' "x" <nil>]`, `['\x02' "y" <nil>]`}; !slices.Equal(got, want) {
		t.Errorf("the rows are %q, want %q", got, want)
	}
	for _, db := range dbs {
		for _, from := range dbs {
			if from != db {
				db.receive(from, math.MaxInt)
			}
		}
	}
	checkOutcome(t, dbs)
}

func TestAppliesOnceAndInOrder(t *testing.T) {
	t.Parallel()
	from, to := open(t, "a", time.Now, unlimited()), open(t, "b", time.Now, unlimited())
	from.transact(retainAll(), true, "insert into users values (1, 'x', 1)")
	from.transact(retainAll(), true, "delete from users")
	made := from.ownEntries(0)
	if err := to.apply(retainAll(), made[1]); err == nil {
		t.Error("change 2 was applied without change 1")
	}
	if err := to.apply(retainAll(), made[0], made[0], made[1], made[0]); err != nil {
		t.Fatal(err)
	}
	if now := to.ledger.now; now.Last != 2 || now.forks != 0 || len(to.rows("users")) != 0 {
		t.Errorf("the ledger is at %+v, the rows are %v", now, to.rows("users"))
	}
	other := made[1]
	other.Seq, other.Schema = 3, "other"
	if err := to.apply(retainAll(), other); err == nil {
		t.Error("a change of another schema was applied")
	}
	other = made[1]
	other.Seq, other.Changes = 3, other.Changes[:3]
	if err := to.apply(retainAll(), other); err == nil {
		t.Error("a truncated change was applied")
	}
	if _, err := openLedger(to.conn, "c", 1, unlimited()); err == nil {
		t.Error("the database of another node was opened")
	}
}

// TestPrunes: the limits bound the log, the base versions and the tombstones. Tombstones stay until the watermarks of
// all origins have passed them.
func TestPrunes(t *testing.T) {
	t.Parallel()
	grow := func(limits replog.Limits, k retention) *testDB {
		db := open(t, "a", time.Now, limits)
		for i := range 60 {
			db.transact(k, true, fmt.Sprintf("insert into users values (%d, null, null)", i))
			db.transact(k, true, fmt.Sprintf("delete from users where id = %d", i))
		}
		db.reopen("a")
		return db
	}
	free := retention{after: math.MaxInt64, tombstonesUS: math.MaxInt64}
	db := grow(replog.Limits{Entries: 16, Bytes: 1 << 30}, free)
	if n := len(db.rows("replication_changes")); n < 16 || n > 18 {
		t.Errorf("%d entries, want 16 to 18", n)
	}
	if rows, bases := len(db.rows("replication_rows")), len(db.rows("replication_bases")); rows > 11 || bases > 20 {
		t.Errorf("%d tombstones and %d base versions for 16 entries, want at most 11 and 20", rows, bases)
	}
	db = grow(replog.Limits{Entries: 16, Bytes: 1 << 30}, retention{after: 30})
	if db.ledger.now.First != 31 || len(db.rows("replication_rows")) != 60 {
		const text = "with a receiver and an origin that are behind: %+v, %d tombstones"
		t.Errorf(text, db.ledger.now, len(db.rows("replication_rows")))
	}
	db = grow(replog.Limits{Entries: 10, Bytes: 1 << 30}, retention{after: 10, tombstonesUS: math.MaxInt64})
	if db.ledger.now.First <= 11 {
		t.Errorf("with a receiver that is too far behind: %+v", db.ledger.now)
	}
	if db = grow(replog.Limits{Entries: 1000, Bytes: 500}, free); db.ledger.now.Bytes > 563 {
		t.Errorf("500 bytes: %+v", db.ledger.now)
	}
}

func TestClock(t *testing.T) {
	t.Parallel()
	wall := time.UnixMicro(100)
	c := Clock{Wall: func() time.Time { return wall }}
	var got []int64
	got = append(got, c.Next(), c.Next())
	wall = time.UnixMicro(50) // set back
	got = append(got, c.Next())
	c.Observe(10)
	got = append(got, c.Next())
	c.Observe(500)
	got = append(got, c.Next())
	wall = time.UnixMicro(1000)
	got = append(got, c.Next())
	if want := []int64{100, 101, 102, 103, 501, 1000}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestMessages(t *testing.T) {
	t.Parallel()
	want := []Change{
		{
			Table: "t", Key: appendValues(nil, []any{int64(-1), "a"}), Base: Version{AtUS: 7, Origin: "db-1#1"},
			Row:   []any{int64(math.MinInt64), "a\x00b", 1.5, []byte{}, []byte("x"), nil},
			Added: []any{int64(-3), nil, nil, nil, nil, nil},
		},
		{Table: `quoted "table"`, Key: []byte{}, Row: nil},
		{Table: "", Key: []byte{}, Row: []any{nil}},
	}
	var e replog.Entry
	for i := range want {
		e.Changes = appendChange(e.Changes, &want[i])
	}
	e.Seq, e.AtUS, e.Origin, e.Schema = 3, -4, "db-1#1", "digest"
	var b bytes.Buffer
	w := bufio.NewWriter(&b)
	if err := replog.WriteEntry(w, &e); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	kind, body, err := replog.Read(&b, replog.MaxBody)
	if err != nil || kind != replog.KindEntry {
		t.Fatal(kind, err)
	}
	got, err := replog.ParseEntry(body)
	if err != nil || !reflect.DeepEqual(*got, e) {
		t.Errorf("got %+v, %v, want %+v", got, err, e)
	}
	changes, err := parseChanges(got.Changes)
	if err != nil || !reflect.DeepEqual(changes, want) {
		t.Errorf("got %+v, %v, want %+v", changes, err, want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte{})
	row := []any{int64(1), nil, 2.5, "x", []byte("y")}
	f.Add(appendChange(make([]byte, 18), &Change{Table: "t", Key: []byte("i\x02"), Row: row}))
	f.Fuzz(func(t *testing.T, body []byte) {
		if changes, err := parseChanges(body); err == nil {
			var again []byte
			for i := range changes {
				again = appendChange(again, &changes[i])
			}
			if twice, err := parseChanges(again); err != nil || len(twice) != len(changes) {
				t.Errorf("%q became %q, %v", body, again, err)
			}
		}
		_, _ = replog.ParseEntry(body)
		_, _ = parseValues(body)
	})
}
