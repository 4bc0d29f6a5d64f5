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
	"sync"
	"unsafe"
)

// maxArguments is the maximum number of arguments of a command, as in Redis.
const maxArguments = 1 << 20

// maxCommandBytes limits the arguments of one command, and commandsBytes the memory of all commands that are being read
// or executed, without the first freeBytes of each. argumentBytes is the memory of an argument beside its bytes.
const (
	maxCommandBytes int64 = 64 << 20
	commandsBytes   int64 = 64 << 20
	freeBytes             = 64 << 10
	argumentBytes         = 2 * int(unsafe.Sizeof([]byte(nil))) // 2: args grows by doubling
)

// The limits of the commands of a client that has not shown the secret, as in Redis.
const (
	maxStrangerArguments       = 10
	maxStrangerBytes     int64 = 16 << 10
)

// bufferBytes is the size of each of the two buffers of a connection. It also limits the
// length of a line.
const bufferBytes = 16 << 10

// protocolError is a violation of the protocol by a client. It closes the connection.
// The texts are those of Redis.
type protocolError string

func (e protocolError) Error() string { return "Protocol error: " + string(e) }

const (
	errArguments = protocolError("invalid multibulk length")
	errBulk      = protocolError("invalid bulk length")
	errInline    = protocolError("too big inline request")
	errMemory    = protocolError("the unfinished commands of all clients are larger than 64 MiB")
	errStranger  = protocolError("unauthenticated multibulk length")
	errStrange   = protocolError("unauthenticated bulk length")
	errQuotes    = protocolError("unbalanced quotes in request")
)

// conn is a client's connection. Only the goroutine that serves it uses it, except for
// SetReadDeadline and Close. The buffered writer keeps a write error; Read returns it and
// so ends the connection.
type conn struct {
	net.Conn
	server *Server
	in     *bufio.Reader
	out    *bufio.Writer
	name   string // set by CLIENT SETNAME
	known  bool   // the client has shown the secret, or needs none
	quit   bool   // close the connection after the current command

	// args are the arguments of the current command. They point into data, or into an
	// earlier array of data that was full.
	args [][]byte
	data []byte
	size int   // memory of the current command
	held int64 // part of size that counts in Server.unfinished
}

// hold counts the memory of an unfinished command. It returns false if the commands of all clients are too big. Then
// the command no longer counts, so that others are not refused for it as well.
func (c *conn) hold(bytes int) bool {
	c.size += bytes
	more := max(int64(c.size)-freeBytes, 0) - c.held
	if more <= 0 {
		return true
	}
	if !c.server.unfinished.grow(c.held, more) {
		c.size, c.held, c.args, c.data = 0, 0, nil, nil
		return false
	}
	c.held += more
	return true
}

// release ends the counting of the last command.
func (c *conn) release() {
	c.server.unfinished.shrink(c.held)
	c.size, c.held = 0, 0
}

// unfinished is the memory of the unfinished commands of all clients.
type unfinished struct {
	mu    sync.Mutex
	bytes int64 // guarded by mu
}

// grow adds memory to that of a command. If that is too much, it removes the command and returns false.
func (u *unfinished) grow(held, more int64) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.bytes+more > commandsBytes {
		u.bytes -= held
		return false
	}
	u.bytes += more
	return true
}

func (u *unfinished) shrink(bytes int64) {
	if bytes == 0 {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.bytes -= bytes
}

func (s *Server) newConn(c net.Conn) *conn {
	n := &conn{Conn: c, server: s, known: s.secret == "", out: bufio.NewWriterSize(c, bufferBytes)}
	n.in = bufio.NewReaderSize(n, bufferBytes)
	return n
}

// Read flushes the replies and then reads. The buffered reader calls it when its buffer
// is empty, so the replies of a pipeline are sent together.
func (c *conn) Read(p []byte) (int, error) {
	if err := c.out.Flush(); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// serve answers commands until the client disconnects, quits or violates the protocol,
// or until Shutdown makes the next read fail.
func (c *conn) serve() {
	for !c.quit {
		if err := c.readCommand(); err != nil {
			if violation := protocolError(""); errors.As(err, &violation) {
				c.refuse("ERR " + violation.Error())
			}
			break
		}
		if len(c.args) > 0 {
			c.server.execute(c, c.args)
		}
	}
	c.release()
	_, _ = c.out.Flush(), c.Close() // errors are ignored: the client may have disconnected
}

// readCommand reads the next command into args. Source: the Redis serialization protocol specification,
// "Sending commands to a Redis server".
func (c *conn) readCommand() error {
	c.release()
	c.args, c.data = c.args[:0], c.data[:0]
	if cap(c.args) > 1<<10 || cap(c.data) > freeBytes {
		c.args, c.data = nil, nil // otherwise one large command would use memory for ever
	}
	line, err := c.readLine()
	if err != nil {
		return err
	}
	if line[0] != '*' {
		return c.parseInline(string(line))
	}
	count, ok := parseLength(line, maxArguments)
	if !ok || count == 0 {
		return errArguments
	}
	left := maxCommandBytes
	if !c.known {
		if count > maxStrangerArguments {
			return errStranger
		}
		left = maxStrangerBytes
	}
	for range count {
		if line, err = c.readLine(); err != nil {
			return err
		}
		n, ok := parseLength(line, left)
		switch {
		case line[0] != '$':
			return protocolError(fmt.Sprintf("expected '$', got '%c'", line[0]))
		case !ok && !c.known:
			return errStrange
		case !ok:
			return errBulk
		}
		left -= n
		if err := c.readArgument(int(n)); err != nil {
			return err
		}
	}
	return nil
}

// readLine reads a line including its end. The next read invalidates it.
func (c *conn) readLine() ([]byte, error) {
	line, err := c.in.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return nil, errInline
	}
	return line, err
}

// parseLength parses the number of a line such as "$5". ok is false when it is no number
// or greater than limit.
func parseLength(line []byte, limit int64) (n int64, ok bool) {
	digits, ended := bytes.CutSuffix(line[1:], []byte("\r\n"))
	if !ended || len(digits) < 1 || len(digits) > 18 { // more digits could overflow n
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

// readArgument reads an argument of n bytes and the line end after it.
func (c *conn) readArgument(n int) error {
	// Memory grows in steps with the received bytes. Otherwise a client could use up the
	// memory only by announcing long arguments.
	const step, smallest = 64 << 10, 512
	size := n + len("\r\n")
	if cap(c.data)-len(c.data) < size {
		// A new array, because a copy of earlier arguments would need their memory twice.
		c.data = make([]byte, 0, max(min(size, step), min(2*cap(c.data), freeBytes), smallest))
	}
	begin := len(c.data)
	for end := begin + size; len(c.data) < end; {
		at, more := len(c.data), min(end-len(c.data), step)
		if !c.hold(more) {
			return errMemory
		}
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
	if !c.hold(argumentBytes) {
		return errMemory
	}
	return nil
}

// inlineArgument is an argument of an inline command, with or without double quotes.
var inlineArgument = regexp.MustCompile(`"(\\.|[^"\\])*"|[^ \r\n]+`)

// parseInline parses an inline command: one line, as a person types it.
func (c *conn) parseInline(line string) error {
	for _, text := range inlineArgument.FindAllString(line, -1) {
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

// simple writes a simple string. The text must not contain line breaks.
func (c *conn) simple(text string) { c.writeText('+', text) }

// refuse writes an error reply. It replaces line breaks, which would end the reply.
func (c *conn) refuse(text string) {
	c.writeText('-', strings.NewReplacer("\r", " ", "\n", " ").Replace(text))
}

func (c *conn) number(n int64)       { c.header(':', n) }
func (c *conn) array(n int)          { c.header('*', int64(n)) }
func (c *conn) null()                { c.writeText('$', "-1") }
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

func (c *conn) writeText(kind byte, text string) {
	_, _ = c.out.Write(append(append(append(c.out.AvailableBuffer(), kind), text...), "\r\n"...))
}
