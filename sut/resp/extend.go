package resp

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Command is an additional command of a server. A slow command blocks only its own
// connection.
type Command struct {
	MinArgs, MaxArgs int // without the name of the command
	// Run returns the reply: nil for a null reply, []byte, int64, true for OK, an error
	// whose text is sent unchanged, or a list of these as []any. It must not keep args.
	Run func(args [][]byte) any
}

// Extend adds commands, by name in lower case. It replaces a built-in command of the
// same name. Call it before Serve.
func (s *Server) Extend(commands map[string]Command) error {
	for name, f := range commands {
		if len(name) > maxNameBytes || name != strings.ToLower(name) {
			return fmt.Errorf("resp: command %q: want at most %d bytes, in lower case", name, maxNameBytes)
		}
		run := func(_ *Server, c *conn, args [][]byte) { c.writeReply(f.Run(args[1:])) }
		s.commands[name] = command{f.MinArgs + 1, f.MaxArgs + 1, run}
	}
	return nil
}

// writeReply writes a reply of Command.Run.
func (c *conn) writeReply(value any) {
	switch v := value.(type) {
	case []byte:
		c.bulk(v)
	case int64:
		c.number(v)
	case bool:
		c.simple("OK")
	case error:
		c.refuse(v.Error())
	case []any:
		c.array(len(v))
		for _, element := range v {
			c.writeReply(element)
		}
	default:
		c.null()
	}
}

// Values gives code in the same process access to the values of a server.
type Values struct{ store *store }

// Values returns the values of the server. They may be used at any time, also before
// Serve and after Shutdown.
func (s *Server) Values() Values { return Values{s.store} }

// Get returns a value. The caller must not change it. The error is always nil.
func (v Values) Get(_ context.Context, key string) (value []byte, found bool, err error) {
	value, found = v.store.shardOf([]byte(key)).get([]byte(key), v.store.clock())
	return value, found, nil
}

// Set stores a copy of a value. The time to live is rounded up to ms; 0 = the value stays
// until it is evicted. The error says that the value does not fit into the budget.
func (v Values) Set(_ context.Context, key string, value []byte, ttl time.Duration) error {
	now, expires := v.store.clock(), int64(0)
	if ttl > 0 {
		expires = now + int64((ttl+time.Millisecond-1)/time.Millisecond)
	}
	_, err := v.store.shardOf([]byte(key)).set([]byte(key), value, expires, always, now)
	return err
}

// Delete removes a key. A missing key is no error. The error is always nil.
func (v Values) Delete(_ context.Context, key string) error {
	v.store.shardOf([]byte(key)).del([]byte(key), v.store.clock())
	return nil
}

// Drop removes all keys for which drop returns true, and returns their number. It may miss
// keys that are added while it runs. The error is always nil.
func (s *Server) Drop(_ context.Context, drop func(key string) bool) (dropped int, err error) {
	for _, sh := range s.store.shards {
		dropped += sh.drop(drop)
	}
	return dropped, nil
}
