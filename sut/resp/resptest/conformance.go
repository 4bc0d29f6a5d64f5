package resptest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"
)

// Run checks one kind of server. open starts an empty server, returns its address, and
// stops it with t.Cleanup.
func Run(t *testing.T, open func(t *testing.T) (address string)) {
	for _, test := range []struct {
		name  string
		check func(*testing.T, string)
	}{
		{"commands have the replies of Redis", replies},
		{"times to live", times},
		{"values are opaque", opaque},
		{"keys expire", expiring},
		{"a pipeline is answered in order, however it is split", pipeline},
		{"inline commands", inline},
		{"a protocol error closes the connection", protocolErrors},
		{"clients that prefer version 3 of the protocol fall back", versions},
		{"INFO", info},
		{"CONFIG and eviction", settings},
	} {
		t.Run(test.name, func(t *testing.T) { test.check(t, open(t)) })
	}
}

// do sends a command and returns the reply: a string, an int64, nil, a slice of these, or
// an error reply.
func do(t *testing.T, c *redis.Client, args ...any) any {
	t.Helper()
	reply, err := c.Do(t.Context(), args...).Result()
	var errorReply redis.Error
	switch {
	case errors.Is(err, redis.Nil):
		return nil
	case errors.As(err, &errorReply):
		return errorReply
	case err != nil:
		t.Fatalf("%v: %v", args, err)
	}
	return reply
}

// refusal is the beginning of an error reply.
type refusal string

// step is a command and its reply.
type step struct {
	command string // the arguments, separated by spaces
	want    any
}

func play(t *testing.T, c *redis.Client, steps []step) {
	t.Helper()
	for _, s := range steps {
		var args []any
		for _, arg := range strings.Split(s.command, " ") {
			args = append(args, arg)
		}
		got := do(t, c, args...)
		if prefix, refused := s.want.(refusal); refused {
			if err, ok := got.(error); !ok || !strings.HasPrefix(err.Error(), string(prefix)) {
				t.Errorf("%s: got %v, want an error that begins with %q", s.command, got, prefix)
			}
			continue
		}
		if diff := cmp.Diff(s.want, got); diff != "" {
			t.Errorf("%s: %v (-want +got)\n%s", s.command, got, diff)
		}
	}
}

func client(t *testing.T, address string) *redis.Client {
	c := Client(address)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func replies(t *testing.T, address string) {
	const one, zero = int64(1), int64(0)
	play(t, client(t, address), []step{
		{"PING", "PONG"},
		{"ping hello", "hello"},
		{"ECHO hello", "hello"},
		{"PING a b", refusal("ERR wrong number of arguments for 'ping' command")},
		{"SELECT 0", "OK"},
		{"SELECT 99", refusal("ERR DB index is out of range")},
		{"GET a", nil},
		{"SET a 1", "OK"},
		{"GET a", "1"},
		{"gEt a", "1"},
		{"SET a 2 NX", nil},
		{"SET a 2 XX", "OK"},
		{"SET b 2 xx", nil},
		{"SET b 2 nx px 100000", "OK"},
		{"SET b 2 NX XX", refusal("ERR syntax error")},
		{"SET b 2 EX 1 PX 1", refusal("ERR syntax error")},
		{"SET b 2 EX", refusal("ERR syntax error")},
		{"SET b 2 QUICKLY", refusal("ERR syntax error")},
		{"SET b 2 EX soon", refusal("ERR value is not an integer or out of range")},
		{"SET b 2 EX 0", refusal("ERR invalid expire time in 'set' command")},
		{"SET b 2 EX -1", refusal("ERR invalid expire time in 'set' command")},
		{"SET b 2 EX 9223372036854775807", refusal("ERR invalid expire time in 'set' command")},
		{"SET b 2 PX 9223372036854775807", refusal("ERR invalid expire time in 'set' command")},
		{"SET b", refusal("ERR wrong number of arguments for 'set' command")},
		{"GET", refusal("ERR wrong number of arguments for 'get' command")},
		{"GET a b", refusal("ERR wrong number of arguments for 'get' command")},
		{"MGET a missing b a", []any{"2", nil, "2", "2"}},
		{"MGET", refusal("ERR wrong number of arguments for 'mget' command")},
		{"EXISTS a a missing b", int64(3)},
		{"DBSIZE", int64(2)},
		{"DEL a a missing", one},
		{"DEL a", zero},
		{"GET a", nil},
		{"INCRBY n 5", int64(5)},
		{"INCRBY n -7", int64(-2)},
		{"GET n", "-2"},
		{"INCRBY n 1.5", refusal("ERR value is not an integer or out of range")},
		{"SET n 9223372036854775807", "OK"},
		{"INCRBY n 1", refusal("ERR increment or decrement would overflow")},
		{"INCRBY n -9223372036854775807", zero},
		{"SET n -9223372036854775808", "OK"},
		{"INCRBY n -1", refusal("ERR increment or decrement would overflow")},
		{"SET n 007", "OK"},
		{"INCRBY n 1", refusal("ERR value is not an integer or out of range")},
		{"SET n +7", "OK"},
		{"INCRBY n 1", refusal("ERR value is not an integer or out of range")},
		{"NOSUCH a b", refusal("ERR unknown command 'NOSUCH', with args beginning with: 'a' 'b'")},
		{"FLUSHALL NOW", refusal("ERR syntax error")},
		{"FLUSHALL", "OK"},
		{"FLUSHALL async", "OK"},
		{"DBSIZE", zero},
		{"CLIENT GETNAME", nil},
		{"CLIENT SETNAME me", "OK"},
		{"CLIENT GETNAME", "me"},
		{"CLIENT NOSUCH", refusal("ERR")},
		{"CONFIG NOSUCH", refusal("ERR unknown subcommand 'NOSUCH'. Try CONFIG HELP.")},
		{"QUIT", "OK"},
	})
}

func times(t *testing.T, address string) {
	const one, zero = int64(1), int64(0)
	play(t, client(t, address), []step{
		{"SET n 1", "OK"},
		{"TTL missing", int64(-2)},
		{"PTTL missing", int64(-2)},
		{"TTL n", int64(-1)},
		{"PTTL n", int64(-1)},
		{"EXPIRE missing 10", zero},
		{"EXPIRE n 100", one},
		{"TTL n", int64(100)},
		{"INCRBY c 1", one},
		{"EXPIRE c 100", one},
		{"INCRBY c 1", int64(2)},
		{"TTL c", int64(100)},
		{"SET c 1", "OK"},
		{"TTL c", int64(-1)},
		{"EXPIRE c soon", refusal("ERR value is not an integer or out of range")},
		{"EXPIRE c 9223372036854775807", refusal("ERR invalid expire time in 'expire' command")},
		{"PEXPIRE c 9223372036854775807", refusal("ERR invalid expire time in 'pexpire' command")},
		{"EXPIRE c 0", one},
		{"GET c", nil},
	})
}

func opaque(t *testing.T, address string) {
	c := client(t, address)
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	for _, text := range [][]byte{{}, []byte("\r\n"), []byte("$-1\r\n*3\r\n"), all, bytes.Repeat(all, 10_000)} {
		key := "key" + string(text[:min(len(text), 300)])
		if got := do(t, c, "SET", key, text); got != "OK" {
			t.Fatal(got)
		}
		if got := do(t, c, "GET", key); got != string(text) {
			t.Errorf("%d bytes were not returned unchanged", len(text))
		}
	}
	if got := do(t, c, "SET", "", "value"); got != "OK" || do(t, c, "GET", "") != "value" {
		t.Error("the empty key does not work")
	}
}

func expiring(t *testing.T, address string) {
	c := client(t, address)
	do(t, c, "SET", "short", "1", "PX", "30")
	do(t, c, "SET", "other", "1")
	do(t, c, "PEXPIRE", "other", "30")
	do(t, c, "SET", "long", "1", "EX", "1000")
	if ms, _ := do(t, c, "PTTL", "long").(int64); ms > 1_000_000 || ms < 1_000_000-testTimeout.Milliseconds() {
		t.Errorf("PTTL is %d ms shortly after it was set to 1,000 s", ms)
	}
	for _, key := range []string{"short", "other"} {
		for deadline := time.Now().Add(testTimeout); do(t, c, "GET", key) != nil; {
			if time.Now().After(deadline) {
				t.Fatalf("%s does not expire", key)
			}
		}
		if ttl := do(t, c, "PTTL", key); ttl != int64(-2) {
			t.Errorf("an expired key has a PTTL of %v", ttl)
		}
	}
	if do(t, c, "GET", "long") != "1" {
		t.Error("a key with time left has expired")
	}
}

// dial returns a plain connection.
func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	conn, err := net.DialTimeout("tcp", address, testTimeout)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(testTimeout))
	return conn
}

func bulk(args ...string) string {
	text := fmt.Sprintf("*%d\r\n", len(args))
	for _, arg := range args {
		text += fmt.Sprintf("$%d\r\n%s\r\n", len(arg), arg)
	}
	return text
}

func wantBytes(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Fatalf("got %q, %v, want %q", got[:n], err, want)
	}
}

func pipeline(t *testing.T, address string) {
	var commands, replies string
	for i := range 200 {
		key, value := fmt.Sprint("k", i), strings.Repeat("v", i)
		commands += bulk("SET", key, value) + bulk("GET", key) + bulk("GET", "missing")
		replies += "+OK\r\n$" + strconv.Itoa(i) + "\r\n" + value + "\r\n$-1\r\n"
	}
	for _, chunk := range []int{1, 7, 1000, len(commands)} {
		conn := dial(t, address)
		go func() {
			for rest := commands; rest != ""; rest = rest[min(chunk, len(rest)):] {
				if _, err := io.WriteString(conn, rest[:min(chunk, len(rest))]); err != nil {
					return // the reader below reports the error
				}
			}
		}()
		wantBytes(t, conn, replies)
	}
}

func inline(t *testing.T, address string) {
	conn := dial(t, address)
	_, _ = io.WriteString(conn, "\r\nSET a \"b c\"\r\nGET a\nPING\r\n"+bulk("GET", "a"))
	wantBytes(t, conn, "+OK\r\n$3\r\nb c\r\n+PONG\r\n$3\r\nb c\r\n")
	_, _ = io.WriteString(conn, "QUIT\r\n")
	wantBytes(t, conn, "+OK\r\n")
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Error("the connection is open after QUIT")
	}
}

func protocolErrors(t *testing.T, address string) {
	for _, invalid := range []string{
		"*3\r\nGET\r\n", "*1\r\n$9223372036854775807\r\n", "*1\r\n$9223372036854775800\r\n", "*1\r\n$-1\r\n", "*1\r\n$x\r\n",
		"*9223372036854775807\r\n", "*2147483648\r\n", "*x\r\n", strings.Repeat("x", 70_000),
	} {
		conn := dial(t, address)
		// Commands before the error are answered.
		_, _ = io.WriteString(conn, bulk("SET", "a", "1")+bulk("GET", "a")+invalid)
		wantBytes(t, conn, "+OK\r\n$1\r\n1\r\n")
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil || !strings.HasPrefix(line, "-ERR Protocol error: ") {
			t.Errorf("%.40q: the reply is %q, %v", invalid, line, err)
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Errorf("%.40q: the connection is still open", invalid)
		}
	}
	if do(t, client(t, address), "PING") != "PONG" {
		t.Error("the server does not answer after protocol errors")
	}
}

func versions(t *testing.T, address string) {
	c := redis.NewClient(&redis.Options{Addr: address, Protocol: 3, ClientName: "kit", MaxRetries: -1})
	defer func() { _ = c.Close() }()
	if err := c.Set(t.Context(), "a", "b", time.Minute).Err(); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Get(t.Context(), "a").Result(); got != "b" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := c.ClientGetName(t.Context()).Result(); got != "kit" || err != nil {
		t.Errorf("CLIENT GETNAME is %q, %v", got, err)
	}
}

// Figure returns a numeric field of INFO.
func Figure(t testing.TB, c *redis.Client, name string) int64 {
	t.Helper()
	text, err := c.Info(t.Context()).Result()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(text, "\r\n") {
		if value, found := strings.CutPrefix(line, name+":"); found {
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			return n
		}
	}
	t.Fatalf("INFO has no %s in\n%s", name, text)
	return 0
}

func info(t *testing.T, address string) {
	c := client(t, address)
	do(t, c, "CONFIG", "RESETSTAT")
	before := Figure(t, c, "used_memory")
	do(t, c, "SET", "a", strings.Repeat("x", 100_000))
	if grown := Figure(t, c, "used_memory") - before; grown < 100_000 || grown > 300_000 {
		t.Errorf("100,000 bytes are counted as %d", grown)
	}
	do(t, c, "GET", "a")
	do(t, c, "MGET", "a", "b", "c")
	do(t, c, "SET", "d", "1", "PX", "1")
	for deadline := time.Now().Add(testTimeout); Figure(t, c, "expired_keys") == 0; {
		if time.Now().After(deadline) {
			t.Fatal("an expired key was not removed without a read")
		}
	}
	for name, want := range map[string]int64{
		"keyspace_hits": 2, "keyspace_misses": 2, "evicted_keys": 0, "expired_keys": 1,
		"maxmemory": 0, "connected_clients": 1,
	} {
		if got := Figure(t, c, name); got != want {
			t.Errorf("%s is %d, want %d", name, got, want)
		}
	}
	text, err := c.Info(t.Context(), "keyspace").Result()
	if err != nil || !strings.Contains(text, "db0:keys=1,expires=0,avg_ttl=0") || strings.Contains(text, "used_memory") {
		t.Errorf("INFO keyspace: %q, %v", text, err)
	}
}

func settings(t *testing.T, address string) {
	c := client(t, address)
	play(t, c, []step{
		{"CONFIG GET maxmemory", []any{"maxmemory", "0"}},
		{"CONFIG GET nosuch", []any{}},
		{"CONFIG SET maxmemory 100mb maxmemory-policy allkeys-lfu", "OK"},
		{"CONFIG GET maxmemory", []any{"maxmemory", "104857600"}},
		{"CONFIG GET maxmemory-policy", []any{"maxmemory-policy", "allkeys-lfu"}},
		{"CONFIG SET maxmemory much", refusal("ERR CONFIG SET failed")},
		{"CONFIG SET maxmemory -1", refusal("ERR CONFIG SET failed")},
		{"CONFIG SET maxmemory-policy none", refusal("ERR CONFIG SET failed")},
		{"CONFIG SET nosuch 1", refusal("ERR Unknown option or number of arguments for CONFIG SET - 'nosuch'")},
		{"CONFIG SET maxmemory", refusal("ERR wrong number of arguments for 'config|set' command")},
		{"CONFIG SET maxmemory 10mb maxmemory-policy noeviction", "OK"},
	})
	value := strings.Repeat("x", 10_000)
	refused := false
	for i := range 2000 {
		if err, failed := do(t, c, "SET", fmt.Sprint("key", i), value).(error); failed {
			refused = strings.HasPrefix(err.Error(), "OOM ")
			break
		}
	}
	if !refused {
		t.Error("20 MB were stored in 10 MB without an OOM error")
	}
	for _, policy := range []string{"allkeys-lru", "allkeys-lfu"} {
		do(t, c, "CONFIG", "SET", "maxmemory-policy", policy)
		before := Figure(t, c, "evicted_keys")
		for i := range 2000 {
			if got := do(t, c, "SET", fmt.Sprint("key", i), value); got != "OK" {
				t.Fatalf("%s: %v", policy, got)
			}
		}
		if evicted := Figure(t, c, "evicted_keys") - before; evicted < 500 {
			t.Errorf("%s: only %d evictions for 20 MB in 10 MB", policy, evicted)
		}
	}
	if used := Figure(t, c, "used_memory"); used > 11<<20 {
		t.Errorf("%d bytes are used of 10 MiB", used)
	}
}
