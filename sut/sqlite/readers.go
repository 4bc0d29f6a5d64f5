package sqlite

// readers is the pool of read-only SQLite connections. Whoever finds all of
// them busy waits, in the order of arrival.
type readers struct {
	free chan *conn
	all  []*conn
}

func openReaders(cfg Config, statements int) (*readers, error) {
	r := &readers{free: make(chan *conn, cfg.ReadConns)}
	for range cfg.ReadConns {
		c, err := openConn(cfg, statements, false)
		if err != nil {
			r.close()
			return nil, err
		}
		r.all = append(r.all, c)
		r.free <- c
	}
	return r, nil
}

// acquire takes a connection out of the pool. Cancel, when closed, ends the
// wait.
func (r *readers) acquire(cancel func() <-chan struct{}) (*conn, error) {
	select {
	case c := <-r.free:
		return c, nil
	default:
	}
	select {
	case c := <-r.free:
		return c, nil
	case <-cancel():
		return nil, errCancelled()
	}
}

func (r *readers) release(c *conn) { r.free <- c }

// close closes all connections; none may be in use.
func (r *readers) close() error {
	var first error
	for _, c := range r.all {
		if err := c.close(); err != nil && first == nil {
			first = err
		}
	}
	return first
}
