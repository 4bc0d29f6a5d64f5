package resp

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"testing"
	"testing/iotest"
)

// scriptConn is a connection that reads a script and records the replies.
type scriptConn struct {
	net.Conn
	in  io.Reader
	out bytes.Buffer
}

func (c *scriptConn) Read(p []byte) (int, error)  { return c.in.Read(p) }
func (c *scriptConn) Write(p []byte) (int, error) { return c.out.Write(p) }
func (c *scriptConn) Close() error                { return nil }
func (c *scriptConn) RemoteAddr() net.Addr        { return &net.TCPAddr{} }

// unusedListener is the listener of a server that never calls Accept.
type unusedListener struct{ net.Listener }

func (unusedListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }

// play sends a script to a new server, on the code path of a network connection, and
// returns the replies.
func play(t *testing.T, in io.Reader) string {
	t.Helper()
	s, err := New(Config{Listener: unusedListener{}, MaxBytes: 1 << 20, Now: newFakeClock().Now})
	if err != nil {
		t.Fatal(err)
	}
	c := &scriptConn{in: in}
	s.newConn(c).serve()
	for _, sh := range s.store.shards {
		if err := sh.audit(); err != nil {
			t.Error(err)
		}
	}
	return c.out.String()
}

// No input makes the server panic or corrupts its accounting. The replies do not depend
// on how the input is split into reads.
func FuzzBytes(f *testing.F) {
	for _, seed := range []string{
		"*1\r\n$4\r\nPING\r\n", "PING\r\nGET a\r\n",
		"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$2\r\nbc\r\n*2\r\n$3\r\nGET\r\n$1\r\na\r\n",
		"*1\r\n$9223372036854775807\r\n", "*99999999999\r\n", "*1\r\n$-1\r\n",
		"*2\r\n$3\r\nGET\r\n$1\r\nabc", "SET \"a b\" 'c'\r\n", "*1\r\n$5\r3\r\n",
		"*0\r\n", "*-1\r\n", "\r\n\r\n", "*1\r\n$\r\n\r\n",
		"*1\r\n$00000000000000000000000000000000001\r\na\r\n", "*1\r\n$9223372036854775800\r\nPING",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		atOnce := play(t, bytes.NewReader(data))
		byBytes := play(t, iotest.OneByteReader(bytes.NewReader(data)))
		if len(data) < 2000 && atOnce != byBytes && !bytes.ContainsAny(data, "\"'") {
			t.Errorf("the replies to %q are %q, but %q when it is read byte by byte", data, atOnce, byBytes)
		}
	})
}

// No command panics or corrupts the accounting, with any arguments. The input is the index
// of the command and its arguments, separated by zero bytes.
func FuzzCommands(f *testing.F) {
	names := []string{
		"get", "set", "mget", "del", "exists", "expire", "pexpire", "ttl", "pttl", "incrby", "dbsize", "flushall",
		"ping", "echo", "select", "info", "config", "client", "command", "hello", "quit", "auth",
	}
	if known := len(keyCommands()) + len(connectionCommands()); len(names) != known+1 { // HELLO is not known
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
	f.Fuzz(func(t *testing.T, index uint8, data []byte) {
		args := append([][]byte{[]byte(names[int(index)%len(names)])}, bytes.Split(data, []byte{0})...)
		var script []byte
		for _, command := range [][][]byte{
			{[]byte("SET"), []byte("a"), []byte("7")}, args, args[:1], args, {[]byte("INFO")},
		} {
			script = fmt.Appendf(script, "*%d\r\n", len(command))
			for _, arg := range command {
				script = fmt.Appendf(script, "$%d\r\n%s\r\n", len(arg), arg)
			}
		}
		if replies := play(t, bytes.NewReader(script)); replies == "" {
			t.Error("no reply")
		}
	})
}
