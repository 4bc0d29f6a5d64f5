package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Files of a data directory.
const (
	markerName  = "stagebench_replication.json"
	standbyName = "standby.signal" // the server's own: it is a replica
)

// marker is what a data directory remembers of its part in a replication. One
// that was never part of any has none.
type marker struct {
	Epoch   int64 `json:"epoch"`   // the highest known
	Primary bool  `json:"primary"` // it was the primary of that epoch, or began to become it
	// System and Origin name the directory that all copies come from: the
	// identifier that initdb gave it, and the position of its last checkpoint; 0 =
	// it was not stopped in order, so that no copy of it can join.
	System   string `json:"system"`
	Origin   int64  `json:"origin"`
	Rebuilds int64  `json:"rebuilds"` // times that the whole was fetched anew
	// From is the epoch before the promotion that made it the primary, and Fork the
	// position at which it began to differ from then on; 0 = it was never promoted.
	From int64 `json:"from,omitempty"`
	Fork int64 `json:"fork,omitempty"`
	// Lost is why the copy cannot follow its primary any more; "" = it can.
	// Diverged says that it holds what its primary does not.
	Lost     string `json:"lost,omitempty"`
	Diverged bool   `json:"diverged,omitempty"`
}

// readMarker reads a directory's marker; found is false when it has none.
func readMarker(dir string) (m marker, found bool, err error) {
	text, err := os.ReadFile(filepath.Join(dir, markerName))
	if errors.Is(err, fs.ErrNotExist) {
		return marker{}, false, nil
	}
	if err == nil {
		m, err = parseMarker(text)
	}
	return m, err == nil, err
}

func parseMarker(text []byte) (m marker, err error) {
	if err := json.Unmarshal(text, &m); err != nil {
		return marker{}, fmt.Errorf("%s: %w", markerName, err)
	}
	return m, nil
}

// writeMarker replaces a directory's marker.
func (s *Server) writeMarker(dir string, m marker) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return s.writeOwned(dir, markerName, string(text)+"\n")
}

// updateMarker changes the marker of the server's data directory.
func (s *Server) updateMarker(change func(m *marker)) error {
	s.marking.Lock()
	defer s.marking.Unlock()
	m, _, err := readMarker(s.dir)
	if err != nil {
		return err
	}
	change(&m)
	return s.writeMarker(s.dir, m)
}

// writeOwned replaces a file of a data directory under a running server: it is
// the server's before it has its name, as the server reads it whenever it likes.
func (s *Server) writeOwned(dir, name, text string) error {
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		return err
	}
	if err := s.owner.own(path + ".new"); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// control is what a server notes about its data directory.
type control struct {
	system     string // identifier that initdb gave it
	clean      bool   // it was stopped in order, and not as a replica
	checkpoint int64  // position of the last checkpoint
	timeline   int    // of the last checkpoint
	recovered  int64  // how far a replica has to apply the log to be consistent; 0 for others
}

// readControl reads the control data of a data directory that no server uses.
func (s *Server) readControl(ctx context.Context, dir string) (control, error) {
	out, err := s.command(ctx, "pg_controldata", dir).Output()
	if err != nil {
		return control{}, fmt.Errorf("pg_controldata: %w", err)
	}
	return parseControl(string(out))
}

// parseControl reads what pg_controldata prints.
func parseControl(text string) (control, error) {
	var c control
	var errs []error
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		var err error
		switch name {
		case "Database system identifier":
			c.system = value
		case "Database cluster state":
			c.clean = value == "shut down"
		case "Latest checkpoint's TimeLineID":
			c.timeline, err = strconv.Atoi(value)
		case "Latest checkpoint location":
			c.checkpoint, err = parsePosition(value)
		case "Minimum recovery ending location":
			c.recovered, err = parsePosition(value)
		}
		errs = append(errs, err)
	}
	if c.system == "" || c.checkpoint == 0 {
		errs = append(errs, errors.New("pg_controldata: neither identifier nor checkpoint in its output"))
	}
	return c, errors.Join(errs...)
}

// parsePosition reads a position in the log, such as 0/16B3748.
func parsePosition(text string) (int64, error) {
	high, low, found := strings.Cut(text, "/")
	h, errHigh := strconv.ParseUint(high, 16, 31)
	l, errLow := strconv.ParseUint(low, 16, 32)
	if !found || errHigh != nil || errLow != nil {
		return 0, fmt.Errorf("%q is no position in the log", text)
	}
	return int64(h<<32 | l), nil
}

// formatPosition is the inverse of parsePosition.
func formatPosition(position int64) string {
	return fmt.Sprintf("%X/%X", uint64(position)>>32, uint32(position))
}
