package resp_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/sut/resp"
	"github.com/stagebench/stagebench/sut/resp/resptest"
)

// Additional commands can return all kinds of replies, and replace built-in commands.
func TestExtend(t *testing.T) {
	t.Parallel()
	for _, proxy := range []bool{false, true} {
		s := resptest.ServeProxy(t, resp.Config{Proxy: proxy}, func(*resp.Server) map[string]resp.Command {
			return map[string]resp.Command{
				"answer": {MinArgs: 1, MaxArgs: 2, Run: func(args [][]byte) any {
					switch kind := string(args[0]); kind {
					case "nothing":
						return nil
					case "text":
						return bytes.Clone(args[1])
					case "number":
						return int64(-5)
					case "ok":
						return true
					case "error":
						return errors.New("STRANGE error")
					}
					return []any{int64(1), []byte("a\r\nb"), nil, []any{[]byte("in it")}}
				}},
				"get": {MinArgs: 1, MaxArgs: 1, Run: func(args [][]byte) any {
					return []byte("of " + string(args[0]))
				}},
			}
		})
		c := resptest.Client(s.Addr().String())
		defer func() { _ = c.Close() }()
		for _, test := range []struct {
			args []any
			want string
		}{
			{[]any{"ANSWER", "nothing"}, "<nil> redis: nil"},
			{[]any{"answer", "text", ""}, " <nil>"},
			{[]any{"Answer", "text", "x\r\ny"}, "x\r\ny <nil>"},
			{[]any{"answer", "number"}, "-5 <nil>"},
			{[]any{"answer", "ok"}, "OK <nil>"},
			{[]any{"answer", "error"}, "<nil> STRANGE error"},
			{[]any{"answer", "list"}, "[1 a\r\nb <nil> [in it]] <nil>"},
			{[]any{"answer"}, "<nil> ERR wrong number of arguments for 'answer' command"},
			{[]any{"answer", "1", "2", "3"}, "<nil> ERR wrong number of arguments for 'answer' command"},
			{[]any{"get", "x"}, "of x <nil>"},
			{[]any{"PING"}, "PONG <nil>"},
			{[]any{"COMMAND", "COUNT"}, fmt.Sprint(map[bool]int{false: 22, true: 9}[proxy], " <nil>")},
		} {
			value, err := c.Do(t.Context(), test.args...).Result()
			if diff := cmp.Diff(test.want, fmt.Sprint(value, " ", err)); diff != "" {
				t.Errorf("proxy %t, %q (-want +got)\n%s", proxy, test.args, diff)
			}
		}
		// A proxy has no keys and no commands for them.
		if err := c.Do(t.Context(), "DBSIZE").Err(); (err != nil) != proxy {
			t.Errorf("proxy %t: DBSIZE: %v", proxy, err)
		}
	}
}

func TestExtendRefuses(t *testing.T) {
	t.Parallel()
	for name, valid := range map[string]bool{
		"Fetch": false, "FETCH": false, "a-name-of-17-long": false, "a-name-of-16-lon": true,
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s, err := resp.New(resp.Config{Listener: l})
		if err != nil {
			t.Fatal(err)
		}
		err = s.Extend(map[string]resp.Command{name: {Run: func([][]byte) any { return true }}})
		if (err == nil) != valid {
			t.Errorf("%q: %v", name, err)
		}
		_ = l.Close()
	}
}

// A slow command blocks only its own connection. Shutdown waits for its reply.
func TestSlowCommand(t *testing.T) {
	t.Parallel()
	started, release := make(chan struct{}), make(chan struct{})
	s := resptest.ServeProxy(t, resp.Config{}, func(*resp.Server) map[string]resp.Command {
		return map[string]resp.Command{"slow": {Run: func([][]byte) any {
			close(started)
			<-release
			return int64(7)
		}}}
	})
	c := resptest.Client(s.Addr().String())
	defer func() { _ = c.Close() }()
	var slow sync.WaitGroup
	slow.Go(func() {
		if n, err := c.Do(t.Context(), "slow").Int64(); n != 7 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	})
	<-started
	if err := c.Ping(t.Context()).Err(); err != nil {
		t.Error(err)
	}
	slow.Go(func() {
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	})
	close(release)
	slow.Wait()
}

// Values and network clients see the same values.
func TestValues(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	s := resptest.Serve(t, resp.Config{Now: func() time.Time { return now }})
	c, v, ctx := resptest.Client(s.Addr().String()), s.Values(), t.Context()
	defer func() { _ = c.Close() }()
	text := []byte("text")
	for key, ttl := range map[string]time.Duration{
		"for ever": 0, "for a second": time.Second, "rounded up": time.Nanosecond,
	} {
		if err := v.Set(ctx, key, text, ttl); err != nil {
			t.Fatal(err)
		}
	}
	text[0] = 'n' // the stored copy does not change
	for key, want := range map[string]int64{"for ever": -1, "for a second": 1000, "rounded up": 1} {
		if ms, err := c.Do(ctx, "PTTL", key).Int64(); ms != want || err != nil {
			t.Errorf("%s: %d ms, %v, want %d", key, ms, err, want)
		}
		if got, err := c.Get(ctx, key).Result(); got != "text" || err != nil {
			t.Errorf("%s: %q, %v", key, got, err)
		}
	}
	if err := c.Set(ctx, "theirs", "value", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if got, found, err := v.Get(ctx, "theirs"); string(got) != "value" || !found || err != nil {
		t.Errorf("%q, %t, %v", got, found, err)
	}
	for range 2 {
		if err := v.Delete(ctx, "theirs"); err != nil {
			t.Error(err)
		}
		if got, found, err := v.Get(ctx, "theirs"); got != nil || found || err != nil {
			t.Errorf("deleted: %q, %t, %v", got, found, err)
		}
	}
	full := resptest.Serve(t, resp.Config{MaxBytes: 1000, Evict: "noeviction"})
	if err := full.Values().Set(ctx, "large", make([]byte, 2000), 0); err == nil {
		t.Error("a value that does not fit was accepted")
	}
}

// Drop removes the matching keys and frees their memory.
func TestDrop(t *testing.T) {
	t.Parallel()
	s := resptest.Serve(t, resp.Config{})
	empty := s.Stats().Bytes
	for i := range 1000 {
		if err := s.Values().Set(t.Context(), fmt.Sprint("photo:", i), []byte("x"), time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	dropped, err := s.Drop(t.Context(), func(key string) bool { return key[len(key)-1] == '7' })
	if err != nil || dropped != 100 {
		t.Errorf("%d keys were dropped, want 100: %v", dropped, err)
	}
	if left := s.Stats().Entries; left != 900 {
		t.Errorf("%d keys are left, want 900", left)
	}
	if _, err := s.Drop(t.Context(), func(string) bool { return true }); err != nil || s.Stats().Bytes != empty {
		t.Errorf("%d bytes are used without keys, %v", s.Stats().Bytes, err)
	}
}
