package replog

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"zombiezen.com/go/sqlite"
)

// snapshotPiece is how much of a snapshot travels in one message.
const snapshotPiece = 256 << 10

// Snapshot makes a copy of the database in dir and sends it in messages of KindSnapshot, the last of which is empty.
// It flushes nothing. Beat is called each time while the copy is made, for the other node would take silence for
// death; made is called with the file of the copy before it is sent. The connection is used by nobody else meanwhile.
func (f *Feed) Snapshot(conn *sqlite.Conn, dir string, beat func() error, made func(path string) error) error {
	dir, err := os.MkdirTemp(dir, "snapshot-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "copy")
	if err := copyTo(path, conn, f.every, beat); err != nil {
		return err
	}
	if err := made(path); err != nil {
		return err
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	piece := make([]byte, snapshotPiece)
	for {
		n, err := file.Read(piece)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if err := f.Deadline(); err != nil {
			return err
		}
		// The one without bytes is the end.
		if err := Write(f, KindSnapshot, piece[:n]); err != nil || n == 0 {
			return err
		}
	}
}

func copyTo(path string, conn *sqlite.Conn, every time.Duration, beat func() error) error {
	made, stop := make(chan error, 1), make(chan struct{})
	conn.SetInterrupt(stop)
	go func() { made <- Exec(conn, "vacuum into ?", path) }()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case err := <-made:
			if err != nil {
				return fmt.Errorf("snapshot: %w", err)
			}
			return nil
		case <-tick.C:
			if err := beat(); err != nil {
				close(stop)
				<-made
				return err
			}
		}
	}
}
