package resp

import "fmt"

// Evict is an eviction policy: it says which entry is evicted when memory is full.
type Evict string

// The policies. Redis calls them allkeys-lru and allkeys-lfu; it has no FIFO.
const (
	LRU  Evict = "lru"        // the least recently used entry
	LFU  Evict = "lfu"        // the entry with the fewest recent requests
	FIFO Evict = "fifo"       // the oldest entry
	None Evict = "noeviction" // no entry; a value that does not fit is refused
)

// policy selects the entry to evict. It is a pure data structure without a clock. Its
// lists are linked through the entries. All methods take constant time; for LFU that is
// the average. The caller holds the lock of the shard.
type policy interface {
	// add adds a new entry.
	add(e *entry)
	// touch records a read or a write of an entry.
	touch(e *entry)
	// remove removes an entry that was evicted, deleted or has expired.
	remove(e *entry)
	// victim returns the entry to evict next, and does not remove it; nil = none.
	victim() *entry
}

func newPolicy(evict Evict) (policy, error) {
	switch evict {
	case LRU:
		return &lru{}, nil
	case LFU:
		return &lfu{}, nil
	case FIFO:
		return &fifo{}, nil
	case None:
		return noEviction{}, nil
	}
	return nil, fmt.Errorf("unknown eviction policy %q: want %s, %s, %s or %s", evict, LRU, LFU, FIFO, None)
}

// noEviction never evicts.
type noEviction struct{}

func (noEviction) add(*entry)     {}
func (noEviction) touch(*entry)   {}
func (noEviction) remove(*entry)  {}
func (noEviction) victim() *entry { return nil }

// list is a doubly linked list through the prev and next fields of the entries. An entry
// is in at most one list. There is no sentinel entry, which saves memory.
type list struct{ head, tail *entry }

func (l *list) pushFront(e *entry) {
	e.prev, e.next = nil, l.head
	if l.head != nil {
		l.head.prev = e
	} else {
		l.tail = e
	}
	l.head = e
}

func (l *list) remove(e *entry) {
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		l.head = e.next
	}
	if e.next != nil {
		e.next.prev = e.prev
	} else {
		l.tail = e.prev
	}
	e.prev, e.next = nil, nil
}

// concat returns the list of a followed by b.
func concat(a, b list) list {
	switch {
	case a.head == nil:
		return b
	case b.head == nil:
		return a
	}
	a.tail.next, b.head.prev = b.head, a.tail
	return list{head: a.head, tail: b.tail}
}

// fifo evicts the oldest entry. A read or a new value does not change the position of an
// entry in the queue.
type fifo struct{ queue list } // newest first

func (p *fifo) add(e *entry)    { p.queue.pushFront(e) }
func (p *fifo) touch(*entry)    {}
func (p *fifo) remove(e *entry) { p.queue.remove(e) }
func (p *fifo) victim() *entry  { return p.queue.tail }

// lru evicts the least recently used entry. It is exact, while Redis compares a sample of
// five. Each request moves an entry to the front of the queue.
type lru struct{ fifo }

func (p *lru) touch(e *entry) {
	if p.queue.head != e {
		p.queue.remove(e)
		p.queue.pushFront(e)
	}
}
