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

// snapshotPiece is the size in bytes of one snapshot message.
const snapshotPiece = 256 << 10

// Snapshot copies the database to a file in dir and sends the file in messages of KindSnapshot. The last message is
// empty. The caller must call Flush.
//
// Snapshot calls beat at intervals while it makes the copy, because the other node considers a silent node dead. It
// calls made with the path of the finished copy before it sends it. The caller must not use conn during the call.
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
		// A message without bytes marks the end.
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
