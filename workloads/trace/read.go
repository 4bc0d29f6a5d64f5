package trace

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

const (
	// maxLine is the longest line in bytes that is looked at.
	maxLine = 64 << 10
	// lookAhead is how many lines the format is guessed from.
	lookAhead = 50
	// maxReasons bounds the different reasons that are counted apart.
	maxReasons = 50
)

// entry is one line that was understood.
type entry struct {
	time           time.Time
	method, target string // the target as it was logged
	client         string
}

// parser understands the lines of one format. What is wrong with a line is said
// in words that do not change from line to line, so that they can be counted.
type parser interface {
	parse(line string) (entry, error)
}

// errHeader is for a line that is no record and not broken either.
var errHeader = errors.New("a header")

// Read reads a trace of that name to its end: an access log, JSON lines, or CSV with a
// header that names the columns; gzip is recognised. It fails when reading fails
// or no line could be understood; a file that breaks off, as one does that is
// still being written, is read as far as it goes and the break is counted.
func Read(r io.Reader, name string) (*Trace, error) {
	lines, err := newLines(r)
	if err != nil {
		return nil, fmt.Errorf("trace %s: %w", name, err)
	}
	b := builder{trace: &Trace{name: name}, clients: map[string]int{}, paths: map[string]string{}}
	b.trace.stats.Broken = map[string]int64{}
	p := lines.guess()
	for number := int64(1); ; number++ {
		line, err := lines.next()
		switch {
		case errors.Is(err, io.EOF):
			return b.finish()
		case errors.Is(err, errBrokenOff):
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
	times   []time.Time
	latest  time.Time
	broken  string // the first line that is no request, and why
	clients map[string]int
	paths   map[string]string // each path once, however many ask for it
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
	if e.time.Before(b.latest) {
		s.OutOfOrder++
	} else {
		b.latest = e.time
	}
	b.times = append(b.times, e.time)
	b.trace.records = append(b.trace.records, Record{Method: e.method, Path: path, Client: client})
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

// finish sorts the records and gives them their times.
func (b *builder) finish() (*Trace, error) {
	t := b.trace
	if len(t.records) == 0 {
		why := "it is empty"
		if b.broken != "" {
			why = fmt.Sprintf("none of its %d lines is a request: %s", t.stats.Lines, b.broken)
		}
		return nil, fmt.Errorf("trace %s: %s\nwant an access log, JSON lines, or CSV with a header", t.name, why)
	}
	order := make([]int, len(t.records))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int { return b.times[i].Compare(b.times[j]) })
	records := make([]Record, len(order))
	begin := b.times[order[0]]
	wholeSeconds := true
	for to, from := range order {
		records[to] = t.records[from]
		records[to].At = b.times[from].Sub(begin)
		wholeSeconds = wholeSeconds && b.times[from].Nanosecond() == 0
		if to > 0 && records[to].At == records[to-1].At {
			t.stats.DuplicateTimes++
		}
	}
	t.records = records
	t.stats.Records, t.stats.Clients, t.stats.Paths = int64(len(records)), len(b.clients), len(b.paths)
	t.stats.Span = records[len(records)-1].At
	if wholeSeconds {
		spread(records)
	}
	return t, nil
}

// spread places the requests of each second evenly within it. A log that knows
// only seconds says nothing about where in its second a request came; all of
// them at its beginning would be bursts that nobody saw.
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

// What can be wrong with the line as such.
var (
	errTooLong   = errors.New("longer than 64 KiB")
	errBrokenOff = errors.New("the compressed file breaks off")
)

// lines reads a text line by line, and remembers those that it has looked at in
// advance.
type lines struct {
	in    *bufio.Reader
	ahead []result
}

// result is what reading a line came to.
type result struct {
	line string
	err  error
}

// newLines opens a text that may be compressed.
func newLines(r io.Reader) (*lines, error) {
	in := bufio.NewReaderSize(r, maxLine)
	if magic, _ := in.Peek(2); string(magic) == "\x1f\x8b" {
		unpacked, err := gzip.NewReader(in)
		if err != nil {
			return nil, fmt.Errorf("it looks like gzip: %w", err)
		}
		in = bufio.NewReaderSize(unpacked, maxLine)
	}
	return &lines{in: in}, nil
}

// next returns the next line without its end.
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
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, gzip.ErrChecksum), errors.Is(err, gzip.ErrHeader):
		return "", errBrokenOff
	case err != nil && !errors.Is(err, io.EOF):
		return "", err
	}
	return strings.TrimRight(string(text), "\r\n"), nil
}

// guess returns the parser of the format in which the first lines make sense.
func (l *lines) guess() parser {
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
		if isHeader(first.line) {
			return &csvLines{}
		}
	}
	return combined{}
}
