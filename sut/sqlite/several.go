package sqlite

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"time"

	"zombiezen.com/go/sqlite"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/sqlite/replog"
	"github.com/stagebench/stagebench/sut/sqlite/several"
	"github.com/stagebench/stagebench/sut/sqlite/wire"
)

// severalDefaults is withDefaults of one of several primaries. There the log is
// the only way to catch up, so it reaches further back.
func (r Replication) severalDefaults() (Replication, error) {
	if r.State.Primary != nil {
		return r, errors.New("one of several primaries follows none")
	}
	if r.SyncCopies > 0 {
		return r, errors.New("one of several primaries waits for no copies")
	}
	setDefault(&r.KeepEntries, 100_000)
	setDefault(&r.KeepBytes, 256<<20)
	return r, r.checkOrigins(r.State.Origins)
}

// checkOrigins says what is wrong with those that changes are to come from.
func (r Replication) checkOrigins(origins []sut.Peer) error {
	for i, o := range origins {
		switch {
		case o.Node == "" || o.Address == "":
			return fmt.Errorf("origin %d needs a name and an address", i+1)
		case o.Node == r.Node:
			return fmt.Errorf("node %s cannot be its own origin", o.Node)
		case slices.ContainsFunc(origins[:i], func(p sut.Peer) bool { return p.Node == o.Node }):
			return fmt.Errorf("origin %s is given twice", o.Node)
		}
	}
	return nil
}

// openSeveral makes the node one of several primaries if that is what it is.
func (r *replication) openSeveral() (err error) {
	if !r.cfg.State.Several {
		return nil
	}
	r.several, err = several.Open(r.server.writer.conn.Conn, several.Config{
		Node: r.cfg.Node, Origins: r.cfg.State.Origins, Lag: r.cfg.Lag, Now: time.Now, Log: r.server.cfg.Log,
		Limits: several.Limits{Entries: int64(r.cfg.KeepEntries), Bytes: r.cfg.KeepBytes},
	}, severalHost{r.server})
	return err
}

// mayBecomeOneOf says what one of several primaries cannot be; the lock is held.
func (r *replication) mayBecomeOneOf(to sut.Replication) error {
	switch {
	case !to.Several || to.Primary != nil:
		return fmt.Errorf("%w: this node is one of several primaries; one does not step down", ErrRefused)
	case to.Epoch < r.known:
		return fmt.Errorf("%w: epoch %d is not high enough, this node has known %d", ErrRefused, to.Epoch, r.known)
	}
	return r.cfg.checkOrigins(to.Origins)
}

// becomeOneOf gives one of several primaries other origins.
func (r *replication) becomeOneOf(to sut.Replication) error {
	if err := r.know(to.Epoch); err != nil {
		return err
	}
	r.several.Become(to.Origins)
	return nil
}

// sealSeveral is seal where there are several primaries.
func (r *replication) sealSeveral() (*replog.Entry, error) {
	position, err := r.several.Seal()
	if errors.Is(err, several.ErrTooLarge) {
		err = wire.NewError(wire.LimitExceeded, err.Error())
	}
	if err != nil || position == 0 {
		return nil, err
	}
	return &replog.Entry{Position: position}, nil
}

// serveOneOf is serve where there are several primaries.
func (r *replication) serveOneOf(link net.Conn, in *bufio.Reader) {
	if err := r.several.Serve(link, in); err != nil {
		r.server.cfg.Log.Warn("a node that got changes is gone", "cause", err)
	}
}

// severalHost is the server as several primaries need it.
type severalHost struct{ server *Server }

// Turn waits in the writers' line.
func (h severalHost) Turn(cancel func() <-chan struct{}) (leave func(), err error) {
	w := h.server.writer
	return w.leave, w.await(cancel, true)
}

// Reader opens a connection of its own.
func (h severalHost) Reader() (*sqlite.Conn, error) {
	c, err := openConn(h.server.cfg, 0, false)
	if err != nil {
		return nil, err
	}
	return c.Conn, nil
}

// Incoming is beside the database.
func (h severalHost) Incoming() string { return filepath.Join(h.server.cfg.Dir, incomingName) }

// Replace does what a replica does with a snapshot, but keeps nothing: the
// snapshot has all that was here.
func (h severalHost) Replace() (*sqlite.Conn, error) {
	r := h.server.replication
	r.serving(false)
	if err := r.replace(false); err != nil {
		return nil, err
	}
	r.mu.Lock()
	known := r.known
	r.mu.Unlock()
	if err := r.log.Know(known); err != nil {
		return nil, err
	}
	r.serving(true)
	return h.server.writer.conn.Conn, nil
}

// serving says whether clients may read and write.
func (r *replication) serving(serves bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.serves = serves
}

// Left is closed when the last client has gone.
func (h severalHost) Left() <-chan struct{} { return h.server.wire.Left() }
