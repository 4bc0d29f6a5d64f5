package resp

import (
	"math"
	"strconv"
	"strings"

	"github.com/tidwall/redcon"
)

// command is how one command is answered. Errors have the words of Redis, which
// clients know.
type command struct {
	least, most int // arguments, the name included; most 0 = any number
	run         func(s *Server, c redcon.Conn, args [][]byte)
}

// aboutValues lists the commands on what the server holds, by name in lower case. A
// name that is in no list is answered with an error, HELLO among them: upon it
// clients fall back to version 2 of the protocol.
func aboutValues() map[string]command {
	return map[string]command{
		"get":      {2, 2, (*Server).get},
		"set":      {3, 0, (*Server).set},
		"mget":     {2, 0, (*Server).mget},
		"del":      {2, 0, (*Server).del},
		"exists":   {2, 0, (*Server).exists},
		"expire":   {3, 3, func(s *Server, c redcon.Conn, args [][]byte) { s.expire(c, args, 1000) }},
		"pexpire":  {3, 3, func(s *Server, c redcon.Conn, args [][]byte) { s.expire(c, args, 1) }},
		"ttl":      {2, 2, func(s *Server, c redcon.Conn, args [][]byte) { s.ttl(c, args, 1000) }},
		"pttl":     {2, 2, func(s *Server, c redcon.Conn, args [][]byte) { s.ttl(c, args, 1) }},
		"incrby":   {3, 3, (*Server).incrBy},
		"dbsize":   {1, 1, func(s *Server, c redcon.Conn, _ [][]byte) { c.WriteInt64(s.store.stats().Entries) }},
		"flushall": {1, 2, (*Server).flushAll},
		"info":     {1, 0, (*Server).info},
		"config":   {2, 0, (*Server).config},
	}
}

// aboutConnections lists the commands that have nothing to do with what the server
// holds.
func aboutConnections() map[string]command {
	return map[string]command{
		"ping":    {1, 2, ping},
		"echo":    {2, 2, func(_ *Server, c redcon.Conn, args [][]byte) { c.WriteBulk(args[1]) }},
		"quit":    {1, 0, quit},
		"select":  {2, 2, selectDB},
		"client":  {2, 0, client},
		"command": {1, 0, (*Server).describe},
	}
}

const (
	syntaxError  = "ERR syntax error"
	integerError = "ERR value is not an integer or out of range"
)

// longestName is that of the command whose name is longest, or more.
const longestName = 16

func (s *Server) handle(c redcon.Conn, cmd redcon.Command) {
	s.commands.Add(1)
	// On the stack: every command comes by here.
	var lower [longestName]byte
	n := copy(lower[:], cmd.Args[0])
	for i, b := range lower[:n] {
		if b >= 'A' && b <= 'Z' {
			lower[i] = b + 'a' - 'A'
		}
	}
	known, found := s.table[string(lower[:n])]
	switch {
	case !found || len(cmd.Args[0]) > longestName:
		c.WriteError(unknown(cmd.Args))
	case len(cmd.Args) < known.least || known.most > 0 && len(cmd.Args) > known.most:
		c.WriteError(wrongNumber(string(lower[:n])))
	default:
		known.run(s, c, cmd.Args)
	}
}

func unknown(args [][]byte) string {
	var text strings.Builder
	text.WriteString("ERR unknown command '" + clip(args[0]) + "', with args beginning with: ")
	for _, arg := range args[1:min(len(args), 4)] {
		text.WriteString("'" + clip(arg) + "' ")
	}
	return text.String()
}

// clip shortens what a client sent, so that an answer is not as long as a question.
func clip(arg []byte) string { return string(arg[:min(len(arg), 128)]) }

func wrongNumber(name string) string {
	return "ERR wrong number of arguments for '" + name + "' command"
}

func (s *Server) get(c redcon.Conn, args [][]byte) {
	s.writeValue(c, args[1], s.store.clock())
}

// flushBytes is how large a value is that is sent at once. redcon sends answers when
// all commands that came together are answered: many large ones would be in memory.
const flushBytes = 64 << 10

func (s *Server) writeValue(c redcon.Conn, key []byte, now int64) {
	if value, found := s.store.of(key).get(key, now); found {
		c.WriteBulk(value)
		if w := redcon.BaseWriter(c); w != nil && len(value) >= flushBytes {
			_ = w.Flush() // the writer keeps the error for the end of the batch
		}
	} else {
		c.WriteNull()
	}
}

func (s *Server) mget(c redcon.Conn, args [][]byte) {
	c.WriteArray(len(args) - 1)
	now := s.store.clock()
	for _, key := range args[1:] {
		s.writeValue(c, key, now)
	}
}

// set is SET key value [NX | XX] [EX seconds | PX milliseconds].
func (s *Server) set(c redcon.Conn, args [][]byte) {
	now := s.store.clock()
	when, expires := always, int64(0)
	for i := 3; i < len(args); i++ {
		switch option := strings.ToUpper(clip(args[i])); {
		case option == "NX" && when == always:
			when = ifMissing
		case option == "XX" && when == always:
			when = ifThere
		case (option == "EX" || option == "PX") && expires == 0 && i+1 < len(args):
			i++
			n, ok := integer(args[i])
			if !ok {
				c.WriteError(integerError)
				return
			}
			if expires = later(now, n, unit(option)); n <= 0 || expires == 0 {
				c.WriteError("ERR invalid expire time in 'set' command")
				return
			}
		default:
			c.WriteError(syntaxError)
			return
		}
	}
	stored, err := s.store.of(args[1]).set(args[1], args[2], expires, when, now)
	switch {
	case err != nil:
		c.WriteError(err.Error())
	case stored:
		c.WriteString("OK")
	default:
		c.WriteNull()
	}
}

// unit is how many ms the number after an option stands for.
func unit(option string) int64 {
	if option == "EX" {
		return 1000
	}
	return 1
}

// later is the time n units of so many ms from now; 0 = there is no such time.
func later(now, n, unit int64) int64 {
	if n > math.MaxInt64/unit || n < math.MinInt64/unit || n > 0 && n*unit > math.MaxInt64-now {
		return 0
	}
	return now + n*unit
}

func (s *Server) del(c redcon.Conn, args [][]byte) {
	now, n := s.store.clock(), 0
	for _, key := range args[1:] {
		if s.store.of(key).del(key, now) {
			n++
		}
	}
	c.WriteInt(n)
}

func (s *Server) exists(c redcon.Conn, args [][]byte) {
	now, n := s.store.clock(), 0
	for _, key := range args[1:] {
		if _, found := s.store.of(key).expiry(key, now); found {
			n++
		}
	}
	c.WriteInt(n)
}

func (s *Server) expire(c redcon.Conn, args [][]byte, unit int64) {
	n, ok := integer(args[2])
	if !ok {
		c.WriteError(integerError)
		return
	}
	now := s.store.clock()
	at := later(now, n, unit)
	if at == 0 && n != 0 {
		name := "expire"
		if unit == 1 {
			name = "pexpire"
		}
		c.WriteError("ERR invalid expire time in '" + name + "' command")
		return
	}
	writeBool(c, s.store.of(args[1]).expire(args[1], at, now))
}

func writeBool(c redcon.Conn, yes bool) {
	if yes {
		c.WriteInt(1)
	} else {
		c.WriteInt(0)
	}
}

func (s *Server) ttl(c redcon.Conn, args [][]byte, unit int64) {
	now := s.store.clock()
	switch expires, found := s.store.of(args[1]).expiry(args[1], now); {
	case !found:
		c.WriteInt(-2)
	case expires == 0:
		c.WriteInt(-1)
	default:
		c.WriteInt64((expires - now + unit/2) / unit)
	}
}

func (s *Server) incrBy(c redcon.Conn, args [][]byte) {
	delta, ok := integer(args[2])
	if !ok {
		c.WriteError(integerError)
		return
	}
	n, err := s.store.of(args[1]).add(args[1], delta, s.store.clock())
	if err != nil {
		c.WriteError(err.Error())
		return
	}
	c.WriteInt64(n)
}

func (s *Server) flushAll(c redcon.Conn, args [][]byte) {
	if len(args) == 2 {
		if mode := strings.ToUpper(clip(args[1])); mode != "SYNC" && mode != "ASYNC" {
			c.WriteError(syntaxError)
			return
		}
	}
	s.store.flush()
	c.WriteString("OK")
}

func ping(_ *Server, c redcon.Conn, args [][]byte) {
	if len(args) == 2 {
		c.WriteBulk(args[1])
	} else {
		c.WriteString("PONG")
	}
}

func quit(_ *Server, c redcon.Conn, _ [][]byte) {
	c.ReadPipeline() // what came after is not answered
	c.WriteString("OK")
	_ = c.Close()
}

func selectDB(_ *Server, c redcon.Conn, args [][]byte) {
	switch n, err := strconv.Atoi(string(args[1])); {
	case err != nil:
		c.WriteError(integerError)
	case n != 0:
		c.WriteError("ERR DB index is out of range")
	default:
		c.WriteString("OK")
	}
}
