package multiprimary

import "time"

// Clock is a hybrid logical clock: as near to the wall's as can be, never going back, and later than all times that
// it has taken in, so that a change is later than any that its node knew. After "Logical Physical Clocks and
// Consistent Snapshots in Globally Distributed Databases" (Kulkarni, Demirbas, Madappa, Avva, Leone; OPODIS 2014),
// with the logical part in the microseconds: a node commits less than a million times a second, so the wall's clock
// always catches up.
//
// It is used by one goroutine at a time.
type Clock struct {
	Wall func() time.Time
	last int64
}

// Next is the time of an event here: the wall's, but later than all before.
func (c *Clock) Next() int64 {
	c.last = max(c.last+1, c.Wall().UnixMicro())
	return c.last
}

// Observe takes in the time of an event elsewhere that is known here now.
func (c *Clock) Observe(atUS int64) { c.last = max(c.last, atUS) }
