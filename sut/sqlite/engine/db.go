// Package engine is a SQLite database with one write connection, a queue of writers for it, and a pool of read
// connections. It runs the statements of package wire and translates values and errors. It can replace the database
// file while clients are connected. A Replicator receives the changes.
//
// A DB may be used by any number of goroutines. The order of calls is Open, Close.
package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"zombiezen.com/go/sqlite"
)

// Config is the configuration of a database.
type Config struct {
	Dir         string // directory of the database files
	Statements  int    // number of statements in the catalogue
	ReadConns   int    // number of read connections
	Synchronous string // SQLite's pragma synchronous
	GroupLimit  int    // maximum number of transactions that share a commit
	MaxKept     int    // number of files that Replace keeps
	MaxBytes    int64  // of the file; a transaction of a client that needs more fails; 0 = no limit
	Log         *slog.Logger
}

// The files of a database: the database, a snapshot that is being received, and a replaced database.
const (
	fileName     = "stagebench.db"
	incomingName = fileName + ".incoming"
	keptPrefix   = fileName + ".epoch-" // followed by the epoch of its last change, '-' and the time in microseconds
)

// pages returns the maximum number of pages of the file for the transactions of clients.
func (cfg Config) pages() int64 {
	if cfg.MaxBytes == 0 {
		return maxPages
	}
	return max(cfg.MaxBytes/pageBytes, 1)
}

func (cfg Config) path() string { return filepath.Join(cfg.Dir, fileName) }

// drainTime is how long clients may finish their reads before the database is replaced.
const drainTime = time.Second

// ErrNoDatabase is returned after a snapshot could not be opened, until another one is installed.
var ErrNoDatabase = errors.New("no database: the received snapshot could not be opened")

// DB is an open database.
type DB struct {
	// Cancel cancels the running statements of all clients. With disconnect it also closes their connections. The owner
	// sets it before the first client connects.
	Cancel func(disconnect bool)

	cfg     Config
	writer  *writer
	reads   atomic.Int64
	readers []*conn    // guarded by the write lock
	free    chan *conn // readers that no client uses
}

// Open opens the database and creates it if it does not exist.
func Open(cfg Config) (*DB, error) {
	w := &writer{limit: cfg.GroupLimit, pages: cfg.pages(), replicator: NoReplication{}}
	db := &DB{cfg: cfg, free: make(chan *conn, cfg.ReadConns), writer: w}
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

// Use sets the replicator. Call it before the first client connects.
func (db *DB) Use(r Replicator) { db.writer.replicator = r }

// Close closes the database. No client may use it any more.
func (db *DB) Close() (err error) {
	for _, c := range db.readers {
		err = errors.Join(err, c.close())
	}
	db.readers = nil
	if c := db.writer.conn; c != nil {
		db.writer.conn = nil
		// The last connection to close moves SQLite's write-ahead log into the file and removes the log.
		err = errors.Join(err, c.close())
	}
	return err
}

// Stats returns three counters: statements outside write transactions, write transactions, and their commits.
func (db *DB) Stats() (reads, transactions, commits int64) {
	return db.reads.Load(), db.writer.transactions.Load(), db.writer.commits.Load()
}

// LockWriter waits for the write lock until ctx ends. The holder may use Conn, and no transaction of a client is open.
// The holder must call unlock. MaxBytes does not hold for what it writes: a database must be able to take what another
// one has taken.
func (db *DB) LockWriter(ctx context.Context) (unlock func(), err error) {
	if err := db.writer.lock(ctx.Done, true); err != nil {
		return nil, err
	}
	if c := db.writer.conn; c != nil {
		if err := c.limit(maxPages); err != nil {
			db.writer.unlock()
			return nil, err
		}
	}
	return db.writer.unlock, nil
}

// Exclusively calls do with the write connection while it holds the write lock. It returns ErrNoDatabase if there is no
// database.
func (db *DB) Exclusively(do func(*sqlite.Conn) error) error {
	unlock, err := db.LockWriter(context.Background())
	if err != nil {
		return err
	}
	defer unlock()
	conn, err := db.Conn()
	if err != nil {
		return err
	}
	return do(conn)
}

// Conn returns the write connection, or ErrNoDatabase. The caller must hold the write lock.
func (db *DB) Conn() (*sqlite.Conn, error) {
	if db.writer.conn == nil {
		return nil, ErrNoDatabase
	}
	return db.writer.conn.Conn, nil
}

// Read calls do with a new read-only connection.
func (db *DB) Read(do func(*sqlite.Conn) error) error {
	c, err := openConn(db.cfg, false)
	if err != nil {
		return err
	}
	return errors.Join(do(c.Conn), c.Close())
}

// Dir returns the directory of the database files.
func (db *DB) Dir() string { return db.cfg.Dir }

// Incoming returns the path of the file that Replace installs.
func (db *DB) Incoming() string { return filepath.Join(db.cfg.Dir, incomingName) }

// Replace replaces the database with the incoming file. The caller holds the write lock and has told clients to wait.
// The old file is kept under the given epoch, see Kept; with epoch -1 it is overwritten, because it holds no lost
// changes. After an error there may be no database until the next Replace.
func (db *DB) Replace(epoch int64) error {
	db.drainPool()
	if err := db.Close(); err != nil {
		db.cfg.Log.Warn("closing the replaced database", "cause", err)
	}
	// If swap fails, open opens the old database or creates an empty one.
	return errors.Join(db.swap(epoch), db.open())
}

// swap moves the incoming file to the path of the database. A crash in the middle leaves no database.
func (db *DB) swap(epoch int64) error {
	path := db.cfg.path()
	if epoch >= 0 {
		if err := db.keep(path, epoch); err != nil {
			return err
		}
	}
	// Close has moved SQLite's write-ahead log into the file. A remaining log would be applied to the new file.
	if err := removeLog(path); err != nil {
		return err
	}
	return os.Rename(db.Incoming(), path)
}

// The suffixes of SQLite's write-ahead log and of its index.
const walSuffix, shmSuffix = "-wal", "-shm"

// removeLog removes the write-ahead log of a file, if there is one.
func removeLog(path string) error {
	for _, suffix := range []string{walSuffix, shmSuffix} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// keep moves the replaced database aside. If too many files are kept already, the new one is an empty file.
func (db *DB) keep(path string, epoch int64) error {
	kept, err := db.Kept()
	if err != nil {
		return err
	}
	to := filepath.Join(db.cfg.Dir, keptPrefix+fmt.Sprintf("%d-%d", epoch, time.Now().UnixMicro()))
	if len(kept) >= db.cfg.MaxKept {
		return os.WriteFile(to, nil, 0o600)
	}
	// A connection that read the old file at this moment has kept Close from moving the write-ahead log into it.
	if err := os.Rename(path+walSuffix, to+walSuffix); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Rename(path, to)
}

// Kept is a database file that Replace kept.
type Kept struct {
	Name, Path string
	Epoch      int64
	Empty      bool // too many files were kept already
}

// Kept lists the files that Replace kept and that Drop has not removed, oldest first.
func (db *DB) Kept() (all []Kept, err error) {
	paths, err := filepath.Glob(filepath.Join(db.cfg.Dir, keptPrefix+"*-*"))
	for _, path := range paths {
		name := filepath.Base(path)[len(fileName)+1:]
		var k Kept
		var at int64
		if _, err := fmt.Sscanf(name, "epoch-%d-%d", &k.Epoch, &at); err != nil || strings.Count(name, "-") != 2 {
			continue // a write-ahead log
		}
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		k.Name, k.Path, k.Empty = name, path, info.Size() == 0
		all = append(all, k)
	}
	slices.SortFunc(all, func(a, b Kept) int { return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Name, b.Name)) })
	return all, err
}

// Drop removes a kept file. It does nothing if there is none with this name.
func (db *DB) Drop(name string) error {
	kept, err := db.Kept()
	for _, k := range kept {
		if k.Name == name {
			return errors.Join(os.Remove(k.Path), removeLog(k.Path))
		}
	}
	return err
}

// reader takes a connection out of the pool, in order of arrival. It waits until cancel is closed.
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

// drainPool takes all connections out of the pool. It disconnects clients that keep a connection for longer than
// drainTime.
func (db *DB) drainPool() {
	db.Cancel(false)
	late := time.NewTimer(drainTime)
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
