package proc

import (
	"bytes"
	"io"
	"slices"
	"sync"
)

// maxTailLine bounds a line in the tail, in bytes. The sink gets the complete line.
const maxTailLine = 1000

// logTail writes a log to its sink and keeps the last lines.
type logTail struct {
	sink io.Writer
	keep int // number of complete lines to keep

	mu      sync.Mutex
	last    []string // guarded by mu: complete lines, oldest first
	partial []byte   // guarded by mu: start of a line that is not complete yet
	broken  error    // guarded by mu: the error after which the sink gets no more text
}

// Write never returns an error. Otherwise a full disk would block the child on its log
// pipe. After an error of the sink only the tail gets the log, with the error in it.
func (t *logTail) Write(text []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.broken == nil {
		if _, err := t.sink.Write(text); err != nil {
			t.broken = err
			t.add("(log file: " + err.Error() + ")")
		}
	}
	for rest := text; len(rest) > 0; {
		line, after, ended := bytes.Cut(rest, []byte{'\n'})
		t.partial = append(t.partial, line[:min(len(line), maxTailLine-len(t.partial))]...)
		if ended {
			t.add(string(t.partial))
			t.partial = t.partial[:0]
		}
		rest = after
	}
	return len(text), nil
}

// add appends a line; the caller holds mu.
func (t *logTail) add(line string) {
	if len(t.last) == t.keep {
		t.last = slices.Delete(t.last, 0, 1)
	}
	t.last = append(t.last, line)
}

// lines returns the tail, oldest line first.
func (t *logTail) lines() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	tail := slices.Clone(t.last)
	if len(t.partial) > 0 {
		tail = append(tail, string(t.partial))
	}
	return tail
}
