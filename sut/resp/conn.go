package resp

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// maxArguments is how many arguments a command may have, as in Redis.
const maxArguments = 1 << 20

// bufferBytes is the size of each of a connection's two buffers, and the limit of a
// line.
const bufferBytes = 16 << 10

// breach is what a client did that ends its connection, in the words of Redis.
type breach string

func (b breach) Error() string { return "Protocol error: " + string(b) }

const (
	errArguments = breach("invalid multibulk length")
	errBulk      = breach("invalid bulk length")
	errInline    = breach("too big inline request")
	errQuotes    = breach("unbalanced quotes in request")
)

// conn is a client's connection, for the goroutine that serves it. An error of
// writing is kept by the writer, and ends the connection before it is read again.
type conn struct {
	net.Conn
	server *Server
	in     *bufio.Reader
	out    *bufio.Writer
	name   string // that the client gave itself
	quit   bool   // the command that is being answered is the last

	// The arguments of the command that was read last, and the bytes of all of them, or
	// of the last ones where they had to move as they became more.
	args [][]byte
	data []byte
}

func (s *Server) newConn(c net.Conn) *conn {
	n := &conn{Conn: c, server: s, out: bufio.NewWriterSize(c, bufferBytes)}
	n.in = bufio.NewReaderSize(n, bufferBytes)
	return n
}

// Read sends the answers first, as it is called when nothing is left to read: commands
// that came together are answered together.
func (c *conn) Read(p []byte) (int, error) {
	if err := c.out.Flush(); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// serve answers commands until the client leaves, quits or breaks the rules, or until
// reading fails because the server ends.
func (c *conn) serve() {
	for !c.quit {
		if err := c.next(); err != nil {
			if broken := breach(""); errors.As(err, &broken) {
				c.refuse("ERR " + broken.Error())
			}
			break
		}
		if len(c.args) > 0 {
			c.server.handle(c, c.args)
		}
	}
	_, _ = c.out.Flush(), c.Close() // the client may have gone; there is nobody else to tell
}

// next reads a command. Source: the Redis serialization protocol specification,
// "Sending commands to a Redis server".
func (c *conn) next() error {
	c.args, c.data = c.args[:0], c.data[:0]
	if cap(c.args) > 1<<10 || cap(c.data) > 64<<10 {
		c.args, c.data = nil, nil // so that one large command does not cost memory for ever
	}
	line, err := c.line()
	if err != nil {
		return err
	}
	if line[0] != '*' {
		return c.split(string(line))
	}
	arguments, ok := length(line, maxArguments)
	if !ok || arguments == 0 {
		return errArguments
	}
	left := c.server.maxCommand
	for range arguments {
		if line, err = c.line(); err != nil {
			return err
		}
		n, ok := length(line, left)
		switch {
		case line[0] != '$':
			return breach(fmt.Sprintf("expected '$', got '%c'", line[0]))
		case !ok:
			return errBulk
		}
		left -= n
		if err := c.argument(int(n)); err != nil {
			return err
		}
	}
	return nil
}

// line reads a line with its end. It is good until the next is read.
func (c *conn) line() ([]byte, error) {
	line, err := c.in.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return nil, errInline
	}
	return line, err
}

// length reads the number of a line such as "$5", up to a limit.
func length(line []byte, limit int64) (n int64, ok bool) {
	digits, ended := bytes.CutSuffix(line[1:], []byte("\r\n"))
	if !ended || len(digits) < 1 || len(digits) > 18 { // more might not fit into n
		return 0, false
	}
	for _, b := range digits {
		if b < '0' || b > '9' {
			return 0, false
		}
		n = n*10 + int64(b-'0')
	}
	return n, n <= limit
}

// argument reads an argument of that length, and the end of its line.
func (c *conn) argument(n int) error {
	const piece = 64 << 10 // whoever only announces a lot gets no memory for it
	begin := len(c.data)
	for end := begin + n + len("\r\n"); len(c.data) < end; {
		at, more := len(c.data), min(end-len(c.data), piece)
		c.data = slices.Grow(c.data, more)[:at+more]
		if _, err := io.ReadFull(c.in, c.data[at:]); err != nil {
			return err
		}
	}
	text, ended := bytes.CutSuffix(c.data[begin:], []byte("\r\n"))
	if !ended {
		return errBulk
	}
	c.args, c.data = append(c.args, text), c.data[:begin+n]
	return nil
}

// word is an argument of a command of one line, which may be in double quotes.
var word = regexp.MustCompile(`"(\\.|[^"\\])*"|[^ \r\n]+`)

// split takes the arguments of a command of one line, as people type it.
func (c *conn) split(line string) error {
	for _, text := range word.FindAllString(line, -1) {
		if text[0] == '"' {
			var err error
			if text, err = strconv.Unquote(text); err != nil {
				return errQuotes
			}
		}
		c.args = append(c.args, []byte(text))
	}
	return nil
}

// simple answers with a word of ours.
func (c *conn) simple(text string) { c.answer('+', text) }

// refuse answers with an error, which may quote what the client sent.
func (c *conn) refuse(text string) {
	c.answer('-', strings.NewReplacer("\r", " ", "\n", " ").Replace(text))
}

func (c *conn) number(n int64)       { c.header(':', n) }
func (c *conn) array(n int)          { c.header('*', int64(n)) }
func (c *conn) null()                { c.answer('$', "-1") }
func (c *conn) bulkText(text string) { c.bulk([]byte(text)) }

func (c *conn) bulk(value []byte) {
	c.header('$', int64(len(value)))
	_, _ = c.out.Write(value)
	_, _ = c.out.WriteString("\r\n")
}

func (c *conn) header(kind byte, n int64) {
	line := strconv.AppendInt(append(c.out.AvailableBuffer(), kind), n, 10)
	_, _ = c.out.Write(append(line, "\r\n"...))
}

func (c *conn) answer(kind byte, text string) {
	_, _ = c.out.Write(append(append(append(c.out.AvailableBuffer(), kind), text...), "\r\n"...))
}
