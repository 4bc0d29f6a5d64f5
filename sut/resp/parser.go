package resp

import (
	"errors"
	"fmt"
)

// Limits of what a client may say of the length of what it sends, those of Redis.
const (
	maxArguments   = 1 << 20
	maxInlineBytes = 64 << 10
	maxHeaderBytes = 32 // "*" or "$", a number, and the end of the line
)

var (
	errArguments = errors.New("invalid multibulk length")
	errBulk      = errors.New("invalid bulk length")
	errInline    = errors.New("too big inline request")
)

// parser follows a stream of commands in pieces of any size, and finds where it
// breaks the rules; only quotes are left to redcon. It keeps nothing of them. Source: the Redis serialization
// protocol specification, "Sending commands to a Redis server".
type parser struct {
	maxCommand int64

	state     state
	header    int64 // number of the header that is being read
	length    int   // bytes of the line that is being read
	ending    bool  // the line that is being read has had its carriage return
	arguments int64 // of the command, that are still to come
	left      int64 // bytes of the argument that are still to come
	total     int64 // bytes that the command's arguments have, as announced
}

type state uint8

const (
	atStart    state = iota // of a command
	inInline                // in a command of one line
	inCount                 // in "*3\r\n"
	atArgument              // before "$"
	inLength                // in "$5\r\n"
	inArgument
	atReturn // after an argument
	atFeed
)

// check returns how many bytes are fine, and what is wrong with the next one.
func (p *parser) check(data []byte) (good int, err error) {
	for i := 0; i < len(data); i++ {
		switch b := data[i]; p.state {
		case atStart:
			p.header, p.length, p.total = 0, 1, 0
			switch b {
			case '*':
				p.state = inCount
			case '\n': // an empty line
			default:
				p.state = inInline
			}
		case inInline:
			if p.length++; b == '\n' {
				p.state = atStart
			} else if p.length > maxInlineBytes {
				return i, errInline
			}
		case inCount:
			ended, ok := p.number(b, maxArguments)
			if !ok || ended && p.header == 0 {
				return i, errArguments
			}
			if ended {
				p.arguments, p.state = p.header, atArgument
			}
		case atArgument:
			if b != '$' {
				return i, fmt.Errorf("expected '$', got '%c'", b)
			}
			p.header, p.length, p.state = 0, 1, inLength
		case inLength:
			ended, ok := p.number(b, p.maxCommand)
			if !ok || p.total+p.header > p.maxCommand {
				return i, errBulk
			}
			if ended {
				p.total += p.header
				if p.left, p.state = p.header, inArgument; p.left == 0 {
					p.state = atReturn
				}
			}
		case inArgument:
			skip := min(p.left, int64(len(data)-i))
			if p.left -= skip; p.left == 0 {
				p.state = atReturn
			}
			i += int(skip) - 1 // the loop's step is the last one
		case atReturn, atFeed:
			switch {
			case p.state == atReturn && b == '\r':
				p.state = atFeed
			case p.state == atFeed && b == '\n':
				p.state = atArgument
				if p.arguments--; p.arguments == 0 {
					p.state = atStart
				}
			default:
				return i, errBulk
			}
		}
	}
	return len(data), nil
}

// number takes the next byte of a line that holds a number up to a limit. It is at
// least as strict as redcon: were there a line that the two read differently, redcon
// would meet lengths that nobody has checked.
func (p *parser) number(b byte, limit int64) (ended, ok bool) {
	p.length++
	switch {
	case p.ending:
		p.ending = false
		return true, b == '\n'
	case b == '\r':
		p.ending = true
		return false, p.length > 2
	case b < '0' || b > '9' || p.length > maxHeaderBytes:
		return false, false
	}
	p.header = p.header*10 + int64(b-'0')
	return false, p.header <= limit
}
