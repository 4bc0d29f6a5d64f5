package wan

import (
	"sync"
	"time"
)

const (
	// MaxTransitBytes is the maximum number of bytes in transit in one direction of a connection. A sender then waits, as
	// with a full TCP window. So the throughput of a direction is at most MaxTransitBytes per RTT/2: 6.5 MB/s with an RTT
	// of 80 ms. That is the throughput of a TCP window of twice the size.
	MaxTransitBytes = 256 << 10
	// maxTransitReads is the maximum number of reads in transit. It bounds the memory for their times when a sender sends
	// very small packets.
	maxTransitReads = 4096
	// readBytes is the size of the buffer that each direction of an idle connection keeps.
	readBytes = 8 << 10
	// segmentBytes is the unit of memory for bytes in transit.
	segmentBytes = 16 << 10
)

// segment is memory for bytes in transit. It is filled once, from the start.
type segment [segmentBytes]byte

// segments keeps segments that are not in use.
type segments struct{ pool sync.Pool }

func (s *segments) get() *segment {
	if free, ok := s.pool.Get().(*segment); ok {
		return free
	}
	return new(segment)
}

func (s *segments) put(free *segment) { s.pool.Put(free) }

// ending is how a direction of a connection ended.
type ending int

const (
	open       ending = iota
	halfClosed        // the sender sent FIN
	reset             // the connection of the sender broke
)

// read is the time at which the bytes of one read, or of several with the same time, are due.
type read struct {
	end int64 // the position behind its last byte, counted from the first byte of the lane
	due time.Duration
}

// lane is one direction of a connection: the bytes in transit, in order. One goroutine adds bytes, one takes them.
// Times are since the client connected.
type lane struct {
	segments *segments
	over     <-chan struct{} // closed when the tunnel has ended
	delay    time.Duration
	opens    time.Duration // bytes that are sent earlier count as sent at this time

	mu       sync.Mutex
	filled   []*segment // with bytes in transit, in order
	from, to int64      // the positions of the bytes in transit
	first    int        // offset of position from in filled[0]
	reads    []read     // of the bytes in transit
	ending   ending
	ends     time.Duration // when the ending is due

	added, freed chan struct{} // wake up the goroutine that takes bytes, and the one that adds them
}

func newLane(s *segments, over <-chan struct{}, delay, opens time.Duration) *lane {
	return &lane{
		segments: s, over: over, delay: delay, opens: opens,
		added: make(chan struct{}, 1), freed: make(chan struct{}, 1),
	}
}

// room waits until bytes may be added, and returns how many. It returns 0 when the tunnel has ended.
func (l *lane) room() int {
	for {
		l.mu.Lock()
		room := MaxTransitBytes - int(l.to-l.from)
		if len(l.reads) >= maxTransitReads {
			room = 0
		}
		l.mu.Unlock()
		if room > 0 {
			return room
		}
		select {
		case <-l.freed:
		case <-l.over:
			return 0
		}
	}
}

// add adds bytes that were sent now. The caller has asked for room.
func (l *lane) add(sent []byte, now time.Duration) {
	if len(sent) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	due := max(now, l.opens) + l.delay
	for len(sent) > 0 {
		// The offset in the last segment, 0 = it is full.
		offset := (l.first + int(l.to-l.from)) % segmentBytes
		if len(l.filled) == 0 || offset == 0 {
			l.filled = append(l.filled, l.segments.get())
		}
		n := copy(l.filled[len(l.filled)-1][offset:], sent)
		l.to += int64(n)
		sent = sent[n:]
	}
	if last := len(l.reads) - 1; last >= 0 && l.reads[last].due == due {
		l.reads[last].end = l.to
	} else {
		l.reads = append(l.reads, read{end: l.to, due: due})
	}
	wake(l.added)
}

// finish ends the lane after the bytes in transit.
func (l *lane) finish(how ending, now time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ending, l.ends = how, max(now, l.opens)+l.delay
	wake(l.added)
}

// due returns bytes that are due, valid until they are taken. If none are, it returns how long to wait (negative =
// until something is added), or how the lane has ended.
func (l *lane) due(now time.Duration) (part []byte, pause time.Duration, how ending) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0 // bytes of the first segment that are due
	for _, r := range l.reads {
		if r.due > now || n == segmentBytes-l.first {
			break
		}
		n = min(int(r.end-l.from), segmentBytes-l.first)
	}
	switch {
	case n > 0:
		return l.filled[0][l.first : l.first+n], 0, open
	case len(l.reads) > 0:
		return nil, l.reads[0].due - now, open
	case l.ending == open:
		return nil, -1, open
	case l.ends > now:
		return nil, l.ends - now, open
	}
	return nil, 0, l.ending
}

// taken removes the first n bytes.
func (l *lane) taken(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.from += int64(n)
	l.first += n
	if l.first == segmentBytes || l.from == l.to {
		l.segments.put(l.filled[0])
		l.filled = l.filled[:copy(l.filled, l.filled[1:])]
		l.first = 0
	}
	done := 0
	for done < len(l.reads) && l.reads[done].end <= l.from {
		done++
	}
	l.reads = l.reads[:copy(l.reads, l.reads[done:])]
	wake(l.freed)
}

// wait waits for a time, or if it is negative until something is added. It returns false when the tunnel has ended.
func (l *lane) wait(a alarm, pause time.Duration) bool {
	var rings <-chan time.Time
	added := l.added
	if pause >= 0 {
		rings, added = a.in(pause), nil // later bytes are due later: they need no attention before
	}
	select {
	case <-rings:
	case <-added:
	case <-l.over:
		return false
	}
	return true
}

// wake wakes up the goroutine that waits for a channel, or else the next one that waits.
func wake(waiting chan struct{}) {
	select {
	case waiting <- struct{}{}:
	default:
	}
}
