package resp

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"testing"
	"testing/iotest"
	"time"
)

// wire is a connection that a script comes in by, and that swallows the answers.
type wire struct {
	net.Conn
	in  io.Reader
	out bytes.Buffer
}

func (w *wire) Read(p []byte) (int, error)  { return w.in.Read(p) }
func (w *wire) Write(p []byte) (int, error) { return w.out.Write(p) }
func (w *wire) Close() error                { return nil }
func (w *wire) RemoteAddr() net.Addr        { return &net.TCPAddr{} }

// nobody is a listener for a server that is not served.
type nobody struct{ net.Listener }

func (nobody) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }

// play has a server of its own answer what comes in by a reader, through the same
// doors as a client's bytes, and returns the answers.
func play(t *testing.T, in io.Reader) string {
	t.Helper()
	s, err := New(Config{Listener: nobody{}, MaxBytes: 1 << 20, MaxCommandBytes: 1 << 20, Now: newFake().Now, SweepInterval: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{in: in}
	s.newConn(w).serve()
	for _, sh := range s.store.shards {
		if err := sh.audit(); err != nil {
			t.Error(err)
		}
	}
	return w.out.String()
}

// No bytes that a client may send make the server panic or break its books, and
// it does not matter in which pieces they come.
func FuzzBytes(f *testing.F) {
	for _, seed := range []string{
		"*1\r\n$4\r\nPING\r\n", "PING\r\nGET a\r\n", "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$2\r\nbc\r\n*2\r\n$3\r\nGET\r\n$1\r\na\r\n",
		"*1\r\n$9223372036854775807\r\n", "*99999999999\r\n", "*1\r\n$-1\r\n", "*2\r\n$3\r\nGET\r\n$1\r\nabc", "SET \"a b\" 'c'\r\n", "*1\r\n$5\r3\r\n",
		"*0\r\n", "*-1\r\n", "\r\n\r\n", "*1\r\n$\r\n\r\n", "*1\r\n$00000000000000000000000000000000001\r\na\r\n", "*1\r\n$9223372036854775800\r\nPING",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		whole := play(t, bytes.NewReader(data))
		if pieces := play(t, iotest.OneByteReader(bytes.NewReader(data))); len(data) < 2000 && whole != pieces && !bytes.ContainsAny(data, "\"'") {
			t.Errorf("%q is answered with %q, in pieces with %q", data, whole, pieces)
		}
	})
}

// No command with any arguments does: a selector of the command, and what follows.
func FuzzCommands(f *testing.F) {
	names := []string{
		"get", "set", "mget", "del", "exists", "expire", "pexpire", "ttl", "pttl", "incrby", "dbsize", "flushall", "ping", "echo",
		"select", "info", "config", "client", "command", "hello", "quit",
	}
	if known := len(aboutValues()) + len(aboutConnections()); len(names) != known+1 { // HELLO is the one that is not known
		f.Fatalf("%d names for %d commands", len(names), known)
	}
	for i := range names {
		f.Add(uint8(i), []byte("a\x00b"))
	}
	f.Add(uint8(1), []byte("a\x00b\x00EX\x009223372036854775807\x00NX"))
	f.Add(uint8(5), []byte("a\x00-9223372036854775808"))
	f.Add(uint8(9), []byte("a\x00-9223372036854775808"))
	f.Add(uint8(16), []byte("set\x00maxmemory\x009223372036854775807gb"))
	f.Add(uint8(16), []byte("get\x00[\x00*"))
	f.Fuzz(func(t *testing.T, which uint8, data []byte) {
		args := append([][]byte{[]byte(names[int(which)%len(names)])}, bytes.Split(data, []byte{0})...)
		var script []byte
		for _, command := range [][][]byte{{[]byte("SET"), []byte("a"), []byte("7")}, args, args[:1], args, {[]byte("INFO")}} {
			script = fmt.Appendf(script, "*%d\r\n", len(command))
			for _, arg := range command {
				script = fmt.Appendf(script, "$%d\r\n%s\r\n", len(arg), arg)
			}
		}
		answer := play(t, bytes.NewReader(script))
		if answer == "" {
			t.Error("no answer at all")
		}
	})
}
