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

// Snapshot is the sending of a whole database.
type Snapshot struct {
	Conn *sqlite.Conn // reads it, and is used by nobody else meanwhile
	Dir  string       // where the copy is made, and is gone afterwards
	// Beat is called each Every while the copy is made: the other side would take
	// silence for death. Its error ends the sending.
	Beat  func() error
	Every time.Duration
	// Made looks at the finished copy before it is sent; nil = nobody does.
	Made     func(path string) error
	Deadline func() error // is called before each message
}

// Send makes a copy of the database as it is now and writes it in messages of
// KindSnapshot, the last of which has no bytes. It flushes nothing.
func (s Snapshot) Send(out io.Writer) error {
	dir, err := os.MkdirTemp(s.Dir, "snapshot-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "copy")
	if err := s.make(path); err != nil {
		return err
	}
	if s.Made != nil {
		if err := s.Made(path); err != nil {
			return err
		}
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
		if err := s.Deadline(); err != nil {
			return err
		}
		// The one without bytes is the end.
		if err := Write(out, KindSnapshot, piece[:n]); err != nil || n == 0 {
			return err
		}
	}
}

// make writes the copy.
func (s Snapshot) make(path string) error {
	made, stop := make(chan error, 1), make(chan struct{})
	s.Conn.SetInterrupt(stop)
	go func() { made <- Run(s.Conn, "vacuum into ?", []any{path}, nil) }()
	beat := time.NewTicker(s.Every)
	defer beat.Stop()
	for {
		select {
		case err := <-made:
			if err != nil {
				return fmt.Errorf("snapshot: %w", err)
			}
			return nil
		case <-beat.C:
			if err := s.Beat(); err != nil {
				close(stop)
				<-made
				return err
			}
		}
	}
}

// Receive writes a snapshot into a file, from pieces up to the one without bytes.
func Receive(path string, piece func() ([]byte, error)) (err error) {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	for {
		bytes, err := piece()
		switch {
		case err != nil:
			return err
		case len(bytes) == 0:
			return file.Sync()
		}
		if _, err := file.Write(bytes); err != nil {
			return err
		}
	}
}
