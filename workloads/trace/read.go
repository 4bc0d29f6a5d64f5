package trace

import (
	"bufio"
	"cmp"
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
)

const (
	// maxLine is the length of the longest line that is parsed, in bytes.
	maxLine = 64 << 10
	// lookAhead is the number of lines that are inspected to detect the format.
	lookAhead = 50
	// maxReasons is the maximum number of reasons with a counter of their own.
	// Other reasons share the counter "other".
	maxReasons = 50
	// minYear and maxYear are the limits of times. Others are those of a missing value, such as the year 1 of Go, or
	// of a number in another unit.
	minYear, maxYear = 1900, 2200
)

// entry is one parsed line.
type entry struct {
	time           time.Time
	method, target string // the target as it was logged
	client         string
}

// parser parses the lines of one format. Its error texts contain nothing that
// depends on the line, because broken lines are counted by error text.
type parser interface {
	parse(line string) (entry, error)
}

// errHeader reports a header: the line is neither a record nor broken.
var errHeader = errors.New("a header")

// Read reads a trace to its end and gives it a name. The package comment lists the formats. The input may be
// compressed with gzip, bzip2 or Zstandard. Read returns an error when reading fails or when no line is a
// request. A truncated gzip file, for example one that is still being written, is
// read up to its end; the truncation is counted as a broken line.
func Read(r io.Reader, name string) (*Trace, error) {
	lines, err := newLines(r)
	if err != nil {
		return nil, fmt.Errorf("trace %s: %w", name, err)
	}
	b := builder{trace: &Trace{name: name}, clients: map[string]int{}, paths: map[string]string{}}
	b.trace.stats.Broken = map[string]int64{}
	p := lines.detect()
	for number := int64(1); ; number++ {
		line, err := lines.next()
		switch {
		case errors.Is(err, io.EOF):
			return b.finish()
		case errors.Is(err, errTruncated):
			b.add(p, line, number, err)
			return b.finish()
		case err != nil && !errors.Is(err, errTooLong):
			return nil, fmt.Errorf("trace %s: line %d: %w", name, number, err)
		}
		b.add(p, line, number, err)
	}
}

// builder collects the records of a trace.
type builder struct {
	trace   *Trace
	first   time.Time         // of the first request; the times of the records are relative to it
	latest  time.Duration     // of all requests so far
	parts   bool              // some times have parts of a second
	broken  string            // number of the first broken line, and the reason
	clients map[string]int    // address -> index
	paths   map[string]string // interns the paths: each text is stored once
}

func (b *builder) add(p parser, line string, number int64, err error) {
	s := &b.trace.stats
	if err == nil && strings.TrimSpace(line) == "" {
		return
	}
	var e entry
	if err == nil {
		e, err = p.parse(line)
	}
	if errors.Is(err, errHeader) {
		return
	}
	if err == nil && (e.time.Year() < minYear || e.time.Year() > maxYear) {
		err = errNoTime
	}
	s.Lines++
	var path string
	if err == nil {
		path, err = sendable(e.method, e.target)
	}
	if err != nil {
		b.skip(err.Error(), number)
		return
	}
	if known, found := b.paths[path]; found {
		path = known
	} else {
		b.paths[path] = path
	}
	client, found := b.clients[e.client]
	if !found {
		client = len(b.clients)
		b.clients[e.client] = client
	}
	if len(b.trace.records) == 0 {
		b.first = e.time
	}
	at := e.time.Sub(b.first)
	if at < b.latest {
		s.OutOfOrder++
	}
	b.latest = max(b.latest, at)
	b.parts = b.parts || e.time.Nanosecond() != 0
	b.trace.records = append(b.trace.records, Record{At: at, Method: e.method, Path: path, Client: client})
}

func (b *builder) skip(reason string, line int64) {
	s := &b.trace.stats
	if _, known := s.Broken[reason]; !known && len(s.Broken) >= maxReasons {
		reason = "other"
	}
	s.Broken[reason]++
	if b.broken == "" {
		b.broken = fmt.Sprintf("line %d: %s", line, reason)
	}
}

// finish sorts the records and sets their times.
func (b *builder) finish() (*Trace, error) {
	t := b.trace
	if len(t.records) == 0 {
		reason := "it is empty"
		if b.broken != "" {
			reason = fmt.Sprintf("none of its %d lines is a request: %s", t.stats.Lines, b.broken)
		}
		return nil, fmt.Errorf("trace %s: %s\n"+
			"want an access log, JSON lines, or CSV with a header; see: go doc github.com/stagebench/stagebench/workloads/trace",
			t.name, reason)
	}
	records := t.records
	if t.stats.OutOfOrder > 0 {
		slices.SortStableFunc(records, func(a, b Record) int { return cmp.Compare(a.At, b.At) })
	}
	begin := records[0].At
	for i := range records {
		if records[i].At -= begin; records[i].At < 0 { // more than 292 years, which overflow
			records[i].At = forever
		}
		if i > 0 && records[i].At == records[i-1].At {
			t.stats.DuplicateTimes++
		}
	}
	t.stats.Records, t.stats.Clients, t.stats.Paths = int64(len(records)), len(b.clients), len(b.paths)
	t.stats.Span = records[len(records)-1].At
	if !b.parts {
		spread(records)
	}
	return t, nil
}

// spread distributes the requests of each second evenly over that second. It is
// for logs whose times are whole seconds. Without it all requests of a second
// would be sent at its start, as a burst that did not happen.
func spread(records []Record) {
	for begin := 0; begin < len(records); {
		end := begin + 1
		for end < len(records) && records[end].At == records[begin].At {
			end++
		}
		for i := begin + 1; i < end; i++ {
			records[i].At += time.Second * time.Duration(i-begin) / time.Duration(end-begin)
		}
		begin = end
	}
}

// Errors of reading a line, before it is parsed.
var (
	errTooLong   = errors.New("longer than 64 KiB")
	errTruncated = errors.New("the compressed file is truncated")
)

// lines reads a text line by line. It keeps the lines that detect has read ahead.
type lines struct {
	in    *bufio.Reader
	ahead []result
}

// result is the result of reading one line.
type result struct {
	line string
	err  error
}

// newLines returns a reader of lines. It decompresses gzip, bzip2 and Zstandard.
func newLines(r io.Reader) (*lines, error) {
	in := bufio.NewReaderSize(r, maxLine)
	begin, _ := in.Peek(6) // a shorter input is not compressed
	begins := func(magic string) bool { return strings.HasPrefix(string(begin), magic) }
	var unpacked io.Reader
	var err error
	switch {
	case begins("\x1f\x8b"):
		if unpacked, err = gzip.NewReader(in); err != nil {
			return nil, fmt.Errorf("open as gzip: %w", err)
		}
	case begins("BZh"):
		unpacked = bzip2.NewReader(in)
	case begins("\x28\xb5\x2f\xfd"):
		// Without goroutines, which would have to be stopped.
		if unpacked, err = zstd.NewReader(in, zstd.WithDecoderConcurrency(1)); err != nil {
			return nil, fmt.Errorf("open as Zstandard: %w", err)
		}
	case begins("\xfd7zXZ\x00"):
		return nil, errors.New("it is compressed with xz, which is not read\nunpack it first: unxz FILE")
	case begins("PK\x03\x04"):
		return nil, errors.New("it is a ZIP archive, which is not read\nunpack it first: unzip FILE")
	default:
		return &lines{in: in}, nil
	}
	return &lines{in: bufio.NewReaderSize(unpacked, maxLine)}, nil
}

// next returns the next line without its line break.
func (l *lines) next() (line string, err error) {
	if len(l.ahead) == 0 {
		return l.read()
	}
	first := l.ahead[0]
	l.ahead = l.ahead[1:]
	return first.line, first.err
}

func (l *lines) read() (string, error) {
	text, err := l.in.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = l.in.ReadSlice('\n')
		}
		if err == nil || errors.Is(err, io.EOF) {
			return "", errTooLong
		}
	}
	switch {
	case errors.Is(err, io.EOF) && len(text) == 0:
		return "", io.EOF
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, gzip.ErrChecksum), errors.Is(err, gzip.ErrHeader),
		errors.Is(err, zstd.ErrMagicMismatch), errors.Is(err, zstd.ErrCRCMismatch):
		return "", errTruncated
	case err != nil && !errors.Is(err, io.EOF):
		return "", err
	}
	return strings.TrimRight(string(text), "\r\n"), nil
}

// detect returns the parser that accepts the first valid line of the input.
func (l *lines) detect() parser {
	for len(l.ahead) < lookAhead {
		line, err := l.read()
		l.ahead = append(l.ahead, result{line, err})
		if err != nil && !errors.Is(err, errTooLong) {
			break
		}
	}
	for _, first := range l.ahead {
		if _, err := (combined{}).parse(first.line); err == nil {
			return combined{}
		}
		if _, err := (jsonLines{}).parse(first.line); err == nil {
			return jsonLines{}
		}
		if _, err := (envoy{}).parse(first.line); err == nil {
			return envoy{}
		}
		if isDirective(first.line) {
			return &extended{}
		}
		if isHeader(first.line) {
			return &csvLines{}
		}
	}
	return combined{}
}
