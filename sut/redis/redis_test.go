package redis_test

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/stagebench/stagebench/sut/redis"
	"github.com/stagebench/stagebench/sut/resp/resptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testTimeout bounds every wait.
const testTimeout = time.Minute

func TestConformance(t *testing.T) {
	t.Parallel()
	resptest.Run(t, func(t *testing.T) string { return resptest.Redis(t) })
}

// describe returns the description of a running server.
func describe(address net.Addr) *redis.Server {
	at := address.(*net.TCPAddr)
	return redis.New(redis.Config{Listen: at.IP, Port: at.Port})
}

// The figures from INFO are those that the server counts.
func TestStatsOverInfo(t *testing.T) {
	t.Parallel()
	s := resptest.Serve(t, resptest.Config{MaxBytes: 1 << 20})
	c := resptest.Client(s.Addr().String())
	defer func() { _ = c.Close() }()
	check := func() {
		t.Helper()
		got, err := describe(s.Addr()).Stats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(s.Stats().CacheFigures, got); diff != "" {
			t.Errorf("(-counted +got)\n%s", diff)
		}
	}
	check() // INFO of an empty database has no line db0
	for i, key := range []string{"a", "b", "c"} {
		if err := c.Set(t.Context(), key, "value", time.Duration(i)*time.Hour).Err(); err != nil {
			t.Fatal(err)
		}
	}
	c.MGet(t.Context(), "a", "b", "none")
	check()
}

// A reply that is no INFO is an error. A missing reply is an error when ctx ends.
func TestStatsFromOtherServers(t *testing.T) {
	t.Parallel()
	for want, reply := range map[string]string{
		"LOADING":             "-LOADING Redis is loading the dataset in memory\r\n",
		"no field":            "$18\r\nkeyspace_hits:12\r\n\r\n",
		"keyspace_hits":       "$20\r\nkeyspace_hits:many\r\n\r\n",
		`of "99999999" bytes`: "$99999999\r\n",
		"EOF":                 "$50\r\nkeyspace",
		"timeout":             "",
	} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			defer func() { _ = conn.Close() }()
			_, _ = conn.Read(make([]byte, 100))
			if reply == "" {
				_, _ = io.Copy(io.Discard, conn) // until the client closes the connection
			}
			_, _ = io.WriteString(conn, reply)
		}()
		timeout := testTimeout
		if reply == "" {
			timeout = 20 * time.Millisecond
		}
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		if _, err := describe(listener.Addr()).Stats(ctx); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
		cancel()
		_ = listener.Close()
		<-ended
	}
}
