package cacheproxy_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/stagebench/stagebench/sut/cache/cacheproxy"
	"github.com/stagebench/stagebench/sut/resp/resptest"
)

func marshal(t testing.TB, value any) []byte {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// commandTest is one command and its reply.
type commandTest struct {
	args []any
	want any // nil = the null reply; an error = an error reply that begins with its text
}

// commandTests returns commands in the order in which they are sent. photo is the encoded
// photo 1.
func commandTests(photo string) []commandTest {
	return []commandTest{
		{[]any{"FETCH", "photo:1"}, []any{int64(0), photo}},
		{[]any{"fetch", "photo:1"}, []any{int64(1), photo}},
		{[]any{"GET", "photo:1"}, photo},
		{[]any{"GET", "photo:2"}, nil},
		{[]any{"DEL", "photo:1"}, int64(1)},
		{[]any{"GET", "photo:1"}, nil},
		{[]any{"SET", "photo:2", "text"}, "OK"},
		{[]any{"SET", "photo:2", "longer", "px", "100000"}, "OK"},
		{[]any{"GET", "photo:2"}, "longer"},
		{[]any{"SET", "photo:3", "x", "PX", "0"}, errors.New("ERR PX \"0\": want milliseconds")},
		{[]any{"SET", "photo:3", "x", "PX", "soon"}, errors.New("ERR PX")},
		{[]any{"SET", "photo:3", "x", "EX", "10"}, errors.New("ERR want SET")},
		{[]any{"SET", "photo:3", "x", "PX"}, errors.New("ERR want SET")},
		{[]any{"SET", "nonsense", "x"}, errors.New("ERR cache key")},
		{[]any{"SET", "photo:3"}, errors.New("ERR wrong number of arguments for 'set' command")},
		{[]any{"FETCH"}, errors.New("ERR wrong number of arguments for 'fetch' command")},
		{[]any{"FETCH", "photo:1", "photo:2"}, errors.New("ERR wrong number of arguments for 'fetch' command")},
		{[]any{"FETCH", "photo:one"}, errors.New("ERR cache key")},
		{[]any{"FETCH", "photo:1\r\n+OK"}, errors.New("ERR cache key")},
		{[]any{"FETCH", "photo:99"}, errors.New("NOTFOUND ")},
		{[]any{"FETCH", "user:99"}, errors.New("NOTFOUND ")},
		{[]any{"APPLY", "photo:1"}, errors.New("ERR wrong number of arguments for 'apply' command")},
		{[]any{"APPLY", "photo:1", ""}, errors.New("ERR decode write: ")},
		{[]any{"APPLY", "photo:1", `{"like":{"photo":1`}, errors.New("ERR decode write: ")},
		{[]any{"APPLY", "photo:1", `{"like":{"photo":"1"}}`}, errors.New("ERR decode write: ")},
		{[]any{"APPLY", "photo:1", `{"like":{"photo":1,"user":1,"more":1}}`}, errors.New("ERR decode write: ")},
		{[]any{"APPLY", "photo:1", `{"dislike":{"photo":1}}`}, errors.New("ERR decode write: ")},
		{
			[]any{"APPLY", "photo:1", `{"like":{"photo":1,"user":1}} {}`},
			errors.New("ERR decode write: unexpected data after the JSON document"),
		},
		{[]any{"APPLY", "photo:1", `{}`}, errors.New("ERR a write has 0 changes")},
		{[]any{"APPLY", "photo:1", `null`}, errors.New("ERR a write has 0 changes")},
		{
			[]any{"APPLY", "photo:1", `{"like":{"photo":1,"user":1},"delete":{"photo":1,"owner":1}}`},
			errors.New("ERR a write has 2 changes"),
		},
		{
			[]any{"APPLY", "photo:2", `{"like":{"photo":1,"user":1}}`},
			errors.New("ERR a write to photo 1 does not belong to the key \"photo:2\""),
		},
		{[]any{"APPLY", "user:1", `{"like":{"photo":1,"user":1}}`}, errors.New("ERR a write to photo 1 does not belong")},
		{[]any{"APPLY", "photo:1", `{"rename":{"photo":1,"owner":2,"title":"x"}}`}, errors.New("FORBIDDEN ")},
		{[]any{"APPLY", "photo:99", `{"like":{"photo":99,"user":1}}`}, errors.New("NOTFOUND ")},
		{[]any{"APPLY", "photo:1", `{"like":{"photo":1,"user":1}}`}, int64(2)},
		{[]any{"APPLY", "photo:5", `{"delete":{"photo":5,"owner":1}}`}, int64(0)},
		{[]any{"PING"}, "PONG"},
	}
}

// TestCommands: the replies of the proxy to valid and invalid RESP commands.
func TestCommands(t *testing.T) {
	t.Parallel()
	for _, s := range strategies()[3:] {
		r := newRig(t, options{engine: engine{name: "resp"}, strategy: s})
		c := resptest.Client(r.hosts[0].peer.Address)
		defer func() { _ = c.Close() }()
		for _, test := range commandTests(string(marshal(t, r.records.photo(1)))) {
			got, err := c.Do(t.Context(), test.args...).Result()
			wantErr, refused := test.want.(error)
			switch {
			case refused:
				if err == nil || !strings.HasPrefix(err.Error(), wantErr.Error()) || strings.ContainsAny(err.Error(), "\r\n") {
					t.Errorf("%v %q: got %v, %v, want an error that begins with %q", s, test.args, got, err, wantErr)
				}
			case test.want == nil:
				if !errors.Is(err, redis.Nil) {
					t.Errorf("%v %q: got %v, %v, want the null reply", s, test.args, got, err)
				}
			case err != nil || string(marshal(t, got)) != string(marshal(t, test.want)):
				t.Errorf("%v %q: got %v, %v, want %v", s, test.args, got, err, test.want)
			}
		}
		if n := r.records.photo(1).Likes; n > 1 {
			t.Errorf("%v: %d likes, want at most 1", s, n)
		}
	}
}

func TestBadConfig(t *testing.T) {
	t.Parallel()
	good := cacheproxy.Config{
		Values: newValues(), Records: newRecords(1), TTL: time.Second,
		Registry: prometheus.NewRegistry(), Log: discard(),
	}
	for name, change := range map[string]func(*cacheproxy.Config){
		"values":        func(c *cacheproxy.Config) { c.Values = nil },
		"records":       func(c *cacheproxy.Config) { c.Records = nil },
		"registry":      func(c *cacheproxy.Config) { c.Registry = nil },
		"log":           func(c *cacheproxy.Config) { c.Log = nil },
		"TTL":           func(c *cacheproxy.Config) { c.TTL = 0 },
		"FeedTTL":       func(c *cacheproxy.Config) { c.FeedTTL = -1 },
		"FlushInterval": func(c *cacheproxy.Config) { c.FlushInterval = -1 },
		"Timeout":       func(c *cacheproxy.Config) { c.Timeout = -1 },
	} {
		c := good
		change(&c)
		if proxy, err := cacheproxy.New(c); err == nil {
			_ = proxy.Close(t.Context())
			t.Errorf("New with a bad %s: got no error, want one", name)
		}
	}
	for i := range 2 {
		proxy, err := cacheproxy.New(good)
		if (err == nil) != (i == 0) {
			t.Errorf("proxy %d with the same registry: got %v", i, err)
		}
		if err == nil {
			if err := proxy.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
}
