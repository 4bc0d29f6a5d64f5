package resp

import (
	"math"
	"strconv"
	"strings"
)

// command is the implementation of one command. Error replies have the same text as
// those of Redis, because clients compare it.
type command struct {
	minArgs, maxArgs int // including the name of the command; maxArgs 0 = no maximum
	run              func(s *Server, c *conn, args [][]byte)
}

// keyCommands returns the commands on keys, by name in lower case. HELLO is missing on
// purpose: it is answered with an error, and clients then fall back to version 2 of the
// protocol.
func keyCommands() map[string]command {
	return map[string]command{
		"get":      {2, 2, (*Server).get},
		"set":      {3, 0, (*Server).set},
		"mget":     {2, 0, (*Server).mget},
		"del":      {2, 0, (*Server).del},
		"exists":   {2, 0, (*Server).exists},
		"expire":   {3, 3, func(s *Server, c *conn, args [][]byte) { s.expire(c, args, 1000) }},
		"pexpire":  {3, 3, func(s *Server, c *conn, args [][]byte) { s.expire(c, args, 1) }},
		"ttl":      {2, 2, func(s *Server, c *conn, args [][]byte) { s.ttl(c, args, 1000) }},
		"pttl":     {2, 2, func(s *Server, c *conn, args [][]byte) { s.ttl(c, args, 1) }},
		"incrby":   {3, 3, (*Server).incrBy},
		"dbsize":   {1, 1, func(s *Server, c *conn, _ [][]byte) { c.number(s.store.stats().Entries) }},
		"flushall": {1, 2, (*Server).flushAll},
		"info":     {1, 0, (*Server).info},
		"config":   {2, 0, (*Server).config},
	}
}

// connectionCommands returns the commands that do not access keys.
func connectionCommands() map[string]command {
	return map[string]command{
		"auth":    {2, 3, (*Server).auth},
		"ping":    {1, 2, ping},
		"echo":    {2, 2, func(_ *Server, c *conn, args [][]byte) { c.bulk(args[1]) }},
		"quit":    {1, 0, quit},
		"select":  {2, 2, selectDB},
		"client":  {2, 0, client},
		"command": {1, 0, (*Server).commandInfo},
	}
}

const (
	syntaxError  = "ERR syntax error"
	integerError = "ERR value is not an integer or out of range"
)

// maxNameBytes is the maximum length of a command's name.
const maxNameBytes = 16

// execute answers one command.
func (s *Server) execute(c *conn, args [][]byte) {
	s.answered.Add(1)
	// The buffer is on the stack: an allocation here would slow down every command.
	var lower [maxNameBytes]byte
	n := copy(lower[:], args[0])
	for i, b := range lower[:n] {
		if b >= 'A' && b <= 'Z' {
			lower[i] = b + 'a' - 'A'
		}
	}
	known, found := s.commands[string(lower[:n])]
	switch name := string(lower[:n]); {
	case !found && (name == "post" || name == "host:"):
		// This is HTTP: a web page may have made a browser attack the server (cross-protocol
		// scripting). Redis also closes the connection without a reply.
		c.quit = true
	case !c.known && name != "auth" && name != "quit" && name != "hello":
		c.refuse("NOAUTH Authentication required.")
	case !found || len(args[0]) > maxNameBytes:
		c.refuse(unknownCommand(args))
	case len(args) < known.minArgs || known.maxArgs > 0 && len(args) > known.maxArgs:
		c.refuse(wrongArgCount(name))
	default:
		known.run(s, c, args)
	}
}

// auth implements AUTH [default] password.
func (s *Server) auth(c *conn, args [][]byte) {
	switch password := string(args[len(args)-1]); {
	case s.secret == "":
		c.refuse("ERR AUTH <password> called without any password configured for the default user. " +
			"Are you sure your configuration is correct?")
	case len(args) == 3 && string(args[1]) != "default", !s.secret.Matches(password):
		c.refuse("WRONGPASS invalid username-password pair or user is disabled.")
	default:
		c.known = true
		c.simple("OK")
	}
}

func unknownCommand(args [][]byte) string {
	var text strings.Builder
	text.WriteString("ERR unknown command '" + clip(args[0]) + "', with args beginning with: ")
	for _, arg := range args[1:min(len(args), 4)] {
		text.WriteString("'" + clip(arg) + "' ")
	}
	return text.String()
}

// clip shortens an argument, so that a long argument does not make a long error reply.
func clip(arg []byte) string { return string(arg[:min(len(arg), 128)]) }

func wrongArgCount(name string) string {
	return "ERR wrong number of arguments for '" + name + "' command"
}

func (s *Server) get(c *conn, args [][]byte) {
	s.writeValue(c, args[1], s.store.clock())
}

func (s *Server) writeValue(c *conn, key []byte, now int64) {
	if value, found := s.store.shardOf(key).get(key, now); found {
		c.bulk(value)
	} else {
		c.null()
	}
}

func (s *Server) mget(c *conn, args [][]byte) {
	c.array(len(args) - 1)
	now := s.store.clock()
	for _, key := range args[1:] {
		s.writeValue(c, key, now)
	}
}

// set implements SET key value [NX | XX] [EX seconds | PX milliseconds].
func (s *Server) set(c *conn, args [][]byte) {
	now := s.store.clock()
	when, expires := always, int64(0)
	for i := 3; i < len(args); i++ {
		switch option := strings.ToUpper(clip(args[i])); {
		case option == "NX" && when == always:
			when = ifMissing
		case option == "XX" && when == always:
			when = ifExists
		case (option == "EX" || option == "PX") && expires == 0 && i+1 < len(args):
			i++
			n, ok := integer(args[i])
			if !ok {
				c.refuse(integerError)
				return
			}
			if expires = expiryTime(now, n, unit(option)); n <= 0 || expires == 0 {
				c.refuse("ERR invalid expire time in 'set' command")
				return
			}
		default:
			c.refuse(syntaxError)
			return
		}
	}
	stored, err := s.store.shardOf(args[1]).set(args[1], args[2], expires, when, now)
	switch {
	case err != nil:
		c.refuse(err.Error())
	case stored:
		c.simple("OK")
	default:
		c.null()
	}
}

// unit returns the unit of an option's number, in ms.
func unit(option string) int64 {
	if option == "EX" {
		return 1000
	}
	return 1
}

// expiryTime returns the time n units of the given ms after now; 0 = it overflows.
func expiryTime(now, n, unit int64) int64 {
	if n > math.MaxInt64/unit || n < math.MinInt64/unit || n > 0 && n*unit > math.MaxInt64-now {
		return 0
	}
	return now + n*unit
}

func (s *Server) del(c *conn, args [][]byte) { s.count(c, args[1:], (*shard).del) }

func (s *Server) exists(c *conn, args [][]byte) {
	s.count(c, args[1:], func(sh *shard, key []byte, now int64) bool {
		_, found := sh.expiry(key, now)
		return found
	})
}

// count calls do for each key, and replies with the number of calls that returned true.
func (s *Server) count(c *conn, keys [][]byte, do func(sh *shard, key []byte, now int64) bool) {
	now, n := s.store.clock(), int64(0)
	for _, key := range keys {
		if do(s.store.shardOf(key), key, now) {
			n++
		}
	}
	c.number(n)
}

func (s *Server) expire(c *conn, args [][]byte, unit int64) {
	n, ok := integer(args[2])
	if !ok {
		c.refuse(integerError)
		return
	}
	at := expiryTime(s.store.clock(), n, unit)
	if at == 0 && n != 0 {
		c.refuse("ERR invalid expire time in '" + strings.ToLower(clip(args[0])) + "' command")
		return
	}
	s.count(c, args[1:2], func(sh *shard, key []byte, now int64) bool { return sh.expire(key, at, now) })
}

func (s *Server) ttl(c *conn, args [][]byte, unit int64) {
	now := s.store.clock()
	switch expires, found := s.store.shardOf(args[1]).expiry(args[1], now); {
	case !found:
		c.number(-2)
	case expires == 0:
		c.number(-1)
	default:
		c.number((expires - now + unit/2) / unit)
	}
}

func (s *Server) incrBy(c *conn, args [][]byte) {
	delta, ok := integer(args[2])
	if !ok {
		c.refuse(integerError)
		return
	}
	n, err := s.store.shardOf(args[1]).add(args[1], delta, s.store.clock())
	if err != nil {
		c.refuse(err.Error())
		return
	}
	c.number(n)
}

func (s *Server) flushAll(c *conn, args [][]byte) {
	if len(args) == 2 {
		if mode := strings.ToUpper(clip(args[1])); mode != "SYNC" && mode != "ASYNC" {
			c.refuse(syntaxError)
			return
		}
	}
	s.store.flush()
	c.simple("OK")
}

func ping(_ *Server, c *conn, args [][]byte) {
	if len(args) == 2 {
		c.bulk(args[1])
	} else {
		c.simple("PONG")
	}
}

func quit(_ *Server, c *conn, _ [][]byte) {
	c.quit = true // later commands are not answered
	c.simple("OK")
}

func selectDB(_ *Server, c *conn, args [][]byte) {
	switch n, err := strconv.Atoi(string(args[1])); {
	case err != nil:
		c.refuse(integerError)
	case n != 0:
		c.refuse("ERR DB index is out of range")
	default:
		c.simple("OK")
	}
}
