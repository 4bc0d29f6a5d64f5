package replog

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// Config says what a node is among those with the same database.
type Config struct {
	// Node is the name of this node, by which the others know it.
	Node string
	// State is what the node is at first: the primary of an epoch, one that follows it, or one of several primaries.
	State sut.Replication
	// SyncCopies is how many replicas must apply a transaction before it is acknowledged; 0 = none.
	SyncCopies int
	// SyncTimeout is how long it waits for them at most; 0 = 2 s. The client gets SQLSTATE 57014 then, and the
	// transaction stays in effect here.
	SyncTimeout time.Duration
	// Lag is how long after its commit elsewhere a change is applied here, and not before; 0 = at once.
	Lag time.Duration
	// KeepEntries and KeepBytes bound the log, and so how far a node may fall behind without fetching the whole
	// database; 0 = 10,000 and 64 MiB, or 100,000 and 256 MiB of one of several primaries, which catch up no other
	// way.
	KeepEntries int
	KeepBytes   int64
}

// ErrRefused is the error of a node that must not be what it is told to be: the epoch is not high enough, or the node
// is a primary, which never steps down.
const ErrRefused = constant("refused")

// constant is an error that other packages can give a name of their own.
type constant string

// Error returns the text.
func (c constant) Error() string { return string(c) }

// WithDefaults returns the configuration with its defaults filled in, or says what is wrong with it.
func (c Config) WithDefaults() (Config, error) {
	entries, bytes := 10_000, int64(64<<20)
	switch s := c.State; {
	case c.SyncCopies < 0 || c.SyncTimeout < 0 || c.Lag < 0 || c.KeepEntries < 0 || c.KeepBytes < 0:
		return c, errors.New("limits of replication must not be negative")
	case c.Node == "":
		return c, errors.New("a node with copies needs a name")
	case s.Epoch < 1:
		return c, fmt.Errorf("epoch %d: want 1 or more", s.Epoch)
	case !s.Several && len(s.Origins) > 0:
		return c, errors.New("a node that is not one of several primaries has no origins")
	case s.Several && s.Primary != nil:
		return c, errors.New("one of several primaries follows none")
	case s.Several && c.SyncCopies > 0:
		return c, errors.New("one of several primaries waits for no copies")
	case s.Several:
		entries, bytes = 100_000, 256<<20
	}
	c.SyncTimeout = cmp.Or(c.SyncTimeout, 2*time.Second)
	c.KeepEntries, c.KeepBytes = cmp.Or(c.KeepEntries, entries), cmp.Or(c.KeepBytes, bytes)
	return c, c.CheckOrigins(c.State.Origins)
}

// Limits are those of the log.
func (c Config) Limits() Limits { return Limits{Entries: int64(c.KeepEntries), Bytes: c.KeepBytes} }

// CheckOrigins says what is wrong with the nodes that changes are to come from.
func (c Config) CheckOrigins(origins []sut.Peer) error {
	for i, o := range origins {
		switch {
		case o.Node == "" || o.Address == "":
			return fmt.Errorf("origin %d needs a name and an address", i+1)
		case o.Node == c.Node:
			return fmt.Errorf("node %s cannot be its own origin", o.Node)
		case slices.ContainsFunc(origins[:i], func(p sut.Peer) bool { return p.Node == o.Node }):
			return fmt.Errorf("origin %s is given twice", o.Node)
		}
	}
	return nil
}
