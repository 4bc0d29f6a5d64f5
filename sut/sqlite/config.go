package sqlite

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

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

// Durability is the event that a commit waits for.
type Durability string

// The durabilities of a commit.
const (
	// Full waits until the transaction is on disk. The transaction survives a power failure, as with PostgreSQL's
	// default.
	Full Durability = "full"
	// Normal waits until the operating system has the transaction. It survives the death of the process, but a power
	// failure may lose the last transactions.
	Normal Durability = "normal"
)

// Config is the configuration of a node.
type Config struct {
	// Listener accepts the clients; nil = listen on Address. The Server owns it and closes it.
	Listener net.Listener
	// Address is the loopback host:port to listen on; "" = 127.0.0.1, any port.
	Address string
	// Dir is the directory of the database file. It must exist. A missing file is created.
	Dir string
	// Statements is the catalogue: the statements that clients may run.
	Statements []Statement

	// MaxConns is the maximum number of clients; a further client is refused. 0 = 100.
	MaxConns int
	// ReadConns is the maximum number of statements that read at the same time; 0 = 4.
	ReadConns int
	// Durability is the event that a commit waits for; "" = Full.
	Durability Durability
	// GroupLimit is the maximum number of transactions that share a commit while writers are in the queue. They share
	// one wait for the disk. 1 = no sharing; 0 = 16.
	GroupLimit int
	// IdleInTransaction is how long a client may be silent inside a transaction, because other writers may be waiting
	// for it. Then its connection is closed. 0 = 10 s.
	IdleInTransaction time.Duration
	// HandshakeTimeout is how long a new client may take to start its session; 0 = 5 s.
	HandshakeTimeout time.Duration
	// Replication makes this node replicate its database with other nodes; nil = no replication.
	Replication *Replication
	// Log gets the events for operators; nil = nothing is logged.
	Log *slog.Logger
}

// withDefaults returns the configuration with its defaults filled in. It returns an error if a setting is invalid.
func (c Config) withDefaults() (Config, error) {
	if c.Dir == "" {
		return c, errors.New("no directory for the database: set Dir")
	}
	if c.MaxConns < 0 || c.ReadConns < 0 || c.GroupLimit < 0 || c.IdleInTransaction < 0 || c.HandshakeTimeout < 0 {
		return c, errors.New("a limit or timeout is negative: want 0 or more")
	}
	c.Address = cmp.Or(c.Address, "127.0.0.1:0")
	c.MaxConns, c.ReadConns, c.GroupLimit = cmp.Or(c.MaxConns, 100), cmp.Or(c.ReadConns, 4), cmp.Or(c.GroupLimit, 16)
	c.Durability = cmp.Or(c.Durability, Full)
	c.IdleInTransaction = cmp.Or(c.IdleInTransaction, 10*time.Second)
	c.HandshakeTimeout = cmp.Or(c.HandshakeTimeout, 5*time.Second)
	c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
	if c.Durability != Full && c.Durability != Normal {
		return c, fmt.Errorf("durability %q: want %s or %s", c.Durability, Full, Normal)
	}
	if c.Replication != nil {
		r, err := c.Replication.WithDefaults()
		if err != nil {
			return c, err
		}
		c.Replication = &r
	}
	return c, nil
}

// listen returns the listener of the node. It returns an error if the address is not a loopback address.
func (c Config) listen() (net.Listener, error) {
	l := c.Listener
	if l == nil {
		var err error
		if l, err = net.Listen("tcp", c.Address); err != nil {
			return nil, err
		}
	}
	if a, ok := l.Addr().(*net.TCPAddr); !ok || !a.IP.IsLoopback() {
		l.Close()
		return nil, fmt.Errorf("%s is not a loopback address: use one, because the node has no passwords", l.Addr())
	}
	return l, nil
}
