package memcached_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/stagebench/stagebench/internal/polltest"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/memcached"
	"github.com/stagebench/stagebench/sut/memcached/memcachedtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testTimeout = time.Minute // bounds every wait
	mebibyte    = 1 << 20
)

// session is a connection to a server.
type session struct {
	t *testing.T
	net.Conn
	replies *bufio.Reader
}

func open(t *testing.T, p *memcachedtest.Process) session {
	t.Helper()
	conn, err := net.Dial("tcp", p.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(testTimeout))
	return session{t, conn, bufio.NewReader(conn)}
}

// send sends text and returns the first line of the reply.
func (s session) send(format string, args ...any) string {
	s.t.Helper()
	_, _ = fmt.Fprintf(s, format, args...)
	line, err := s.replies.ReadString('\n')
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// all sends text and returns the lines of the reply before END.
func (s session) all(text string) (lines []string) {
	s.t.Helper()
	for line := s.send("%s", text); line != "END"; line = s.send("") {
		lines = append(lines, line)
	}
	return lines
}

func (s session) set(key string, bytes int, seconds int) string {
	s.t.Helper()
	return s.send("set %s 0 %d %d\r\n%s\r\n", key, seconds, bytes, strings.Repeat("x", bytes))
}

func TestStats(t *testing.T) {
	t.Parallel()
	p := memcachedtest.Start(t, 3*mebibyte+1, "")
	if got, want := p.Figures(t), (sut.CacheFigures{MaxBytes: 3 * mebibyte}); got != want {
		t.Errorf("after the start: %+v, want %+v", got, want)
	}
	s := open(t, p)
	for i := range 10 {
		if got := s.set(fmt.Sprint("k", i), 100, 0); got != "STORED" {
			t.Fatal(got)
		}
	}
	for range 3 {
		if got := s.send("get nothing\r\n"); got != "END" {
			t.Fatal(got)
		}
	}
	if got := s.send("get k3\r\n"); got != "VALUE k3 0 100" {
		t.Fatal(got)
	}
	got := p.Figures(t)
	if got.Bytes < 10*100 || got.Bytes > 10*300 {
		t.Errorf("10 values of 100 bytes take %d", got.Bytes)
	}
	got.Bytes = 0
	if want := (sut.CacheFigures{Hits: 1, Misses: 3, Entries: 10, MaxBytes: 3 * mebibyte}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// A read of an expired entry is a miss and counts the entry as expired.
func TestExpired(t *testing.T) {
	t.Parallel()
	p := memcachedtest.Start(t, mebibyte, "")
	s := open(t, p)
	if got := s.set("a", 1, 1); got != "STORED" {
		t.Fatal(got)
	}
	expired := func() bool { return len(s.all("get a\r\n")) == 0 }
	polltest.Eventually(t, testTimeout, 5*time.Millisecond, "the entry has expired", expired)
	if got := p.Figures(t); got.Expired != 1 || got.Entries != 0 || got.Evicted != 0 {
		t.Errorf("got %+v", got)
	}
}

// When the memory is full the server evicts old entries, at the smallest memory limit and
// for values as large as a feed of a hundred photos, too.
func TestEviction(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		maxBytes int64
		bytes    int // of each value
		values   int
	}{
		{mebibyte, 1_000, 3_000},
		{mebibyte, 200_000, 30},
		{8 * mebibyte, 900_000, 30},
	} {
		p := memcachedtest.Start(t, test.maxBytes, "")
		s := open(t, p)
		for i := range test.values {
			if got := s.set(fmt.Sprint("k", i), test.bytes, 0); got != "STORED" {
				t.Fatalf("%+v: value %d: %s", test, i, got)
			}
		}
		got := p.Figures(t)
		if got.Evicted == 0 || got.Entries+got.Evicted != int64(test.values) ||
			got.Bytes > got.MaxBytes || got.MaxBytes != test.maxBytes {
			t.Errorf("%+v: %+v", test, got)
		}
		if got := s.set("large", mebibyte+1, 0); !strings.HasPrefix(got, "SERVER_ERROR ") {
			t.Errorf("a value above the item size limit: %s", got)
		}
	}
}

// The server runs as an ordinary user, listens on loopback only, and ends after its stop
// signal.
func TestProcess(t *testing.T) {
	t.Parallel()
	p := memcachedtest.Start(t, mebibyte, "")
	info, err := os.Stat(fmt.Sprintf("/proc/%d", p.PID))
	if err != nil {
		t.Skip("needs /proc")
	}
	want := uint32(os.Geteuid())
	if got := info.Sys().(*syscall.Stat_t).Uid; got == 0 || want != 0 && got != want {
		t.Errorf("the server runs as user %d, this test as %d", got, want)
	}
	settings := open(t, p).all("stats settings\r\n")
	listen, _, _ := net.SplitHostPort(p.Address())
	if !slices.Contains(settings, "STAT udpport 0") || !slices.Contains(settings, "STAT inter "+listen) {
		t.Errorf("want it to listen on TCP at its address only, settings are %q", settings)
	}
	version, err := p.Version(t.Context())
	if line := open(t, p).send("version\r\n"); err != nil || line != "VERSION "+version {
		t.Errorf("the server reports %q, Version() = %q, %v", line, version, err)
	}
	if err := syscall.Kill(p.PID, p.StopSignal().(syscall.Signal)); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Ended():
	case <-time.After(testTimeout):
		t.Fatalf("the server has not ended %v after its stop signal", testTimeout)
	}
	if err := p.Ready(t.Context()); err == nil {
		t.Error("Ready() = nil after the end of the server")
	}
}

// A server with a secret tells its figures and its keys to those who have it, and to nobody else.
func TestSecret(t *testing.T) {
	t.Parallel()
	p := memcachedtest.Start(t, mebibyte, "of-the-system")
	if got := open(t, p).send("set a 0 0 1\r\n1\r\n"); !strings.HasPrefix(got, "CLIENT_ERROR ") {
		t.Errorf("a stranger's set got %q", got)
	}
	if got := open(t, p).send("stats\r\n"); got != "CLIENT_ERROR unauthenticated" {
		t.Errorf("a stranger's stats got %q", got)
	}
	if got := open(t, p).send("set auth 0 0 16\r\nstagebench other\r\n"); got != "CLIENT_ERROR authentication failure" {
		t.Errorf("a wrong password got %q", got)
	}
	if f := p.Figures(t); f.Entries != 0 {
		t.Errorf("a stranger has added an entry: %+v", f)
	}
	if dropped, err := p.Drop(t.Context(), func(string) bool { return true }); err != nil || dropped != 0 {
		t.Errorf("Drop: %d, %v", dropped, err)
	}
}

func TestRefusedConfigs(t *testing.T) {
	t.Parallel()
	good := memcached.Config{
		Install: memcached.Install{Path: "/usr/bin/memcached"},
		Listen:  net.IPv4(127, 0, 0, 1), Port: 11211, MaxBytes: mebibyte,
	}
	if err := memcached.New(good).Prepare(t.Context()); err != nil {
		t.Errorf("%+v: %v", good, err)
	}
	for _, change := range []func(*memcached.Config){
		func(c *memcached.Config) { c.Install = memcached.Install{} },
		func(c *memcached.Config) { c.Listen = net.IPv4zero },
		func(c *memcached.Config) { c.Port = 0 },
		func(c *memcached.Config) { c.Port = 65536 },
		func(c *memcached.Config) { c.MaxBytes = 0 },
		func(c *memcached.Config) { c.MaxBytes = mebibyte - 1 },
	} {
		bad := good
		change(&bad)
		if err := memcached.New(bad).Prepare(t.Context()); err == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
}

// describe returns the description of a running server.
func describe(l net.Listener) *memcached.Server {
	at := l.Addr().(*net.TCPAddr)
	return memcached.New(memcached.Config{Listen: at.IP, Port: at.Port})
}

// Stats returns an error for a malformed or incomplete reply. If the server sends nothing,
// Stats returns an error when ctx ends.
func TestStatsFromOtherServers(t *testing.T) {
	t.Parallel()
	for name, reply := range map[string]string{
		"nothing":        "",
		"an error":       "ERROR\r\n",
		"missing fields": "STAT get_hits 1\r\nEND\r\n",
		"no END":         "STAT get_hits 1\r\n",
		"no number":      "STAT get_hits many\r\n",
	} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan struct{})
		go func() {
			defer close(served)
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = bufio.NewReader(conn).ReadString('\n')
			_, _ = fmt.Fprint(conn, reply)
			_ = conn.Close()
		}()
		if f, err := describe(listener).Stats(t.Context()); err == nil {
			t.Errorf("%s: %+v", name, f)
		}
		_ = listener.Close()
		<-served
	}
	// A server that sends nothing does not block the caller after the end of ctx.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := describe(listener).Stats(ctx); err == nil {
		t.Error("Stats() = nil error for a server that sends nothing")
	}
}
