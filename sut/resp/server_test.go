package resp_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/stagebench/stagebench/internal/polltest"
	"github.com/stagebench/stagebench/sut/resp"
	"github.com/stagebench/stagebench/sut/resp/resptest"
)

func TestMain(m *testing.M) {
	if os.Getenv(benchServer) != "" {
		os.Exit(serveForBench())
	}
	goleak.VerifyTestMain(m)
}

func TestConformance(t *testing.T) {
	t.Parallel()
	for shards, budget := range map[int]int64{1: 1 << 20, 16: 0} {
		t.Run(fmt.Sprint(shards, " shards"), func(t *testing.T) {
			resptest.Run(t, func(t *testing.T) string {
				s := resptest.Serve(t, resp.Config{MaxBytes: budget})
				c := resptest.Client(s.Addr().String())
				if err := errors.Join(c.ConfigSet(t.Context(), "maxmemory", "0").Err(), c.Close()); err != nil {
					t.Fatal(err)
				}
				eventually(t, "the connection is closed", func() bool { return s.Stats().Conns == 0 })
				return s.Addr().String()
			})
		})
	}
}

// testTimeout bounds every wait of a test.
const testTimeout = time.Minute

func dial(t *testing.T, s *resp.Server) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(testTimeout))
	return conn
}

// eventually polls until a condition holds. It ends the test after testTimeout.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	polltest.Eventually(t, testTimeout, time.Millisecond, what, holds)
}

// There are no passwords, so the server refuses to listen on other addresses.
func TestLoopbackOnly(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	if _, err := resp.New(resp.Config{Listener: listener}); err == nil || !strings.Contains(err.Error(), "loopback") {
		t.Errorf("got %v", err)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	for _, c := range []resp.Config{
		{},
		{Listener: listener, MaxBytes: -1},
		{Listener: listener, Evict: "mru"},
	} {
		if _, err := resp.New(c); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
}

// Shutdown answers the commands that were read, closes idle connections, and frees the
// port.
func TestShutdown(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := resp.New(resp.Config{Listener: listener})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	idle, partial := dial(t, s), dial(t, s)
	_, _ = io.WriteString(partial, "PING\r\n*2\r\n$3\r\nGET\r\n")
	answer := make([]byte, 7)
	if _, err := io.ReadFull(partial, answer); err != nil || string(answer) != "+PONG\r\n" {
		t.Fatalf("%q, %v", answer, err)
	}
	eventually(t, "two open connections", func() bool { return s.Stats().Conns == 2 })
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	for _, conn := range []net.Conn{idle, partial} {
		if _, err := conn.Read(answer); err == nil {
			t.Error("a connection is still open")
		}
	}
	if err := s.Shutdown(ctx); err != nil {
		t.Errorf("a second Shutdown: %v", err)
	}
	if _, err := net.Dial("tcp", s.Addr().String()); err == nil {
		t.Error("the server still listens")
	}
}

// A client that does not read its replies cannot block Shutdown for longer than the
// context.
func TestShutdownWithStuckClient(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := resp.New(resp.Config{Listener: listener})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	conn := dial(t, s)
	value := strings.Repeat("x", 1<<20)
	_, _ = fmt.Fprintf(conn, "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$%d\r\n%s\r\n", len(value), value)
	_, _ = io.WriteString(conn, strings.Repeat("GET a\r\n", 100))
	eventually(t, "a reply that is larger than the socket buffers", func() bool { return s.Stats().Hits > 0 })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// A command that is too long closes the connection before its arguments are read.
func TestMaxCommandBytes(t *testing.T) {
	t.Parallel()
	const longest = 64<<20 - len("SETa")
	set := func(length int) string { return fmt.Sprintf("*3\r\n$3\r\nSET\r\n$1\r\na\r\n$%d\r\n", length) }
	s := resptest.Serve(t, resp.Config{})
	for _, tooLong := range []string{set(longest + 1), "*1\r\n$67108865\r\n", "*1048577\r\n"} {
		conn := dial(t, s)
		_, _ = io.WriteString(conn, tooLong)
		if answer, err := io.ReadAll(conn); err != nil || !bytes.HasPrefix(answer, []byte("-ERR Protocol error: invalid ")) {
			t.Errorf("%q: %q, %v", tooLong, answer, err)
		}
	}
	conn := dial(t, s)
	_, _ = io.WriteString(conn, set(longest)+strings.Repeat("x", longest)+"\r\n")
	answer := make([]byte, 5)
	if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != "+OK\r\n" {
		t.Errorf("%q, %v", answer, err)
	}
}

// An HTTP request closes the connection at its method POST or its Host header, as in Redis.
// Later lines are not executed. This prevents attacks by way of a browser.
func TestHTTP(t *testing.T) {
	t.Parallel()
	s := resptest.Serve(t, resp.Config{})
	for request, want := range map[string]string{
		"POST / HTTP/1.1\r\nSET a 1\r\n":                 "",
		"GET / HTTP/1.1\r\nHost: x\r\nSET a 1\r\n":       "-ERR wrong number of arguments for 'get' command\r\n",
		"SET b \"no end\r\nSET a 1\r\n":                  "-ERR Protocol error: unbalanced quotes in request\r\n",
		"SET \"b\" \"c d\\n\"\r\nGET b\r\nQUIT\r\nSET a": "+OK\r\n$4\r\nc d\n\r\n+OK\r\n",
	} {
		conn := dial(t, s)
		_, _ = io.WriteString(conn, request)
		if answer, err := io.ReadAll(conn); string(answer) != want || err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%q: the reply is %q, %v, want %q", request, answer, err, want)
		}
	}
	if n := s.Stats().Entries; n != 1 {
		t.Errorf("%d keys were set, want only that of the last request", n)
	}
}

// FIFO, which Redis does not have, works and is reported by CONFIG and INFO.
func TestFIFO(t *testing.T) {
	t.Parallel()
	s := resptest.Serve(t, resp.Config{MaxBytes: 1 << 20, Evict: resp.FIFO})
	c := resptest.Client(s.Addr().String())
	defer func() { _ = c.Close() }()
	got, err := c.ConfigGet(t.Context(), "maxmemory*").Result()
	if err != nil || got["maxmemory-policy"] != "allkeys-fifo" || got["maxmemory"] != "1048576" {
		t.Errorf("%v, %v", got, err)
	}
	value := strings.Repeat("x", 10_000)
	for i := range 200 {
		if err := c.Set(t.Context(), fmt.Sprint(i), value, 0).Err(); err != nil {
			t.Fatal(err)
		}
		if err := c.Get(t.Context(), "0").Err(); err != nil && i < 90 {
			t.Fatal(err)
		}
	}
	if err := c.Get(t.Context(), "0").Err(); !errors.Is(err, redis.Nil) {
		t.Error("the oldest key was kept because it was read")
	}
	stats, evicted := s.Stats(), resptest.Figure(t, c, "evicted_keys")
	if stats.Evicted < 90 || stats.Bytes > 1<<20 || evicted != stats.Evicted {
		t.Errorf("%+v, and INFO has %d evictions", stats, evicted)
	}
}

// Concurrent clients do not lose increments while the settings change.
func TestConcurrentClients(t *testing.T) {
	t.Parallel()
	s := resptest.Serve(t, resp.Config{MaxBytes: 4 << 20})
	c := resptest.Client(s.Addr().String())
	defer func() { _ = c.Close() }()
	const clients, rounds = 8, 300
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			for j := range rounds {
				key := fmt.Sprint("k", (i+j)%50)
				pipe := c.Pipeline()
				pipe.Set(t.Context(), key, strings.Repeat("x", j*10), time.Duration(j%3)*time.Millisecond*5)
				pipe.Get(t.Context(), key)
				pipe.Expire(t.Context(), key, time.Second)
				pipe.Del(t.Context(), fmt.Sprint("k", j%50))
				pipe.IncrBy(t.Context(), fmt.Sprint("sum", i), 1)
				if _, err := pipe.Exec(t.Context()); err != nil && !errors.Is(err, redis.Nil) {
					t.Error(err)
				}
				if i == 0 && j%20 == 0 {
					for _, policy := range []string{"allkeys-lfu", "allkeys-fifo", "allkeys-lru"} {
						if err := c.ConfigSet(t.Context(), "maxmemory-policy", policy).Err(); err != nil {
							t.Error(err)
						}
					}
				}
			}
		})
	}
	all.Wait()
	for i := range clients {
		if n, err := c.Get(t.Context(), fmt.Sprint("sum", i)).Int(); n != rounds || err != nil {
			t.Errorf("sum %d is %d, %v", i, n, err)
		}
	}
}
