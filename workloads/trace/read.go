package trace

import (
	"bufio"
	"cmp"
	"compress/bzip2"
	"compress/gzip"
	"container/heap"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
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
//
// The requests are kept in the spool; nil = in memory. The spool must exist as long as the trace is used.
func Read(r io.Reader, name string, spool Spool) (*Trace, error) {
	lines, err := newLines(r)
	if err != nil {
		return nil, fmt.Errorf("trace %s: %w", name, err)
	}
	if spool == nil {
		spool = &memory{}
	}
	b := builder{
		trace:   &Trace{name: name, requests: &blocks{spool: spool}, stats: Stats{Broken: map[string]int64{}}},
		clients: map[string]int{}, paths: map[uint64]bool{}, seed: maphash.MakeSeed(),
	}
	p := lines.detect()
	for number := int64(1); ; number++ {
		line, err := lines.next()
		switch {
		case errors.Is(err, io.EOF):
			return b.finish()
		case errors.Is(err, errTruncated):
			if err := b.add(p, line, number, err); err != nil {
				return nil, fmt.Errorf("trace %s: %w", name, err)
			}
			return b.finish()
		case err != nil && !errors.Is(err, errTooLong):
			return nil, fmt.Errorf("trace %s: line %d: %w", name, number, err)
		}
		if err := b.add(p, line, number, err); err != nil {
			return nil, fmt.Errorf("trace %s: %w", name, err)
		}
	}
}

const (
	// window is the number of requests within which lines may be out of order. They are sorted in memory.
	window = 1 << 16
	// maxDistinct is the number of clients and of paths that are told apart.
	maxDistinct = 1 << 20
)

// errLate is the reason why a request is not sent that was logged too late to be sorted.
var errLate = fmt.Errorf("logged after %d later requests: sort the log by time first", window)

// builder collects the requests of a trace. Its memory does not grow with their number.
type builder struct {
	trace   *Trace
	first   time.Time       // of the first line; the times in waiting are relative to it
	latest  time.Duration   // of all lines so far
	parts   bool            // some times have parts of a second
	waiting waiting         // requests before which an earlier one may still be logged
	sorted  time.Duration   // time of the last request that left waiting
	begin   time.Duration   // of the first request
	same    []Record        // the last requests that left waiting; all have the same time
	broken  string          // number of the first broken line, and the reason
	clients map[string]int  // address -> index
	paths   map[uint64]bool // hashes of the different paths
	seed    maphash.Seed
}

// add adds a line. It returns an error if the spool is full.
func (b *builder) add(p parser, line string, number int64, err error) error {
	s := &b.trace.stats
	if err == nil && strings.TrimSpace(line) == "" {
		return nil
	}
	var e entry
	if err == nil {
		e, err = p.parse(line)
	}
	if errors.Is(err, errHeader) {
		return nil
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
		return nil
	}
	if b.first.IsZero() {
		b.first = e.time
	}
	at := e.time.Sub(b.first)
	if len(b.same) > 0 && at < b.sorted {
		b.skip(errLate.Error(), number)
		return nil
	}
	if at < b.latest {
		s.OutOfOrder++
	}
	b.latest = max(b.latest, at)
	b.parts = b.parts || e.time.Nanosecond() != 0
	if hash := maphash.String(b.seed, path); len(b.paths) < maxDistinct {
		b.paths[hash] = true
	}
	heap.Push(&b.waiting, entered{Record{At: at, Method: e.method, Path: path, Client: b.client(e.client)}, s.Lines})
	if len(b.waiting) <= window {
		return nil
	}
	return b.emit(heap.Pop(&b.waiting).(entered).Record)
}

// client returns the index of a client: in order of first appearance, or if there are too many, by its hash.
func (b *builder) client(address string) int {
	index, known := b.clients[address]
	switch {
	case known:
	case len(b.clients) >= maxDistinct:
		return int(maphash.String(b.seed, address) % maxDistinct)
	default:
		index = len(b.clients)
		b.clients[address] = index
	}
	return index
}

// emit takes the next request in the order of their times.
func (b *builder) emit(r Record) error {
	if b.trace.requests.count == 0 && len(b.same) == 0 {
		b.begin = r.At
	}
	if len(b.same) > 0 && r.At != b.sorted {
		if err := b.write(); err != nil {
			return err
		}
	}
	b.sorted = r.At
	r.At -= b.begin
	if r.At < 0 { // more than 292 years, which overflow
		r.At = forever
	}
	b.same = append(b.same, r)
	return nil
}

// write writes the last requests, which have the same time. For a log with whole seconds they are distributed evenly
// over their second: otherwise all requests of a second would be sent at its start, as a burst that did not happen.
func (b *builder) write() error {
	for i, r := range b.same {
		within := time.Second * time.Duration(i) / time.Duration(len(b.same))
		if err := b.trace.requests.add(stored{r, within}); err != nil {
			return err
		}
	}
	b.trace.stats.DuplicateTimes += int64(max(len(b.same)-1, 0))
	b.same = b.same[:0]
	return nil
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

// finish returns the trace.
func (b *builder) finish() (*Trace, error) {
	t := b.trace
	for len(b.waiting) > 0 {
		if err := b.emit(heap.Pop(&b.waiting).(entered).Record); err != nil {
			return nil, fmt.Errorf("trace %s: %w", t.name, err)
		}
	}
	if err := errors.Join(b.write(), t.requests.flush()); err != nil {
		return nil, fmt.Errorf("trace %s: %w", t.name, err)
	}
	if t.Len() == 0 {
		reason := "it is empty"
		if b.broken != "" {
			reason = fmt.Sprintf("none of its %d lines is a request: %s", t.stats.Lines, b.broken)
		}
		return nil, fmt.Errorf("trace %s: %s\n"+
			"want an access log, JSON lines, or CSV with a header; see: go doc github.com/stagebench/stagebench/workloads/trace",
			t.name, reason)
	}
	t.stats.Records, t.stats.Clients, t.stats.Paths = int64(t.Len()), len(b.clients), len(b.paths)
	t.stats.Span = t.requests.record(t.Len() - 1).At
	t.spread = !b.parts
	return t, nil
}

// entered is a request with the number of its line, which orders requests of the same time.
type entered struct {
	Record
	line int64
}

// waiting is a heap of requests, the earliest first.
type waiting []entered

func (w waiting) Len() int      { return len(w) }
func (w waiting) Swap(i, j int) { w[i], w[j] = w[j], w[i] }
func (w waiting) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(w[i].At, w[j].At), cmp.Compare(w[i].line, w[j].line)) < 0
}
func (w *waiting) Push(r any) { *w = append(*w, r.(entered)) }
func (w *waiting) Pop() any {
	last := len(*w) - 1
	r := (*w)[last]
	*w = (*w)[:last]
	return r
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
