package sqlite

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"zombiezen.com/go/sqlite"

	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

// Files beside the database: what a snapshot is received into, and what one
// has replaced.
const (
	incomingName = fileName + ".incoming"
	replacedName = fileName + ".epoch-" // and the epoch of its last change
)

// goodbyeTime is how long clients of a replica may finish what they are
// reading before the database is replaced under them.
const goodbyeTime = time.Second

// positionOf returns the last position in the log of a database file.
func positionOf(path string) (position int64, err error) {
	c, err := sqlite.OpenConn(path, sqlite.OpenReadOnly)
	if err != nil {
		return 0, err
	}
	position, err = replog.Position(c)
	return position, errors.Join(err, c.Close())
}

// replace puts a snapshot in the place of the database. The writer's turn is
// held and clients are told to wait. What was there is kept beside it, unless
// nothing in it can be missing. When this fails the copy must be replaced
// still, by another attempt.
func (r *replication) replace(keep bool) error {
	s := r.server
	if _, err := positionOf(filepath.Join(s.cfg.Dir, incomingName)); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	_, epoch := r.log.Last()
	s.emptyReaders()
	err := s.readers.close()
	s.readers.all = nil
	if c := s.writer.conn; c != nil {
		s.writer.conn = nil
		err = errors.Join(err, c.close())
	}
	if err != nil {
		s.cfg.Log.Warn("closing the replaced database", "cause", err)
	}
	if err := swapFiles(s.cfg.Dir, epoch, keep); err != nil {
		// The old one is there, or an empty one will be made.
		return errors.Join(fmt.Errorf("snapshot: %w", err), s.reopen())
	}
	return s.reopen()
}

// swapFiles moves the snapshot to where the database is. A death in between
// leaves no database: the node begins with an empty one and asks for a
// snapshot again.
func swapFiles(dir string, epoch int64, keep bool) error {
	path := filepath.Join(dir, fileName)
	if keep {
		old, err := filepath.Glob(path + ".epoch-*")
		if err != nil {
			return err
		}
		for _, file := range old {
			if err := os.Remove(file); err != nil {
				return err
			}
		}
		if err := os.Rename(path, filepath.Join(dir, replacedName+strconv.FormatInt(epoch, 10))); err != nil {
			return err
		}
	}
	// Closing has moved the log of SQLite into the file. Were one left, it
	// would be taken for that of the snapshot.
	for _, rest := range []string{"-wal", "-shm"} {
		if err := os.Remove(path + rest); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return os.Rename(filepath.Join(dir, incomingName), path)
}

// reopen opens the database that is there now.
func (s *Server) reopen() (err error) {
	c, err := openConn(s.cfg, len(s.catalogue), true)
	if err != nil {
		return err
	}
	s.writer.conn = c
	if err := s.replication.open(); err != nil {
		return err
	}
	fresh, err := openReaders(s.cfg, len(s.catalogue))
	if err != nil {
		return err
	}
	s.readers.all = fresh.all
	for _, c := range fresh.all {
		s.readers.free <- c
	}
	return nil
}

// emptyReaders takes all readers out of the pool. Statements are cancelled;
// clients that hold a reader without a word lose their connection.
func (s *Server) emptyReaders() {
	s.wire.Cancel(false)
	late := time.NewTimer(goodbyeTime)
	defer late.Stop()
	for range s.readers.all {
		select {
		case <-s.readers.free:
			continue
		case <-late.C:
		}
		s.wire.Cancel(true)
		<-s.readers.free
	}
}
