// Package engine is a SQLite database with one connection that writes, a line of writers in front of it, and a pool
// of connections that read. It runs what package wire asks for, translates values and errors, and can put another
// file in the place of the database while clients are connected. What becomes of its changes elsewhere is up to its
// Copies.
//
// A DB may be used by any number of goroutines. The order of calls is Open, Close.
package engine

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"zombiezen.com/go/sqlite"
)

// Config says where a database is and how much it may take.
type Config struct {
	Dir         string // of its files
	Statements  int    // in the catalogue
	ReadConns   int    // connections that read
	Synchronous string // SQLite's setting of that name
	GroupLimit  int    // transactions that may share a commit
	Log         *slog.Logger
}

// The files of a database: the database, what a snapshot is received into, and what one has replaced.
const (
	fileName     = "stagebench.db"
	incomingName = fileName + ".incoming"
	replacedName = fileName + ".epoch-" // and the epoch of its last change
)

func (cfg Config) path() string { return filepath.Join(cfg.Dir, fileName) }

// goodbyeTime is how long clients may finish what they are reading before the database is replaced under them.
const goodbyeTime = time.Second

// ErrNoDatabase is met between a snapshot that could not be opened and the next one.
var ErrNoDatabase = errors.New("there is no database: it was being replaced")

// DB is an open database.
type DB struct {
	// Cancel, set before the first client, cancels what all clients have under way, and can disconnect them.
	Cancel func(disconnect bool)

	cfg     Config
	writer  *writer
	reads   atomic.Int64
	readers []*conn // belongs to the turn
	free    chan *conn
}

// Open opens the database, and makes it where there is none.
func Open(cfg Config) (*DB, error) {
	db := &DB{cfg: cfg, free: make(chan *conn, cfg.ReadConns), writer: &writer{limit: cfg.GroupLimit, copies: Alone{}}}
	if err := db.open(); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

func (db *DB) open() (err error) {
	if db.writer.conn, err = openConn(db.cfg, true); err != nil {
		return err
	}
	for range db.cfg.ReadConns {
		c, err := openConn(db.cfg, false)
		if err != nil {
			return err
		}
		db.readers = append(db.readers, c)
		db.free <- c
	}
	return nil
}

// Use gives the database its copies, before the first client comes.
func (db *DB) Use(c Copies) { db.writer.copies = c }

// Close closes the database; nobody may use it.
func (db *DB) Close() (err error) {
	for _, c := range db.readers {
		err = errors.Join(err, c.close())
	}
	db.readers = nil
	if c := db.writer.conn; c != nil {
		db.writer.conn = nil
		// The last connection to close moves the log into the file and removes it.
		err = errors.Join(err, c.close())
	}
	return err
}

// Stats returns the numbers of statements outside of write transactions, of those, and of their commits.
func (db *DB) Stats() (reads, transactions, commits int64) {
	return db.reads.Load(), db.writer.transactions.Load(), db.writer.commits.Load()
}

// Turn waits in the line of writers until the context ends. Who has the turn may use Conn outside of any transaction
// of clients, and must leave.
func (db *DB) Turn(ctx context.Context) (leave func(), err error) {
	return db.writer.leave, db.writer.await(ctx.Done, true)
}

// Exclusively calls do with the turn and the connection that writes. It returns ErrNoDatabase where there is none.
func (db *DB) Exclusively(do func(*sqlite.Conn) error) error {
	leave, err := db.Turn(context.Background())
	if err != nil {
		return err
	}
	defer leave()
	conn, err := db.Conn()
	if err != nil {
		return err
	}
	return do(conn)
}

// Conn returns the connection that writes, or ErrNoDatabase. It belongs to the turn.
func (db *DB) Conn() (*sqlite.Conn, error) {
	if db.writer.conn == nil {
		return nil, ErrNoDatabase
	}
	return db.writer.conn.Conn, nil
}

// Read calls do with a connection of its own, which only reads.
func (db *DB) Read(do func(*sqlite.Conn) error) error {
	c, err := openConn(db.cfg, false)
	if err != nil {
		return err
	}
	return errors.Join(do(c.Conn), c.Close())
}

// Dir is where the files of the database are.
func (db *DB) Dir() string { return db.cfg.Dir }

// Incoming is where the file that Replace takes is to be.
func (db *DB) Incoming() string { return filepath.Join(db.cfg.Dir, incomingName) }

// Replace puts another file in the place of the database. The turn is held, and clients are told to wait. With an
// epoch the old file is kept under that number, for Kept; -1 = nothing in it can be missing. When this fails there
// may be no database until it is tried again.
func (db *DB) Replace(epoch int64) error {
	db.emptyPool()
	if err := db.Close(); err != nil {
		db.cfg.Log.Warn("closing the replaced database", "cause", err)
	}
	// Should this fail, the old one is there, or an empty one will be made.
	return errors.Join(db.swap(epoch), db.open())
}

// swap moves the incoming file to where the database is. A crash in between leaves no database.
func (db *DB) swap(epoch int64) error {
	path := db.cfg.path()
	if epoch >= 0 {
		old, err := filepath.Glob(filepath.Join(db.cfg.Dir, replacedName+"*"))
		if err != nil {
			return err
		}
		for _, file := range old {
			if err := os.Remove(file); err != nil {
				return err
			}
		}
		if err := os.Rename(path, filepath.Join(db.cfg.Dir, replacedName+strconv.FormatInt(epoch, 10))); err != nil {
			return err
		}
	}
	// Closing has moved the log of SQLite into the file. Were one left, it would be taken for that of the new file.
	for _, rest := range []string{"-wal", "-shm"} {
		if err := os.Remove(path + rest); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return os.Rename(db.Incoming(), path)
}

// Kept returns the file that Replace kept last and its epoch, "" if there is none.
func (db *DB) Kept() (path string, epoch int64, err error) {
	all, err := filepath.Glob(filepath.Join(db.cfg.Dir, replacedName+"*"))
	for _, file := range all {
		if n, err := strconv.ParseInt(filepath.Base(file)[len(replacedName):], 10, 64); err == nil && n >= epoch {
			path, epoch = file, n
		}
	}
	return path, epoch, err
}

// reader takes a connection out of the pool, in the order of arrival, or waits until cancel is closed.
func (db *DB) reader(cancel func() <-chan struct{}) (*conn, error) {
	select {
	case c := <-db.free:
		return c, nil
	default:
	}
	select {
	case c := <-db.free:
		return c, nil
	case <-cancel():
		return nil, errCancelled()
	}
}

// emptyPool takes all connections out of the pool. Clients that keep theirs for longer lose their own.
func (db *DB) emptyPool() {
	db.Cancel(false)
	late := time.NewTimer(goodbyeTime)
	defer late.Stop()
	for range db.readers {
		select {
		case <-db.free:
		case <-late.C:
			db.Cancel(true)
			<-db.free
		}
	}
}
