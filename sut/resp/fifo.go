package resp

// fifo lets go who has been there the longest. An entry that is read or written
// anew keeps its place: only one that was gone comes in at the end of the queue.
type fifo struct{ order list }

func (p *fifo) add(e *entry)    { p.order.pushFront(e) }
func (p *fifo) touch(*entry)    {}
func (p *fifo) remove(e *entry) { p.order.remove(e) }
func (p *fifo) victim() *entry  { return p.order.tail }
