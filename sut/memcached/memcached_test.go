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

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/memcached"
	"github.com/stagebench/stagebench/sut/memcached/memcachedtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	patience = 20 * time.Second // bounds every wait
	mebibyte = 1 << 20
)

// session is a connection to a server.
type session struct {
	t *testing.T
	net.Conn
	answers *bufio.Reader
}

func open(t *testing.T, p *memcachedtest.Process) session {
	t.Helper()
	conn, err := net.Dial("tcp", p.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return session{t, conn, bufio.NewReader(conn)}
}

// say sends text and returns the first line of the answer.
func (s session) say(format string, args ...any) string {
	s.t.Helper()
	_, _ = fmt.Fprintf(s, format, args...)
	line, err := s.answers.ReadString('\n')
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// all sends text and returns the lines of the answer up to its end.
func (s session) all(text string) (lines []string) {
	s.t.Helper()
	for line := s.say("%s", text); line != "END"; line = s.say("") {
		lines = append(lines, line)
	}
	return lines
}

func (s session) set(key string, bytes int, seconds int) string {
	s.t.Helper()
	return s.say("set %s 0 %d %d\r\n%s\r\n", key, seconds, bytes, strings.Repeat("x", bytes))
}

func TestStats(t *testing.T) {
	t.Parallel()
	p := memcachedtest.Start(t, 3*mebibyte+1)
	if got, want := p.Figures(t), (sut.CacheFigures{MaxBytes: 3 * mebibyte}); got != want {
		t.Errorf("at its start: %+v, want %+v", got, want)
	}
	s := open(t, p)
	for i := range 10 {
		if got := s.set(fmt.Sprint("k", i), 100, 0); got != "STORED" {
			t.Fatal(got)
		}
	}
	for range 3 {
		if got := s.say("get nothing\r\n"); got != "END" {
			t.Fatal(got)
		}
	}
	if got := s.say("get k3\r\n"); got != "VALUE k3 0 100" {
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

// Whatever has expired and was asked for is gone, and counted.
func TestExpired(t *testing.T) {
	t.Parallel()
	p := memcachedtest.Start(t, mebibyte)
	s := open(t, p)
	if got := s.set("a", 1, 1); got != "STORED" {
		t.Fatal(got)
	}
	for deadline := time.Now().Add(patience); len(s.all("get a\r\n")) > 0; {
		if time.Now().After(deadline) {
			t.Fatal("it does not expire")
		}
	}
	if got := p.Figures(t); got.Expired != 1 || got.Entries != 0 || got.Evicted != 0 {
		t.Errorf("got %+v", got)
	}
}

// Past the budget old entries go, also at the smallest budget, and also when values are
// as large as a feed of a hundred photos.
func TestBudget(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		budget int64
		bytes  int
		values int
	}{
		{mebibyte, 1_000, 3_000},
		{mebibyte, 200_000, 30},
		{8 * mebibyte, 900_000, 30},
	} {
		p := memcachedtest.Start(t, test.budget)
		s := open(t, p)
		for i := range test.values {
			if got := s.set(fmt.Sprint("k", i), test.bytes, 0); got != "STORED" {
				t.Fatalf("%+v: value %d: %s", test, i, got)
			}
		}
		got := p.Figures(t)
		if got.Evicted == 0 || got.Entries+got.Evicted != int64(test.values) || got.Bytes > got.MaxBytes || got.MaxBytes != test.budget {
			t.Errorf("%+v: %+v", test, got)
		}
		if got := s.set("large", mebibyte+1, 0); !strings.HasPrefix(got, "SERVER_ERROR ") {
			t.Errorf("a value over the limit of one: %s", got)
		}
	}
}

// The server belongs to an ordinary user, listens to nobody but loopback, and ends in
// order when it is asked to.
func TestProcess(t *testing.T) {
	t.Parallel()
	p := memcachedtest.Start(t, mebibyte)
	info, err := os.Stat(fmt.Sprintf("/proc/%d", p.PID))
	if err != nil {
		t.Skip("needs /proc")
	}
	want := uint32(os.Geteuid())
	if got := info.Sys().(*syscall.Stat_t).Uid; got == 0 || want != 0 && got != want {
		t.Errorf("it belongs to user %d, and we are %d", got, want)
	}
	if settings := open(t, p).all("stats settings\r\n"); !slices.Contains(settings, "STAT udpport 0") || !slices.Contains(settings, "STAT inter 127.0.0.1") {
		t.Errorf("it listens to others than TCP on loopback: %q", settings)
	}
	version, err := p.Version(t.Context())
	if line := open(t, p).say("version\r\n"); err != nil || line != "VERSION "+version {
		t.Errorf("it says %q, and its installation %q, %v", line, version, err)
	}
	if err := syscall.Kill(p.PID, p.StopSignal().(syscall.Signal)); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Ended():
	case <-time.After(patience):
		t.Fatal("it does not end")
	}
	if err := p.Ready(t.Context()); err == nil {
		t.Error("it serves after its end")
	}
}

func TestRefusedConfigs(t *testing.T) {
	t.Parallel()
	good := memcached.Config{Install: memcached.Install{Path: "/usr/bin/memcached"}, Listen: net.IPv4(127, 0, 0, 1), Port: 11211, MaxBytes: mebibyte}
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
			t.Errorf("%+v was taken", bad)
		}
	}
}

// describe is the description of a server that is there already.
func describe(l net.Listener) *memcached.Server {
	at := l.Addr().(*net.TCPAddr)
	return memcached.New(memcached.Config{Listen: at.IP, Port: at.Port})
}

// What answers with something else, or not at all, has no figures.
func TestStrangers(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{
		"nothing":         "",
		"a refusal":       "ERROR\r\n",
		"an end too soon": "STAT get_hits 1\r\nEND\r\n",
		"no end":          "STAT get_hits 1\r\n",
		"no number":       "STAT get_hits many\r\n",
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
			_, _ = fmt.Fprint(conn, answer)
			_ = conn.Close()
		}()
		if f, err := describe(listener).Stats(t.Context()); err == nil {
			t.Errorf("%s: %+v", name, f)
		}
		_ = listener.Close()
		<-served
	}
	// A caller who leaves does not wait for one that is silent.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := describe(listener).Stats(ctx); err == nil {
		t.Error("one that is silent has figures")
	}
}
