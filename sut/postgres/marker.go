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
	standbyName = "standby.signal" // PostgreSQL's own: the server starts as a replica
)

// marker is the replication state that is stored in a data directory. A data directory
// without replication has none.
type marker struct {
	Epoch   int64 `json:"epoch"`   // highest known epoch
	Primary bool  `json:"primary"` // primary of that epoch; set before a promotion starts
	// System and Origin identify the template that all copies were made from: the system
	// identifier from initdb, and the position of the last checkpoint. Origin 0 = the
	// template was not shut down cleanly, so its copies cannot become replicas.
	System   string `json:"system"`
	Origin   int64  `json:"origin"`
	Rebuilds int64  `json:"rebuilds"` // times that the whole copy was fetched from a primary
	// From is the epoch before the promotion of this primary; 0 = never promoted. Fork is
	// the position of the promotion, where the histories of the two epochs part; 0 = not
	// complete; math.MaxInt64 = the same server was the primary of both epochs.
	From int64 `json:"from,omitempty"`
	Fork int64 `json:"fork,omitempty"`
	// Lost is the reason why the copy can no longer follow its primary; "" = it can.
	// Diverged is set if the copy may hold changes that its primary lacks.
	Lost     string `json:"lost,omitempty"`
	Diverged bool   `json:"diverged,omitempty"`
}

// readMarker reads the marker of a data directory. found is false if there is none.
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

// writeMarker replaces the marker of a data directory.
func (s *Server) writeMarker(dir string, m marker) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return s.writeOwned(dir, markerName, string(text)+"\n")
}

// updateMarker changes the marker of the server's data directory. It may be called
// concurrently.
func (s *Server) updateMarker(change func(m *marker)) error {
	s.markerMu.Lock()
	defer s.markerMu.Unlock()
	m, _, err := readMarker(s.dir)
	if err != nil {
		return err
	}
	change(&m)
	return s.writeMarker(s.dir, m)
}

// writeOwned replaces a file of a data directory. The server may run and read the file at
// any time, so the rename comes last, after the change of the owner.
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

// control is the control data of a data directory (pg_control).
type control struct {
	system     string // system identifier from initdb
	clean      bool   // a primary was shut down cleanly
	checkpoint int64  // position of the last checkpoint
	timeline   int    // timeline of the last checkpoint
	recovered  int64  // position up to which a replica must apply the WAL to be consistent; else 0
}

// readControl reads the control data of a data directory. No server may use it.
func (s *Server) readControl(ctx context.Context, dir string) (control, error) {
	out, err := s.command(ctx, "pg_controldata", dir).Output()
	if err != nil {
		return control{}, fmt.Errorf("pg_controldata: %w", err)
	}
	return parseControl(string(out))
}

// parseControl parses the output of pg_controldata.
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
		errs = append(errs, errors.New("pg_controldata: no system identifier or no checkpoint in its output"))
	}
	return c, errors.Join(errs...)
}

// parsePosition parses a WAL position (LSN), such as 0/16B3748.
func parsePosition(text string) (int64, error) {
	high, low, found := strings.Cut(text, "/")
	h, errHigh := strconv.ParseUint(high, 16, 31)
	l, errLow := strconv.ParseUint(low, 16, 32)
	if !found || errHigh != nil || errLow != nil {
		return 0, fmt.Errorf("%q is not a WAL position", text)
	}
	return int64(h<<32 | l), nil
}

// formatPosition is the inverse of parsePosition.
func formatPosition(position int64) string {
	return fmt.Sprintf("%X/%X", uint64(position)>>32, uint32(position))
}
