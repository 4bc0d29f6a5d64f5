// Package logs merges the logs of all nodes of a system into one stream, ordered by time.
//
// Every node has a file NODE.log in one directory. Nodes log lines of JSON; native servers
// log in their own formats to the same files. The package only reads files, and keeps one
// line of each file in memory. A line that it cannot parse becomes a record with the line
// as its text.
//
// A Query filters the records. Times are wall-clock times of this machine.
package logs

import (
	"bufio"
	"bytes"
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
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// Record is one line of one node.
type Record struct {
	Time  time.Time
	Node  string
	Level string  // DEBUG, INFO, WARN, ERROR; "" if the line has no level
	Text  string  // the message; of a line that is not JSON, the line without its time
	Field []Field // the other fields of a JSON line, in the order of the line
	Line  string  // the line as it is in the file
}

// Field is one field of a JSON line.
type Field struct{ Name, Value string }

// Query filters records. A record must pass every filter. A zero field filters nothing.
type Query struct {
	Nodes   []string       // records of these nodes
	Level   string         // records of this level or above, and records without a level
	Since   time.Time      // records at or after this time
	Request string         // records with this request id
	Matches *regexp.Regexp // records whose line matches
	Follow  bool           // also stream lines that are written later, until ctx ends
}

// levels returns the levels, the least severe first.
func levels() []string { return []string{"DEBUG", "INFO", "WARN", "ERROR"} }

// Validate returns an error if the level is unknown.
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
	// maxLine bounds the part of a line that is kept, in bytes.
	maxLine = 1 << 20
	// poll is the interval at which followed logs are read. Records that arrive within
	// one interval are sorted by time.
	poll = 200 * time.Millisecond
)

// Stream calls each for every record of the logs in a directory, ordered by time. It
// returns at the end of the logs, or with the first error of each. With Follow it does not
// stop at the end of the logs, and returns nil when ctx ends.
func Stream(ctx context.Context, dir string, q Query, each func(Record) error) error {
	if err := q.Validate(); err != nil {
		return err
	}
	s := &stream{dir: dir, open: map[string]*source{}}
	defer s.close()
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for {
		if err := s.openNew(); err != nil {
			return err
		}
		if err := s.merge(ctx, q, each); err != nil {
			return err
		}
		if !q.Follow {
			return ctx.Err()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// stream holds the open logs.
type stream struct {
	dir  string
	open map[string]*source // by node
}

// openNew opens the logs in the directory that are not open yet.
func (s *stream) openNew() error {
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
		return fmt.Errorf("logs: there is no log in %s\n"+
			"want the directory of a system's logs, or of a cell of a run", s.dir)
	}
	return nil
}

func (s *stream) close() {
	for _, source := range s.open {
		_ = source.file.Close() // read only
	}
}

// merge streams the lines that the logs have now.
func (s *stream) merge(ctx context.Context, q Query, each func(Record) error) error {
	var waiting []*source
	for _, source := range s.open {
		if err := source.advance(); err == nil {
			waiting = append(waiting, source)
		} else if !errors.Is(err, io.EOF) {
			return err
		}
	}
	for len(waiting) > 0 && ctx.Err() == nil {
		first := slices.MinFunc(waiting, byTime) // a linear search: there are few nodes
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
	partial []byte    // start of a line that is not complete yet
	last    time.Time // time of the previous record, used for a line without a time
	next    Record
}

// advance reads the next complete line into next. It returns io.EOF if there is none yet.
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
			return err // the node may still be writing the rest of the line
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

// parse turns a line into a record. previous is the time of the record before, used for a
// line without a time.
func parse(node, line string, previous time.Time) Record {
	r := Record{Time: previous, Node: node, Text: line, Line: line}
	if strings.HasPrefix(line, "{") && r.parseJSON(line) {
		return r
	}
	// PostgreSQL and other servers begin a line with the time.
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

// parseJSON parses a line of JSON and keeps the order of its fields. It returns false and
// changes nothing if the line is not a JSON object.
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
			// The name of the file already says which node it is.
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

// readTime parses RFC 3339 or milliseconds since 1970. It returns fallback for other text.
func readTime(text string, fallback time.Time) time.Time {
	if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return t
	}
	var milliseconds int64
	if _, err := fmt.Sscan(text, &milliseconds); err == nil && milliseconds > 0 {
		return time.UnixMilli(milliseconds)
	}
	return fallback
}

// String returns the record as one line for people: time, node, level, message, fields. Parts of a record may come from
// a client. So what could act on a terminal, or change the order of the text, is shown in the notation of Go:
// control characters, invalid UTF-8 and marks of direction.
func (r Record) String() string {
	var b strings.Builder
	_, _ = fmt.Fprintf(&b, "%s %-7s %-5s %s",
		r.Time.UTC().Format("15:04:05.000"), escaped(r.Node), escaped(r.Level), escaped(r.Text))
	for _, f := range r.Field {
		value := escaped(f.Value)
		if value == "" || value != f.Value || strings.ContainsAny(value, " \"\t") {
			value = strconv.Quote(f.Value)
		}
		_, _ = fmt.Fprintf(&b, " %s=%s", escaped(f.Name), value)
	}
	return b.String()
}

// escaped returns a text with an escape sequence for each character that cannot be printed. A tab can.
func escaped(text string) string {
	var b strings.Builder
	for len(text) > 0 {
		r, size := utf8.DecodeRuneInString(text)
		if r == '\t' || strconv.IsPrint(r) && (r != utf8.RuneError || size > 1) {
			b.WriteString(text[:size])
		} else {
			quoted := strconv.Quote(text[:size])
			b.WriteString(quoted[1 : len(quoted)-1])
		}
		text = text[size:]
	}
	return b.String()
}

// MarshalJSON returns the record as an object with time, node, level, msg and fields. Characters that could act on a
// terminal are written as escape sequences of JSON, so nothing is lost. Only invalid UTF-8, which JSON cannot hold, is
// replaced by U+FFFD.
func (r Record) MarshalJSON() ([]byte, error) {
	fields := map[string]string{}
	for _, f := range r.Field {
		fields[f.Name] = f.Value
	}
	text, err := json.Marshal(struct {
		Time   time.Time         `json:"time"`
		Node   string            `json:"node"`
		Level  string            `json:"level,omitempty"`
		Text   string            `json:"msg"`
		Fields map[string]string `json:"fields,omitempty"`
	}{r.Time, r.Node, r.Level, r.Text, fields})
	var b bytes.Buffer
	for _, c := range string(text) {
		if strconv.IsPrint(c) {
			b.WriteRune(c)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, c) {
			_, _ = fmt.Fprintf(&b, `\u%04x`, unit)
		}
	}
	return b.Bytes(), err
}
