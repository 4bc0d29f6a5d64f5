package resp

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Command is a command that a server has besides its own, or in the place of one.
// It may take its time: only its own connection waits.
type Command struct {
	Least, Most int // arguments, the name left out
	// Run gets the arguments, which it must not keep. It answers nil for what is not
	// there, []byte, int64, true for OK, an error whose text is sent as it is, or []any
	// of those.
	Run func(args [][]byte) any
}

// Extend gives the server further commands, by name in lower case, before Serve.
func (s *Server) Extend(further map[string]Command) error {
	for name, f := range further {
		if len(name) > longestName || name != strings.ToLower(name) {
			return fmt.Errorf("resp: command %q: want at most %d letters, in lower case", name, longestName)
		}
		run := func(_ *Server, c *conn, args [][]byte) { answer(c, f.Run(args[1:])) }
		s.table[name] = command{f.Least + 1, f.Most + 1, run}
	}
	return nil
}

func answer(c *conn, value any) {
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
		for _, one := range v {
			answer(c, one)
		}
	default:
		c.null()
	}
}

// Values is what a server holds, for code in its own process.
type Values struct{ store *store }

// Values returns what the server holds. It may be used before Serve and after it.
func (s *Server) Values() Values { return Values{s.store} }

// Get returns a value, which the caller must not change.
func (v Values) Get(_ context.Context, key string) (value []byte, found bool, err error) {
	value, found = v.store.of([]byte(key)).get([]byte(key), v.store.clock())
	return value, found, nil
}

// Set stores a copy of a value for some time, which is rounded up to ms; 0 = until
// it is evicted.
func (v Values) Set(_ context.Context, key string, value []byte, ttl time.Duration) error {
	now, expires := v.store.clock(), int64(0)
	if ttl > 0 {
		expires = now + int64((ttl+time.Millisecond-1)/time.Millisecond)
	}
	_, err := v.store.of([]byte(key)).set([]byte(key), value, expires, always, now)
	return err
}

// Delete removes a key, whether it is there or not.
func (v Values) Delete(_ context.Context, key string) error {
	v.store.of([]byte(key)).del([]byte(key), v.store.clock())
	return nil
}

// Drop removes the keys that drop says yes to, of those that are there when it begins,
// and returns how many there were.
func (s *Server) Drop(_ context.Context, drop func(key string) bool) (dropped int, err error) {
	for _, sh := range s.store.shards {
		dropped += sh.drop(drop)
	}
	return dropped, nil
}
