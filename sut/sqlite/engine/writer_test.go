package engine

import (
	"runtime"
	"slices"
	"strconv"
	"testing"

	"github.com/stagebench/stagebench/sut/sqlite/wire"
)

// testWriter returns a writer on a database with one table of numbers.
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
	return &writer{limit: 3, replicator: NoReplication{}, conn: c}
}

func never() <-chan struct{} { return nil }

// member starts a goroutine that waits for the write lock, inserts a number and ends its transaction with end. The
// channel returns the result.
func (w *writer) member(n int, end func(*writeTx) error) <-chan error {
	ahead := w.waiting()
	done := make(chan error, 1)
	go func() {
		t, err := w.begin(never, false)
		if err == nil {
			if err = w.insert(n); err == nil {
				err = end(t)
			}
		}
		done <- err
	}()
	w.awaitQueue(ahead + 1)
	return done
}

func (w *writer) insert(n int) error {
	return w.conn.exec("insert into numbers values (" + strconv.Itoa(n) + ")")
}

// awaitQueue returns when n writers are queued. The tests need a known order of arrival.
func (w *writer) awaitQueue(n int) {
	for w.waiting() < n {
		runtime.Gosched()
	}
}

func (w *writer) waiting() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.queue.Len()
}

// numbers returns the content of the table.
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

func commitTx(t *writeTx) error { return t.commit() }

func rollbackTx(t *writeTx) error {
	t.rollback()
	return nil
}

func hold(t *testing.T, w *writer, exclusive bool) *writeTx {
	t.Helper()
	writeTx, err := w.begin(never, exclusive)
	if err != nil {
		t.Fatal(err)
	}
	return writeTx
}

func TestGroupSharesOneCommit(t *testing.T) {
	w := testWriter(t)
	first := hold(t, w, false)
	if err := w.insert(1); err != nil {
		t.Fatal(err)
	}
	second, failing, third := w.member(2, commitTx), w.member(3, rollbackTx), w.member(4, commitTx)
	fourth := w.member(5, commitTx)
	if err := first.commit(); err != nil {
		t.Fatal(err)
	}
	for _, member := range []<-chan error{second, failing, third, fourth} {
		if err := <-member; err != nil {
			t.Error(err)
		}
	}
	if got := w.numbers(t); !slices.Equal(got, []int{1, 2, 4, 5}) {
		t.Errorf("the table has %v", got)
	}
	// The third success fills the group of three. The next transaction has its own commit.
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
	second := w.member(2, commitTx)
	first.rollback()
	if err := <-second; err != nil {
		t.Error(err)
	}
	if got := w.numbers(t); !slices.Equal(got, []int{2}) {
		t.Errorf("the table has %v", got)
	}
}

// TestGroupIsRolledBack: SQLite rolls back the whole transaction, as it does when the disk is full. No member of the
// group may report a commit.
func TestGroupIsRolledBack(t *testing.T) {
	w := testWriter(t)
	first := hold(t, w, false)
	if err := w.insert(1); err != nil {
		t.Fatal(err)
	}
	second := w.member(2, func(t *writeTx) error {
		defer t.rollback()
		return w.conn.exec("rollback") // as SQLite would
	})
	third := w.member(3, commitTx)
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
		t.Errorf("the table has %v", got)
	}
}

// TestCommitFails: every member of the group gets the error.
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
	// The commit detects the broken reference.
	second := w.member(2, func(t *writeTx) error {
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
		t.Errorf("the table has %v", got)
	}
	if err := hold(t, w, false).commit(); err != nil {
		t.Errorf("the next transaction: %v", err)
	}
}

// TestExclusiveJoinsNoGroup: earlier transactions commit before an exclusive transaction begins.
func TestExclusiveJoinsNoGroup(t *testing.T) {
	w := testWriter(t)
	first := hold(t, w, false)
	exclusive := make(chan *writeTx)
	go func() {
		writeTx, err := w.begin(never, true)
		if err != nil {
			t.Error(err)
		}
		exclusive <- writeTx
	}()
	w.awaitQueue(1)
	if err := first.commit(); err != nil { // does not wait for the exclusive transaction
		t.Fatal(err)
	}
	writeTx := <-exclusive
	if n := w.commits.Load(); n != 1 {
		t.Errorf("%d commits before the exclusive transaction, want 1", n)
	}
	writeTx.rollback()
}

func TestCancelledInQueue(t *testing.T) {
	w := testWriter(t)
	first := hold(t, w, false)
	cancel := make(chan struct{})
	gone := make(chan error)
	go func() {
		_, err := w.begin(func() <-chan struct{} { return cancel }, false)
		gone <- err
	}()
	w.awaitQueue(1)
	close(cancel)
	if err := <-gone; wire.State(err) != wire.QueryCanceled {
		t.Errorf("got %v, want an error of a cancelled statement", err)
	}
	if err := first.commit(); err != nil {
		t.Fatal(err)
	}
	hold(t, w, true).rollback()
}

// TestCancelledWithTheLock: a writer is cancelled at the moment in which it gets the lock. It must pass on the work of
// the others.
func TestCancelledWithTheLock(t *testing.T) {
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
			writeTx, err := w.begin(func() <-chan struct{} { return cancelled }, false)
			if err == nil {
				writeTx.rollback()
			}
			gone <- err
		}()
		if err := first.commit(); err != nil {
			t.Fatal(err)
		}
		<-gone
	}
	if got := w.numbers(t); len(got) != 200 {
		t.Errorf("%d rows, want 200", len(got))
	}
}
