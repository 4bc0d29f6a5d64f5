package resp

import "fmt"

// Evict says who goes when the budget is used up.
type Evict string

// The policies. Redis calls them allkeys-lru and so on; it has no FIFO.
const (
	LRU  Evict = "lru"        // who was not asked for the longest
	LFU  Evict = "lfu"        // who was asked for the least often, of late
	FIFO Evict = "fifo"       // who has been there the longest
	None Evict = "noeviction" // nobody: what does not fit is refused
)

// policy decides who goes. It is a pure data structure: it reads no clock, keeps
// no key and no value, and threads its order through the entries themselves. All
// methods take constant time, that of LFU on average. The caller holds a lock.
type policy interface {
	// add takes an entry that came.
	add(e *entry)
	// touch notes that an entry was read or written.
	touch(e *entry)
	// remove lets an entry go, whoever chose it.
	remove(e *entry)
	// victim is who goes next, and stays until it is removed; nil = nobody.
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
		return keepAll{}, nil
	}
	return nil, fmt.Errorf("unknown eviction policy %q: want %s, %s, %s or %s", evict, LRU, LFU, FIFO, None)
}

// keepAll never lets anybody go.
type keepAll struct{}

func (keepAll) add(*entry)     {}
func (keepAll) touch(*entry)   {}
func (keepAll) remove(*entry)  {}
func (keepAll) victim() *entry { return nil }

// list is a doubly linked list through the entries' own links: an entry is in at
// most one. It costs two words, where one with a sentinel costs an entry.
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

// join is the list of a and then b.
func join(a, b list) list {
	switch {
	case a.head == nil:
		return b
	case b.head == nil:
		return a
	}
	a.tail.next, b.head.prev = b.head, a.tail
	return list{head: a.head, tail: b.tail}
}

// fifo lets go who has been there the longest. An entry that is read or written
// anew keeps its place: only one that was gone comes in at the end of the queue.
type fifo struct{ order list }

func (p *fifo) add(e *entry)    { p.order.pushFront(e) }
func (p *fifo) touch(*entry)    {}
func (p *fifo) remove(e *entry) { p.order.remove(e) }
func (p *fifo) victim() *entry  { return p.order.tail }

// lru lets go who was not asked for the longest: exactly, where Redis compares a
// sample of five. It is a queue that an entry enters anew when it is asked for.
type lru struct{ fifo }

func (p *lru) touch(e *entry) {
	if p.order.head != e {
		p.order.remove(e)
		p.order.pushFront(e)
	}
}
