package sqlite_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/stagebench/stagebench/sut/sqlite"
)

// frame returns a message with any type, also none, and any length field.
func frame(kind byte, size int, body string) []byte {
	var b []byte
	if kind != 0 {
		b = append(b, kind)
	}
	return append(binary.BigEndian.AppendUint32(b, uint32(size)), body...)
}

func TestMalformedMessages(t *testing.T) {
	t.Parallel()
	s := withNotes(t, sqlite.Config{})
	conn := connect(t, s)
	start := frame(0, 10, "\x00\x03\x00\x00u\x00") // without the end of the list of parameters
	ssl := frame(0, 8, "\x04\xd2\x16\x2f")
	bind := func(length string) []byte { return frame('B', 16, "\x00\x00\x00\x00\x00\x01"+length+"\x00\x00") }
	for name, c := range map[string]struct {
		started bool
		bytes   []byte
		want    string
	}{
		"a negative start":            {false, frame(0, -1, ""), "FATAL 54000 EOF"},
		"an empty start":              {false, frame(0, 4, ""), "FATAL 08P01 EOF"},
		"an unterminated start":       {false, start, "EOF"},
		"a start of another protocol": {false, frame(0, 8, "\x00\x02\x00\x00"), "FATAL 0A000 EOF"},
		"a huge start":                {false, frame(0, 1<<30, "xxxx"), "FATAL 54000 EOF"},
		"endless requests for GSS":    {false, bytes.Repeat(frame(0, 8, "\x04\xd2\x16\x30"), 1000), ""},
		"HTTP":                        {false, []byte("GET / HTTP/1.1\r\n\r\n"), "FATAL 54000 EOF"},
		"a short cancellation":        {false, frame(0, 8, "\x04\xd2\x16\x2e"), "EOF"},
		"half a message":              {false, append(bytes.Clone(ssl), 0, 0), ""},
		"a length that is too small":  {true, frame('Q', 3, ""), "FATAL 08P01 EOF"},
		"a length of -1":              {true, frame('Q', -1, ""), "FATAL 54000 EOF"},
		"a message that is too large": {true, frame('Q', 64<<10, ""), "FATAL 54000 EOF"},
		"an unterminated query":       {true, frame('Q', 8, "abcd"), "FATAL 08P01 EOF"},
		"a query with extra bytes":    {true, frame('Q', 8, "a\x00cd"), "FATAL 08P01 EOF"},
		"an unknown message":          {true, frame('?', 4, ""), "FATAL 08003 EOF"},
		"a function call":             {true, frame('F', 4, ""), "FATAL 08003 EOF"},
		"a parse of too many types":   {true, frame('P', 8, "\x00\x00\xff\xff"), "FATAL 08P01 EOF"},
		"a bind of a negative length": {true, bind("\xff\xff\xff\xf0"), "FATAL 08P01 EOF"},
		"a bind of a huge length":     {true, bind("\x7f\xff\xff\xff"), "FATAL 08P01 EOF"},
		"a bind of many parameters":   {true, frame('B', 10, "\x00\x00\x00\x00\xff\xff"), "FATAL 08P01 EOF"},
		"an empty describe":           {true, frame('D', 4, ""), "FATAL 08P01 EOF"},
		"an empty execute":            {true, frame('E', 4, ""), "FATAL 08P01 EOF"},
		"a sync with extra bytes":     {true, frame('S', 5, "x"), "FATAL 08P01 EOF"},
		"a terminate":                 {true, frame('X', 4, ""), "EOF"},
		"a copy without a COPY":       {true, append(frame('d', 5, "x"), frame('X', 4, "")...), "EOF"},
	} {
		f := dial(t, s)
		if c.started {
			f = startSession(t, s)
		}
		if _, err := f.Write(c.bytes); err != nil {
			t.Fatal(err)
		}
		if c.want == "" { // the client gets no answer: the node must only survive
			f.Close()
			continue
		}
		if got := f.readUntil(t, ""); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
	if n := countNotes(t, conn); n != 1 {
		t.Errorf("%d notes", n)
	}
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if n := s.Stats().Connections; n != 0 {
		t.Errorf("%d clients are still connected", n)
	}
}

// FuzzServer sends random bytes, as start-up packet or after it. The node must close the connection after the end of
// the input, and continue to serve other clients.
func FuzzServer(f *testing.F) {
	encode := func(messages ...pgproto3.FrontendMessage) (b []byte) {
		for _, m := range messages {
			var err error
			if b, err = m.Encode(b); err != nil {
				f.Fatal(err)
			}
		}
		return b
	}
	f.Add(false, encode(startup()))
	f.Add(false, encode(&pgproto3.SSLRequest{}, &pgproto3.GSSEncRequest{}))
	f.Add(true, encode(&pgproto3.Query{String: all}, &pgproto3.Terminate{}))
	f.Add(true, encode(
		&pgproto3.Query{String: "begin"}, &pgproto3.Query{String: create}, &pgproto3.Query{String: "show server_version"},
	))
	f.Add(true, encode(
		&pgproto3.Parse{Name: "n", Query: note, ParameterOIDs: []uint32{20}},
		&pgproto3.Describe{ObjectType: 'S', Name: "n"},
		&pgproto3.Bind{PreparedStatement: "n", Parameters: [][]byte{[]byte("1")}, ResultFormatCodes: []int16{1}},
		&pgproto3.Describe{ObjectType: 'P'},
		&pgproto3.Execute{MaxRows: 1},
		&pgproto3.Close{ObjectType: 'S', Name: "n"},
		&pgproto3.Flush{}, &pgproto3.Sync{},
	))
	f.Add(true, encode(
		&pgproto3.Parse{Query: insert},
		&pgproto3.Bind{Parameters: [][]byte{[]byte("2"), nil, []byte("x")}, ParameterFormatCodes: []int16{0, 1, 0}},
		&pgproto3.Execute{}, &pgproto3.Execute{}, &pgproto3.Sync{},
	))
	s := withNotes(f, sqlite.Config{}.Adjust(func(_ *sqlite.EngineConfig, w *sqlite.WireConfig) {
		w.HandshakeTimeout = 20 * time.Second
	}))
	f.Fuzz(func(t *testing.T, started bool, message []byte) {
		c := dial(t, s)
		if started {
			c = startSession(t, s)
		}
		if _, err := c.Write(message); err != nil {
			return // the node has closed the connection already
		}
		if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil && !errors.Is(err, net.ErrClosed) {
			return
		}
		// Any answer is accepted, even bytes that are not a message, such as the answer to a request
		// for TLS. The test fails only if the node leaves the connection open.
		if got := c.readUntil(t, ""); strings.Contains(got, "i/o timeout") {
			t.Errorf("the connection was not closed: %s", got)
		}
	})
}
