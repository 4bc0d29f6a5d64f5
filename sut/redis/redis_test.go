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

// patience bounds every wait.
const patience = 20 * time.Second

func TestConformance(t *testing.T) {
	t.Parallel()
	resptest.Run(t, func(t *testing.T) string { return resptest.Redis(t) })
}

// describe is the description of a server that is there already.
func describe(address net.Addr) *redis.Server {
	at := address.(*net.TCPAddr)
	return redis.New(redis.Config{Listen: at.IP, Port: at.Port})
}

// What INFO tells is what the server counts.
func TestStatsOverInfo(t *testing.T) {
	t.Parallel()
	s := resptest.Serve(t, resptest.Config{MaxBytes: 1 << 20})
	c := resptest.Client(s.Addr().String())
	defer func() { _ = c.Close() }()
	check := func() {
		t.Helper()
		told, err := describe(s.Addr()).Stats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(s.Stats().CacheFigures, told); diff != "" {
			t.Errorf("(-counted +told)\n%s", diff)
		}
	}
	check() // without keys there is no line about them
	for i, key := range []string{"a", "b", "c"} {
		if err := c.Set(t.Context(), key, "value", time.Duration(i)*time.Hour).Err(); err != nil {
			t.Fatal(err)
		}
	}
	c.MGet(t.Context(), "a", "b", "none")
	check()
}

// Answers that are no INFO are errors, and who asks does not wait beyond his time.
func TestStatsOfSomethingElse(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{
		"LOADING":                 "-LOADING Redis is loading the dataset in memory\r\n",
		"lacks":                   "$18\r\nkeyspace_hits:12\r\n\r\n",
		"keyspace_hits":           "$20\r\nkeyspace_hits:many\r\n\r\n",
		`text of "99999999" byte`: "$99999999\r\n",
		"EOF":                     "$50\r\nkeyspace",
		"timeout":                 "",
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
			if answer == "" {
				_, _ = io.Copy(io.Discard, conn) // until the other side has had enough
			}
			_, _ = io.WriteString(conn, answer)
		}()
		patience := patience
		if answer == "" {
			patience = 20 * time.Millisecond
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if _, err := describe(listener.Addr()).Stats(ctx); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
		_ = listener.Close()
		<-ended
	}
}
