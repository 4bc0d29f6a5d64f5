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

// book is a database and its ledger, without any network.
type book struct {
	t      testing.TB
	path   string
	conn   *sqlite.Conn
	ledger *ledger
	clock  Clock
	limits replog.Limits
}

func open(t testing.TB, node string, wall func() time.Time, limits replog.Limits) *book {
	t.Helper()
	b := &book{t: t, path: filepath.Join(t.TempDir(), node), clock: Clock{Wall: wall}, limits: limits}
	b.reopen(node)
	b.exec("create table if not exists users (id integer primary key, login text unique, size real)")
	b.exec("create table if not exists likes (photo integer not null, user text not null, data blob, primary key (photo, user)) without rowid")
	t.Cleanup(func() {
		if err := b.conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// reopen is a restart.
func (b *book) reopen(node string) {
	b.t.Helper()
	var before progress
	if b.conn != nil {
		before = b.ledger.now
		if err := b.conn.Close(); err != nil {
			b.t.Fatal(err)
		}
	}
	var err error
	if b.conn, err = sqlite.OpenConn(b.path); err != nil {
		b.t.Fatal(err)
	}
	b.exec("pragma synchronous = off")
	if b.ledger, err = openLedger(b.conn, node, 1, b.limits); err != nil {
		b.t.Fatal(err)
	}
	if before.marks != nil && !reflect.DeepEqual(before, b.ledger.now) {
		b.t.Errorf("opened again %s is at %+v, was at %+v", node, b.ledger.now, before)
	}
}

func (b *book) exec(sql string, params ...any) {
	b.t.Helper()
	if err := replog.Exec(b.conn, sql, params...); err != nil {
		b.t.Fatalf("%s: %v", sql, err)
	}
}

// transact runs one transaction of clients, of which statements may fail.
func (b *book) transact(keep keep, commit bool, statements ...string) {
	b.t.Helper()
	b.exec("begin immediate")
	if err := b.ledger.Begin(); err != nil {
		b.t.Fatal(err)
	}
	for _, s := range statements {
		if err := replog.Exec(b.conn, s); err != nil && sqlite.ErrCode(err).ToPrimary() != sqlite.ResultConstraint {
			b.t.Fatalf("%s: %v", s, err)
		}
	}
	if !commit {
		b.ledger.drop()
		b.exec("rollback")
		return
	}
	changes, err := b.ledger.recorded()
	if err == nil && len(changes) > 0 {
		_, err = b.ledger.seal(changes, b.clock.Next(), keep)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	b.exec("commit")
	b.ledger.committed()
}

// apply applies entries in one transaction.
func (b *book) apply(keep keep, all ...replog.Entry) error {
	b.t.Helper()
	b.exec("begin immediate")
	for i := range all {
		b.clock.Observe(all[i].AtUS)
		if err := b.ledger.apply(&all[i], keep); err != nil {
			b.ledger.drop()
			b.exec("rollback")
			return err
		}
	}
	b.exec("commit")
	b.ledger.committed()
	return nil
}

// made returns what a database has made itself after an entry.
func (b *book) made(after int64) []replog.Entry {
	b.t.Helper()
	found, err := entries(b.conn, 0, b.ledger.now.Last, &hello{All: true, Have: map[string]int64{}}, "")
	if err != nil {
		b.t.Fatal(err)
	}
	return slices.DeleteFunc(found, func(e replog.Entry) bool { return e.Origin != b.ledger.self || e.Seq <= after })
}

// rows is a table as text.
func (b *book) rows(table string) (lines []string) {
	b.t.Helper()
	if err := replog.Run(b.conn, "select * from "+table, nil, func(row *sqlite.Stmt) { lines = append(lines, fmt.Sprintf("%q", rowOf(row))) }); err != nil {
		b.t.Fatal(err)
	}
	slices.Sort(lines)
	return lines
}

func wide() replog.Limits { return replog.Limits{Entries: 1 << 20, Bytes: 1 << 40} }

func all() keep { return keep{horizonUS: 0} }

// TestConverges lets three databases change few rows and hand each other their
// changes in any order that a network could make of it: those of one origin in
// theirs, across origins causes after effects, too. At the end all hold what the
// rules say of the set of all changes.
func TestConverges(t *testing.T) {
	t.Parallel()
	for seed := range uint64(12) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(seed, 0))
			at := time.UnixMicro(1_000_000)
			var books []*book
			for i := range 3 {
				// Clocks differ by more than any two changes.
				skew := time.Duration(random.IntN(1000)) * time.Microsecond
				books = append(books, open(t, fmt.Sprint("db-", i), func() time.Time { return at.Add(skew) }, wide()))
			}
			for range 400 {
				at = at.Add(time.Duration(random.IntN(3)) * time.Microsecond)
				b := books[random.IntN(3)]
				switch from := books[random.IntN(3)]; {
				case random.IntN(50) == 0:
					b.reopen(nodeOf(b.ledger.self))
				case random.IntN(2) == 0 || from == b:
					b.transact(all(), random.IntN(8) > 0, randomStatements(random)...)
				default:
					b.exchange(from, random.IntN(4))
				}
			}
			for _, b := range books {
				for _, from := range books {
					if from != b {
						b.exchange(from, math.MaxInt)
					}
				}
			}
			check(t, books)
			t.Logf("%+v", books[0].ledger.now)
		})
	}
}

func (b *book) exchange(from *book, most int) {
	b.t.Helper()
	some := from.made(b.ledger.now.marks[from.ledger.self].seq)
	if err := b.apply(all(), some[:min(most, len(some))]...); err != nil {
		b.t.Fatal(err)
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

// check compares databases that have all changes with each other, and with the
// outcome as it follows from the set of changes.
func check(t *testing.T, books []*book) {
	t.Helper()
	type row struct {
		Change
		Version
	}
	winners := map[string]row{}
	bases := map[string]bool{}
	forks := int64(0)
	for _, b := range books {
		for _, e := range b.made(0) {
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
	slices.SortFunc(ordered, func(a, b row) int { return cmp.Or(b.Version.Compare(a.Version), bytes.Compare(b.Key, a.Key)) })
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
	for _, b := range books {
		for _, table := range []string{"users", "likes"} {
			slices.Sort(want[table])
			if got := b.rows(table); !slices.Equal(got, want[table]) {
				t.Errorf("%s has in %s\n%v, want\n%v", b.ledger.self, table, got, want[table])
			}
		}
		if now := b.ledger.now; now.forks != forks || now.hidden != hidden {
			t.Errorf("%s counts %d forks and %d hidden rows, want %d and %d", b.ledger.self, now.forks, now.hidden, forks, hidden)
		}
	}
}

// TestHiddenRowsComeBack: of several rows that want one name, the next in line gets
// it when it is free, whatever the order in which they came.
func TestHiddenRowsComeBack(t *testing.T) {
	t.Parallel()
	at := int64(0)
	wall := func() time.Time { at++; return time.UnixMicro(at) }
	var books []*book
	for i := range 4 {
		books = append(books, open(t, fmt.Sprint("db-", i), wall, wide()))
		books[i].transact(all(), true, fmt.Sprintf("insert into users values (%d, 'x', null)", i))
	}
	books[3].transact(all(), true, "update users set size = 1 where id = 3", "delete from users where id = 3")
	for i, order := range [][]int{{1, 2, 3}, {2, 3, 0}, {3, 0, 1}, {2, 1, 0}} {
		for _, j := range order {
			books[i].exchange(books[j], 1)
		}
		for _, j := range order {
			books[i].exchange(books[j], math.MaxInt)
		}
	}
	check(t, books)
	// It leaves a user without a name who then takes the next one's.
	books[2].transact(all(), true, "update users set login = 'y' where id = 2")
	books[0].exchange(books[2], 1)
	books[0].transact(all(), true, "delete from users where id = 1")
	if got, want := books[0].rows("users"), []string{`['\x00' "x" <nil>]`, `['\x02' "y" <nil>]`}; !slices.Equal(got, want) {
		t.Errorf("%q are there, want %q", got, want)
	}
	for _, b := range books {
		for _, from := range books {
			if from != b {
				b.exchange(from, math.MaxInt)
			}
		}
	}
	check(t, books)
}

func TestAppliesOnceAndInOrder(t *testing.T) {
	t.Parallel()
	from, to := open(t, "a", time.Now, wide()), open(t, "b", time.Now, wide())
	from.transact(all(), true, "insert into users values (1, 'x', 1)")
	from.transact(all(), true, "delete from users")
	made := from.made(0)
	if err := to.apply(all(), made[1]); err == nil {
		t.Error("the second change was applied without the first")
	}
	if err := to.apply(all(), made[0], made[0], made[1], made[0]); err != nil {
		t.Fatal(err)
	}
	if now := to.ledger.now; now.Last != 2 || now.forks != 0 || len(to.rows("users")) != 0 {
		t.Errorf("it is at %+v with %v", now, to.rows("users"))
	}
	other := made[1]
	other.Seq, other.Schema = 3, "other"
	if err := to.apply(all(), other); err == nil {
		t.Error("a change of another schema was applied")
	}
	other = made[1]
	other.Seq, other.Changes = 3, other.Changes[:3]
	if err := to.apply(all(), other); err == nil {
		t.Error("a change that is cut short was applied")
	}
	if _, err := openLedger(to.conn, "c", 1, wide()); err == nil {
		t.Error("the database of another node was opened")
	}
}

// TestPrunes: the log is bounded, and memory for deleted rows goes with it, but not
// before all origins are known to be past them.
func TestPrunes(t *testing.T) {
	t.Parallel()
	grow := func(limits replog.Limits, k keep) *book {
		b := open(t, "a", time.Now, limits)
		for i := range 60 {
			b.transact(k, true, fmt.Sprintf("insert into users values (%d, null, null)", i))
			b.transact(k, true, fmt.Sprintf("delete from users where id = %d", i))
		}
		b.reopen("a")
		return b
	}
	free := keep{after: math.MaxInt64, horizonUS: math.MaxInt64}
	b := grow(replog.Limits{Entries: 16, Bytes: 1 << 30}, free)
	if n := len(b.rows("replication_changes")); n < 16 || n > 18 {
		t.Errorf("%d entries, want 16 or few more", n)
	}
	if rows, bases := len(b.rows("replication_rows")), len(b.rows("replication_bases")); rows > 11 || bases > 20 {
		t.Errorf("%d deleted rows and %d bases are remembered for 16 entries", rows, bases)
	}
	b = grow(replog.Limits{Entries: 16, Bytes: 1 << 30}, keep{after: 30})
	if b.ledger.now.First != 31 || len(b.rows("replication_rows")) != 60 {
		t.Errorf("with a follower and an origin that are behind: %+v, %d rows", b.ledger.now, len(b.rows("replication_rows")))
	}
	if b = grow(replog.Limits{Entries: 10, Bytes: 1 << 30}, keep{after: 10, horizonUS: math.MaxInt64}); b.ledger.now.First <= 11 {
		t.Errorf("with a follower that is too far behind: %+v", b.ledger.now)
	}
	if b = grow(replog.Limits{Entries: 1000, Bytes: 500}, free); b.ledger.now.Bytes > 563 {
		t.Errorf("500 bytes: %+v", b.ledger.now)
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
		{Table: "t", Key: appendValues(nil, []any{int64(-1), "a"}), Base: Version{AtUS: 7, Origin: "db-1#1"}, Row: []any{int64(math.MinInt64), "a\x00b", 1.5, []byte{}, []byte("x"), nil}},
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
	f.Add(appendChange(make([]byte, 18), &Change{Table: "t", Key: []byte("i\x02"), Row: []any{int64(1), nil, 2.5, "x", []byte("y")}}))
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
