package replog

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// Config is the configuration of a node that replicates its database.
type Config struct {
	// Node is the unique name of this node.
	Node string
	// Secret is shown to the nodes from which this one replicates. The Config of a server sets it.
	Secret sut.Secret
	// Member reports whether a node may replicate from this one, or fence it; nil = every node that shows the secret. Many
	// goroutines may call it.
	Member func(node string) bool `json:"-"`
	// State is the role of the node at its start: primary of an epoch, replica, or one node of a multi-primary set.
	State sut.Replication
	// SyncCopies is the number of replicas that must apply a transaction before the client gets its acknowledgement. 0 =
	// none.
	SyncCopies int
	// SyncTimeout bounds the wait for SyncCopies; 0 = 2 s. After a timeout the client gets SQLSTATE 57014, and the
	// transaction stays committed on this node.
	SyncTimeout time.Duration
	// Lag is an artificial replication lag: a change is applied here no earlier than Lag after its commit elsewhere. 0 =
	// at once.
	Lag time.Duration
	// KeepEntries bounds the log; 0 = 10,000, or 100,000 in a multi-primary set. A node that falls further behind must
	// fetch the whole database.
	KeepEntries int64
}

// ErrRefused is the error of a role change that a node must not make. Either the epoch is not high enough, or the node
// is a primary: a running primary never becomes a replica.
const ErrRefused = constant("refused")

// constant is an error type whose values can be Go constants, so that another package can declare an alias of one.
type constant string

// Error returns the text.
func (c constant) Error() string { return string(c) }

// WithDefaults returns the configuration with its defaults filled in. It returns an error if a setting is invalid.
func (c Config) WithDefaults() (Config, error) {
	switch s := c.State; {
	case c.SyncCopies < 0 || c.SyncTimeout < 0 || c.Lag < 0 || c.KeepEntries < 0:
		return c, errors.New("replication: a limit or duration is negative: want 0 or more")
	case c.Node == "":
		return c, errors.New("replication: the node has no name")
	case s.Epoch < 1:
		return c, fmt.Errorf("replication: epoch %d: want 1 or more", s.Epoch)
	case !s.MultiPrimary && len(s.Origins) > 0:
		return c, errors.New("replication: only a multi-primary node can have origins")
	case s.MultiPrimary && s.Primary != nil:
		return c, errors.New("replication: a multi-primary node cannot follow a primary")
	case s.MultiPrimary && c.SyncCopies > 0:
		return c, errors.New("replication: a multi-primary node cannot wait for sync copies")
	}
	c.SyncTimeout = cmp.Or(c.SyncTimeout, 2*time.Second)
	if c.Member == nil {
		c.Member = func(string) bool { return true }
	}
	return c, c.CheckOrigins(c.State.Origins)
}

// Limits returns the limits of the log.
func (c Config) Limits() Limits {
	if c.State.MultiPrimary {
		return Limits{Entries: cmp.Or(c.KeepEntries, 100_000), Bytes: 256 << 20}
	}
	return Limits{Entries: cmp.Or(c.KeepEntries, 10_000), Bytes: 64 << 20}
}

// CheckMember returns an error if a node is not a member.
func (c Config) CheckMember(node string) error {
	if !c.Member(node) {
		return fmt.Errorf("node %q is not in the wiring of %s", node, c.Node)
	}
	return nil
}

// CheckOrigins returns an error if the list of origins is invalid. An origin is a node from which this node receives
// changes.
func (c Config) CheckOrigins(origins []sut.Peer) error {
	for i, o := range origins {
		switch {
		case o.Node == "" || o.Address == "":
			return fmt.Errorf("origin %d has no name or no address", i+1)
		case o.Node == c.Node:
			return fmt.Errorf("node %s cannot be its own origin", o.Node)
		case slices.ContainsFunc(origins[:i], func(p sut.Peer) bool { return p.Node == o.Node }):
			return fmt.Errorf("origin %s is listed twice", o.Node)
		}
	}
	return nil
}
