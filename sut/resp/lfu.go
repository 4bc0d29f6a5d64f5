package resp

import "math/bits"

// lfu lets go who was asked for the least often, of late; among equals who was
// not asked for the longest.
//
// There is a list for each count of requests, so that each request moves an entry
// from one list to the next, and the first list that is not empty holds the
// victim. Source: Shah, Mitra and Matani, An O(1) algorithm for implementing the
// LFU cache eviction scheme, 2010. Theirs links the lists; as these counts have a
// ceiling, an array and a set of bits do.
//
// Counts age, or what was popular once would stay for ever: after every
// thirty requests per entry all counts are halved. Source: the reset of Einziger,
// Friedman and Manes, TinyLFU: A Highly Efficient Cache Admission Policy, ACM
// Transactions on Storage 13(4), 2017. Halving joins pairs of lists and visits no
// entry: each one keeps the count that it had when it was moved last, and how
// many halvings there had been.
//
// Thirty is between what forgets well and what knows well: zipfian 0.99 over 500,000
// keys, of which 500 are held, has 42.7, 46.6 and 48.0 % hits with ten, thirty and a
// hundred, and with a hundred a change of interest takes half a million requests to
// be learnt by a cache of 500.
//
// Unlike TinyLFU it forgets the count of who went. So requests are the clock of
// ageing, and nothing here depends on time.
type lfu struct {
	byCount  [maxCount + 1]list
	filled   [(maxCount + 1) / 64]uint64 // which lists are not empty
	halvings uint32
	entries  int
	requests int // since the last halving
}

const (
	maxCount         = 255
	requestsPerEntry = 30 // after which counts are halved
)

// count is an entry's count now.
func (p *lfu) count(e *entry) uint8 { return e.count >> min(p.halvings-e.halvings, 8) }

func (p *lfu) insert(e *entry, count uint8) {
	e.count, e.halvings = count, p.halvings
	p.byCount[count].pushFront(e)
	p.filled[count/64] |= 1 << (count % 64)
}

// take removes an entry from its list, and returns its count.
func (p *lfu) take(e *entry) uint8 {
	count := p.count(e)
	l := &p.byCount[count]
	l.remove(e)
	if l.head == nil {
		p.filled[count/64] &^= 1 << (count % 64)
	}
	return count
}

func (p *lfu) add(e *entry) {
	p.entries++
	p.insert(e, 1)
	p.age()
}

func (p *lfu) touch(e *entry) {
	p.insert(e, min(p.take(e), maxCount-1)+1)
	p.age()
}

func (p *lfu) remove(e *entry) {
	p.entries--
	p.take(e)
}

func (p *lfu) victim() *entry {
	for i, word := range p.filled {
		if word != 0 {
			return p.byCount[i*64+bits.TrailingZeros64(word)].tail
		}
	}
	return nil
}

// age notes a request, and halves all counts when it is time.
func (p *lfu) age() {
	if p.requests++; p.requests < requestsPerEntry*p.entries {
		return
	}
	p.requests = 0
	p.halvings++
	p.filled = [len(p.filled)]uint64{}
	for half := range (maxCount + 1) / 2 {
		// Who had the lower count stays nearer to the end where victims are.
		l := join(p.byCount[2*half+1], p.byCount[2*half])
		p.byCount[half] = l
		if l.head != nil {
			p.filled[half/64] |= 1 << (half % 64)
		}
	}
	clear(p.byCount[(maxCount+1)/2:])
}
