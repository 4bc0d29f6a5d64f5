package resp

// lru lets go who was not asked for the longest: exactly, where Redis compares a
// sample of five.
type lru struct{ order list }

func (p *lru) add(e *entry)    { p.order.pushFront(e) }
func (p *lru) remove(e *entry) { p.order.remove(e) }
func (p *lru) victim() *entry  { return p.order.tail }

func (p *lru) touch(e *entry) {
	if p.order.head != e {
		p.order.remove(e)
		p.order.pushFront(e)
	}
}
