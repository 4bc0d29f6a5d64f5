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

// What a catalogue of statements is made of, and what a node is among several.
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

// ErrRefused is the error of a role that the node must not have: of Become, and of New for a primary of an old epoch.
const ErrRefused = replog.ErrRefused

// Durability says what a commit waits for.
type Durability string

// The durabilities of a commit.
const (
	// Full waits until the disk has the transaction: it survives a loss of power, as with PostgreSQL's default.
	Full Durability = "full"
	// Normal waits for the operating system only: a transaction survives the death of the process, and the last ones
	// may be lost with the machine.
	Normal Durability = "normal"
)

// Config says what a node serves and how much it may take.
type Config struct {
	// Listener is where clients come in; nil = listen on Address. The Server owns it and closes it.
	Listener net.Listener
	// Address is the loopback host:port to listen on; "" = 127.0.0.1, any port.
	Address string
	// Dir holds the database file. It must exist; a file that is not there is made, empty.
	Dir string
	// Statements is the catalogue: what clients may ask for.
	Statements []Statement

	// MaxConns is how many clients are served at a time; the next one is told that there are too many. 0 = 100.
	MaxConns int
	// ReadConns is how many statements read at the same time; 0 = 4.
	ReadConns int
	// Durability is what a commit waits for; "" = Full.
	Durability Durability
	// GroupLimit is how many transactions may share one commit, and so one wait for the disk, when writers are
	// waiting in line; 1 = none share; 0 = 16.
	GroupLimit int
	// IdleInTransaction ends a connection whose client has left a transaction open for so long without a word: it
	// keeps all other writers waiting. 0 = 10 s.
	IdleInTransaction time.Duration
	// HandshakeTimeout ends a connection that has not introduced itself; 0 = 5 s.
	HandshakeTimeout time.Duration
	// Replication makes the node one of several with the same database; nil = there is one, and no log of changes.
	Replication *Replication
	// Log gets what an operator should know; nil = nothing is logged.
	Log *slog.Logger
}

// withDefaults returns the configuration with its defaults filled in, or says what is wrong with it.
func (c Config) withDefaults() (Config, error) {
	if c.Dir == "" {
		return c, errors.New("no directory given for the database")
	}
	if c.MaxConns < 0 || c.ReadConns < 0 || c.GroupLimit < 0 || c.IdleInTransaction < 0 || c.HandshakeTimeout < 0 {
		return c, errors.New("limits must not be negative")
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

// listen returns the listener to serve, on a loopback address.
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
		return nil, fmt.Errorf("%s is not a loopback address: this node knows no passwords", l.Addr())
	}
	return l, nil
}
