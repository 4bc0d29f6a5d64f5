package sqlite

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/sqlite/engine"
	"github.com/stagebench/stagebench/sut/sqlite/replog"
	"github.com/stagebench/stagebench/sut/sqlite/wire"
)

// Types of other packages that Config uses.
type (
	Type        = wire.Type
	Column      = wire.Column
	Statement   = wire.Statement
	Replication = replog.Config
)

// The types that a catalogue may use.
const (
	BigInt = wire.BigInt
	Int    = wire.Int
	Text   = wire.Text
)

// ErrRefused is the error of a role that the node must not take. ChangeRole returns it, and so
// does New if the primary has an old epoch.
const ErrRefused = replog.ErrRefused

// Config is the configuration of a node.
type Config struct {
	// Listener accepts the clients on a loopback address. After New has returned no error, the
	// Server owns it and closes it.
	Listener net.Listener
	// Dir is the directory of the database file. It must exist. A missing file is created.
	Dir string
	// Statements is the catalogue: the statements that clients may run.
	Statements []Statement
	// MaxBytes is the size of the database file above which writes that need more space fail with SQLSTATE 53100. It
	// does not hold for what a replica receives. 0 = no limit.
	MaxBytes int64
	// Secret is the password of every client, and of the nodes that replicate from each other; "" = they need none.
	Secret sut.Secret
	// Replication makes this node replicate its database with other nodes; nil = no replication.
	Replication *Replication
	// Log gets the events for operators; nil = nothing is logged.
	Log *slog.Logger

	adjust func(*engine.Config, *wire.Config) // changes the limits that New sets; only for tests
}

// withDefaults returns the configuration with its defaults filled in. It returns an error if a setting is invalid.
func (c Config) withDefaults() (Config, error) {
	switch {
	case c.Dir == "":
		return c, errors.New("no directory for the database: set Dir")
	case c.Listener == nil:
		return c, errors.New("no listener: set Listener")
	}
	if a, ok := c.Listener.Addr().(*net.TCPAddr); !ok || !a.IP.IsLoopback() {
		return c, fmt.Errorf("%s is not a loopback address: use one, because the node has no encryption", c.Listener.Addr())
	}
	c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
	if c.Replication != nil {
		r, err := c.Replication.WithDefaults()
		if err != nil {
			return c, err
		}
		r.Secret = c.Secret
		c.Replication = &r
	}
	return c, nil
}
