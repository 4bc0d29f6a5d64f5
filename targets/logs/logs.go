// Package logs reads the logs of all nodes of a system as one stream in the order
// of time.
//
// Nodes log JSON lines, NODE.log in one directory; native servers log lines of
// their own kind into the same files. The package reads files and never writes
// to them; it keeps one line of each file in memory, however large the files
// are. What cannot be understood is passed on as it is.
//
// A Query says which records are wanted. Times are wall-clock times of this
// machine.
package logs

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Record is one line of one node.
type Record struct {
	Time  time.Time
	Node  string
	Level string  // DEBUG, INFO, WARN, ERROR; "" where the line has none
	Text  string  // the message, or the whole line where it is no JSON
	Field []Field // what else a JSON line says, in its order
	Line  string  // as it stands in the file
}

// Field is one fact of a record.
type Field struct{ Name, Value string }

// Query says which records are wanted; what is left at zero asks for nothing.
type Query struct {
	Nodes   []string       // of these nodes
	Level   string         // of this level or above; a line without a level passes
	Since   time.Time      // not before it
	Request string         // of the request with this id
	Matches *regexp.Regexp // whose line matches
	Follow  bool           // go on with what is written later, until ctx ends
}

// levels are the levels from the least to the most important.
func levels() []string { return []string{"DEBUG", "INFO", "WARN", "ERROR"} }

// Validate says what is wrong with a query.
func (q Query) Validate() error {
	if q.Level != "" && !slices.Contains(levels(), q.Level) {
		return fmt.Errorf("level %q: want one of %s", q.Level, strings.Join(levels(), ", "))
	}
	return nil
}

func (q Query) wants(r Record) bool {
	switch {
	case len(q.Nodes) > 0 && !slices.Contains(q.Nodes, r.Node):
		return false
	case q.Level != "" && r.Level != "" && slices.Index(levels(), r.Level) < slices.Index(levels(), q.Level):
		return false
	case r.Time.Before(q.Since):
		return false
	case q.Request != "" && !slices.Contains(r.Field, Field{"request_id", q.Request}):
		return false
	}
	return q.Matches == nil || q.Matches.MatchString(r.Line)
}

const (
	suffix = ".log"
	// maxLine is how much of a line is kept, in bytes.
	maxLine = 1 << 20
	// poll is how often a log that is followed is looked at, and how long the lines
	// of several nodes are collected before they are put in order.
	poll = 200 * time.Millisecond
)

// Stream gives the records of the logs below a directory, in the order of their
// times, to a function, until that returns an error, the logs end, or, when they
// are followed, ctx does, which is no error.
func Stream(ctx context.Context, dir string, q Query, each func(Record) error) error {
	if err := q.Validate(); err != nil {
		return err
	}
	s := &stream{dir: dir, open: map[string]*source{}}
	defer s.close()
	for {
		if err := s.find(); err != nil {
			return err
		}
		if err := s.pass(ctx, q, each); err != nil {
			return err
		}
		if !q.Follow {
			return ctx.Err()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(poll):
		}
	}
}

// stream is the open logs.
type stream struct {
	dir  string
	open map[string]*source
}

// find opens the logs that are there and not open yet.
func (s *stream) find() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("logs: %w", err)
	}
	for _, e := range entries {
		node, isLog := strings.CutSuffix(e.Name(), suffix)
		if !isLog || s.open[node] != nil || e.IsDir() {
			continue
		}
		f, err := os.Open(filepath.Join(s.dir, e.Name()))
		if err != nil {
			return fmt.Errorf("logs: %w", err)
		}
		s.open[node] = &source{node: node, file: f, in: bufio.NewReader(f)}
	}
	if len(s.open) == 0 {
		return fmt.Errorf("logs: there is no log in %s\nwant the directory of a system's logs, or of a cell of a run", s.dir)
	}
	return nil
}

func (s *stream) close() {
	for _, source := range s.open {
		_ = source.file.Close() // read only
	}
}

// pass merges what the logs hold at this moment.
func (s *stream) pass(ctx context.Context, q Query, each func(Record) error) error {
	var waiting []*source
	for _, source := range s.open {
		if err := source.advance(); err == nil {
			waiting = append(waiting, source)
		} else if !errors.Is(err, io.EOF) {
			return err
		}
	}
	for len(waiting) > 0 && ctx.Err() == nil {
		first := slices.MinFunc(waiting, byTime) // of one for each node, which are few
		if q.wants(first.next) {
			if err := each(first.next); err != nil {
				return err
			}
		}
		if err := first.advance(); errors.Is(err, io.EOF) {
			waiting = slices.DeleteFunc(waiting, func(s *source) bool { return s == first })
		} else if err != nil {
			return err
		}
	}
	return nil
}

// source is the log of one node.
type source struct {
	node    string
	file    *os.File
	in      *bufio.Reader
	partial []byte    // the beginning of a line whose end is not there yet
	last    time.Time // of the record before, which a line without a time gets
	next    Record
}

// advance reads the next whole line; io.EOF when there is none yet.
func (s *source) advance() error {
	for {
		piece, err := s.in.ReadSlice('\n')
		if len(s.partial) < maxLine {
			s.partial = append(s.partial, piece...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF):
			return err // the rest may be on its way
		case err != nil:
			return fmt.Errorf("logs: %s: %w", s.node, err)
		}
		line := strings.TrimRight(string(s.partial), "\r\n")
		s.partial = s.partial[:0]
		if strings.TrimSpace(line) == "" {
			continue
		}
		s.next = parse(s.node, line, s.last)
		s.last = s.next.Time
		return nil
	}
}

// byTime orders sources by the time of their next record; equal times by node.
func byTime(a, b *source) int {
	return cmp.Or(a.next.Time.Compare(b.next.Time), strings.Compare(a.node, b.node))
}

// parse understands a line as far as it can. Before is the time of a line that
// has none of its own.
func parse(node, line string, before time.Time) Record {
	r := Record{Time: before, Node: node, Text: line, Line: line}
	if strings.HasPrefix(line, "{") && r.parseJSON(line) {
		return r
	}
	// PostgreSQL and others begin their lines with a time.
	const layout = "2006-01-02 15:04:05.000 MST"
	if len(line) >= len(layout) {
		if t, err := time.Parse(layout, line[:len(layout)]); err == nil {
			r.Time, r.Text = t, strings.TrimSpace(line[len(layout):])
		}
	}
	for _, sign := range []struct{ text, level string }{
		{"FATAL:", "ERROR"},
		{"PANIC:", "ERROR"},
		{"ERROR:", "ERROR"},
		{"WARNING:", "WARN"},
		{"LOG:", "INFO"},
		{"[ALERT]", "ERROR"},
		{"[WARNING]", "WARN"},
		{"[NOTICE]", "INFO"},
		{"panic: ", "ERROR"},
	} {
		if strings.Contains(line, sign.text) {
			r.Level = sign.level
			break
		}
	}
	return r
}

// parseJSON reads an object with its fields in their order.
func (r *Record) parseJSON(line string) bool {
	decoder := json.NewDecoder(strings.NewReader(line))
	if token, err := decoder.Token(); err != nil || token != json.Delim('{') {
		return false
	}
	parsed := *r
	parsed.Text = ""
	for decoder.More() {
		var raw json.RawMessage
		name, err := decoder.Token()
		if err != nil || decoder.Decode(&raw) != nil {
			return false
		}
		value := string(raw)
		var text string
		if json.Unmarshal(raw, &text) == nil {
			value = text
		}
		switch name {
		case "time":
			parsed.Time = readTime(value, parsed.Time)
		case "level":
			parsed.Level = value
		case "msg":
			parsed.Text = value
		case "node":
			// It is the file's, which is known.
		default:
			parsed.Field = append(parsed.Field, Field{fmt.Sprint(name), value})
		}
	}
	if _, err := decoder.Token(); err != nil {
		return false
	}
	*r = parsed
	return true
}

// readTime reads a time as text, or as milliseconds since 1970.
func readTime(text string, otherwise time.Time) time.Time {
	if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return t
	}
	var milliseconds int64
	if _, err := fmt.Sscan(text, &milliseconds); err == nil && milliseconds > 0 {
		return time.UnixMilli(milliseconds)
	}
	return otherwise
}

// String is the record on one line for people: time, node, level, message, facts.
func (r Record) String() string {
	var b strings.Builder
	_, _ = fmt.Fprintf(&b, "%s %-7s %-5s %s", r.Time.UTC().Format("15:04:05.000"), r.Node, r.Level, r.Text)
	for _, f := range r.Field {
		value := f.Value
		if value == "" || strings.ContainsAny(value, " \"\t\n") {
			value = fmt.Sprintf("%q", value)
		}
		_, _ = fmt.Fprintf(&b, " %s=%s", f.Name, value)
	}
	return b.String()
}
