package multiprimary

import "time"

// Clock is a hybrid logical clock. It stays close to the wall clock, never goes back, and is later than every observed
// time. So a change is later than all changes that its node knew before.
//
// The algorithm is from "Logical Physical Clocks and Consistent Snapshots in Globally Distributed Databases" (Kulkarni,
// Demirbas, Madappa, Avva, Leone; OPODIS 2014). The logical part is in the microseconds: a node commits less than a
// million times a second, so the wall clock always catches up.
//
// A Clock is not safe for concurrent use.
type Clock struct {
	Wall func() time.Time
	last int64
}

// Next returns the time of a local event in microseconds: the wall clock, but later than every earlier time.
func (c *Clock) Next() int64 {
	c.last = max(c.last+1, c.Wall().UnixMicro())
	return c.last
}

// Observe records the time of an event of another node.
func (c *Clock) Observe(atUS int64) { c.last = max(c.last, atUS) }
