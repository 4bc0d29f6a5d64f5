package engine

import (
	"runtime"
	"slices"
	"strconv"
	"testing"

	"github.com/stagebench/stagebench/sut/sqlite/wire"
)

// testWriter is a writer on a database with one table of numbers.
func testWriter(t *testing.T) *writer {
	t.Helper()
	cfg := Config{Dir: t.TempDir(), ReadConns: 1, Synchronous: "full"}
	c, err := openConn(cfg, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.close() })
	if err := c.exec("create table numbers (n integer primary key)"); err != nil {
		t.Fatal(err)
	}
	return &writer{limit: 3, copies: Alone{}, conn: c}
}

func never() <-chan struct{} { return nil }

// member is a goroutine that waits in line, inserts a number and ends its
// transaction; what comes of it is on the channel.
func (w *writer) member(n int, end func(*turn) error) <-chan error {
	ahead := w.waiting()
	done := make(chan error, 1)
	go func() {
		t, err := w.acquire(never, false)
		if err == nil {
			if err = w.insert(n); err == nil {
				err = end(t)
			}
		}
		done <- err
	}()
	w.awaitLine(ahead + 1)
	return done
}

func (w *writer) insert(n int) error {
	return w.conn.exec("insert into numbers values (" + strconv.Itoa(n) + ")")
}

// awaitLine returns when so many are in line: the order of arrival matters.
func (w *writer) awaitLine(n int) {
	for w.waiting() < n {
		runtime.Gosched()
	}
}

func (w *writer) waiting() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.line.Len()
}

// numbers is what is in the table.
func (w *writer) numbers(t *testing.T) (all []int) {
	t.Helper()
	stmt, err := w.conn.Prepare("select n from numbers order by n")
	if err != nil {
		t.Fatal(err)
	}
	for {
		more, err := stmt.Step()
		if err != nil {
			t.Fatal(err)
		}
		if !more {
			return all
		}
		all = append(all, stmt.ColumnInt(0))
	}
}

func commitTurn(t *turn) error { return t.commit() }

func rollbackTurn(t *turn) error {
	t.rollback()
	return nil
}

func hold(t *testing.T, w *writer, alone bool) *turn {
	t.Helper()
	turn, err := w.acquire(never, alone)
	if err != nil {
		t.Fatal(err)
	}
	return turn
}

func TestGroupSharesOneCommit(t *testing.T) {
	w := testWriter(t)
	first := hold(t, w, false)
	if err := w.insert(1); err != nil {
		t.Fatal(err)
	}
	second, failing, third := w.member(2, commitTurn), w.member(3, rollbackTurn), w.member(4, commitTurn)
	fourth := w.member(5, commitTurn)
	if err := first.commit(); err != nil {
		t.Fatal(err)
	}
	for _, member := range []<-chan error{second, failing, third, fourth} {
		if err := <-member; err != nil {
			t.Error(err)
		}
	}
	if got := w.numbers(t); !slices.Equal(got, []int{1, 2, 4, 5}) {
		t.Errorf("in the table are %v", got)
	}
	// The third success fills the group of three; who comes after it has a
	// commit of its own.
	if n := w.commits.Load(); n != 2 {
		t.Errorf("%d commits for 4 transactions, want 2", n)
	}
}

func TestFirstMemberRollsBack(t *testing.T) {
	w := testWriter(t)
	first := hold(t, w, false)
	if err := w.insert(1); err != nil {
		t.Fatal(err)
	}
	second := w.member(2, commitTurn)
	first.rollback()
	if err := <-second; err != nil {
		t.Error(err)
	}
	if got := w.numbers(t); !slices.Equal(got, []int{2}) {
		t.Errorf("in the table are %v", got)
	}
}

// TestGroupIsLost: when SQLite takes the whole transaction back, as it does
// when the disk is full, nobody in the group may believe in a commit.
func TestGroupIsLost(t *testing.T) {
	w := testWriter(t)
	first := hold(t, w, false)
	if err := w.insert(1); err != nil {
		t.Fatal(err)
	}
	second := w.member(2, func(t *turn) error {
		defer t.rollback()
		return w.conn.exec("rollback") // as SQLite would
	})
	third := w.member(3, commitTurn)
	if err := first.commit(); wire.State(err) != wire.SerializationFailure {
		t.Errorf("the first member got %v, want a serialization failure", err)
	}
	if err := <-second; err != nil {
		t.Error(err)
	}
	if err := <-third; err != nil {
		t.Error(err)
	}
	if got := w.numbers(t); !slices.Equal(got, []int{3}) {
		t.Errorf("in the table are %v", got)
	}
}

// TestCommitFails: every member of the group hears of it.
func TestCommitFails(t *testing.T) {
	w := testWriter(t)
	for _, sql := range []string{
		"pragma foreign_keys = on",
		"create table others (n integer references numbers deferrable initially deferred)",
	} {
		if err := w.conn.exec(sql); err != nil {
			t.Fatal(err)
		}
	}
	first := hold(t, w, false)
	if err := w.insert(1); err != nil {
		t.Fatal(err)
	}
	// The broken reference is found by the commit.
	second := w.member(2, func(t *turn) error {
		if err := w.conn.exec("insert into others values (4711)"); err != nil {
			t.rollback()
			return err
		}
		return t.commit()
	})
	for _, err := range []error{first.commit(), <-second} {
		if wire.State(err) != wire.ForeignKeyViolation {
			t.Errorf("got %v, want the broken reference", err)
		}
	}
	if got := w.numbers(t); got != nil {
		t.Errorf("in the table are %v", got)
	}
	if err := hold(t, w, false).commit(); err != nil {
		t.Errorf("the next transaction: %v", err)
	}
}

// TestAloneJoinsNoGroup: what is done before it is committed before it.
func TestAloneJoinsNoGroup(t *testing.T) {
	w := testWriter(t)
	first := hold(t, w, false)
	alone := make(chan *turn)
	go func() {
		turn, err := w.acquire(never, true)
		if err != nil {
			t.Error(err)
		}
		alone <- turn
	}()
	w.awaitLine(1)
	if err := first.commit(); err != nil { // does not wait for the other one
		t.Fatal(err)
	}
	turn := <-alone
	if n := w.commits.Load(); n != 1 {
		t.Errorf("%d commits before it, want 1", n)
	}
	turn.rollback()
}

func TestCancelledInLine(t *testing.T) {
	w := testWriter(t)
	first := hold(t, w, false)
	cancel := make(chan struct{})
	gone := make(chan error)
	go func() {
		_, err := w.acquire(func() <-chan struct{} { return cancel }, false)
		gone <- err
	}()
	w.awaitLine(1)
	close(cancel)
	if err := <-gone; wire.State(err) != wire.QueryCanceled {
		t.Errorf("got %v, want that it was cancelled", err)
	}
	if err := first.commit(); err != nil {
		t.Fatal(err)
	}
	hold(t, w, true).rollback()
}

// TestCancelledWithTheTurn: one that is cancelled in the moment in which it
// gets the turn passes on the work of the others.
func TestCancelledWithTheTurn(t *testing.T) {
	w := testWriter(t)
	cancelled := make(chan struct{})
	close(cancelled)
	for i := range 200 {
		first := hold(t, w, false)
		if err := w.insert(i); err != nil {
			t.Fatal(err)
		}
		gone := make(chan error, 1)
		go func() {
			turn, err := w.acquire(func() <-chan struct{} { return cancelled }, false)
			if err == nil {
				turn.rollback()
			}
			gone <- err
		}()
		if err := first.commit(); err != nil {
			t.Fatal(err)
		}
		<-gone
	}
	if got := w.numbers(t); len(got) != 200 {
		t.Errorf("%d of 200 commits are there", len(got))
	}
}
