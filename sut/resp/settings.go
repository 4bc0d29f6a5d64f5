package resp

import (
	"cmp"
	"fmt"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The names of the settings of CONFIG.
const (
	settingMemory = "maxmemory"
	settingEvict  = "maxmemory-policy"
)

// redisName returns the name of a policy in the style of Redis.
func redisName(evict Evict) string {
	if evict == None {
		return string(None)
	}
	return "allkeys-" + string(evict)
}

// config implements CONFIG GET, SET and RESETSTAT.
func (s *Server) config(c *conn, args [][]byte) {
	switch sub := strings.ToLower(clip(args[1])); {
	case sub == "get" && len(args) >= 3:
		s.configGet(c, args[2:])
	case sub == "set" && len(args) >= 4 && len(args)%2 == 0:
		s.configSet(c, args[2:])
	case sub == "resetstat" && len(args) == 2:
		s.store.resetCounters()
		c.simple("OK")
	case sub == "get" || sub == "set" || sub == "resetstat":
		c.refuse(wrongArgCount("config|" + sub))
	default:
		c.refuse("ERR unknown subcommand '" + clip(args[1]) + "'. Try CONFIG HELP.")
	}
}

func (s *Server) configGet(c *conn, patterns [][]byte) {
	budget, evict := s.store.settings()
	var found []string
	for _, setting := range [][2]string{
		{settingMemory, strconv.FormatInt(budget, 10)},
		{settingEvict, redisName(evict)},
	} {
		matches := func(pattern []byte) bool {
			ok, err := path.Match(strings.ToLower(clip(pattern)), setting[0])
			return ok && err == nil
		}
		if slices.ContainsFunc(patterns, matches) {
			found = append(found, setting[0], setting[1])
		}
	}
	c.array(len(found))
	for _, text := range found {
		c.bulkText(text)
	}
}

// configSet changes all the given settings, or none if one is invalid.
func (s *Server) configSet(c *conn, pairs [][]byte) {
	budget, evict := int64(-1), Evict("")
	for i := 0; i < len(pairs); i += 2 {
		name, value := strings.ToLower(clip(pairs[i])), strings.ToLower(clip(pairs[i+1]))
		var problem string
		switch name {
		case settingMemory:
			var ok bool
			if budget, ok = parseMemory(value); !ok {
				problem = "argument must be a memory value"
			}
		case settingEvict:
			evict = Evict(strings.TrimPrefix(value, "allkeys-"))
			if _, err := newPolicy(evict); err != nil || value != redisName(evict) {
				problem = fmt.Sprintf("argument(s) must be one of the following: %s, %s, %s, %s",
					redisName(LRU), redisName(LFU), redisName(FIFO), redisName(None))
			}
		default:
			c.refuse("ERR Unknown option or number of arguments for CONFIG SET - '" + clip(pairs[i]) + "'")
			return
		}
		if problem != "" {
			c.refuse("ERR CONFIG SET failed (possibly related to argument '" + name + "') - " + problem)
			return
		}
	}
	if evict != "" {
		_ = s.store.setEvict(evict) // cannot fail: it was checked above
	}
	if budget >= 0 {
		s.store.setBudget(budget)
	}
	c.simple("OK")
}

// parseMemory parses a number of bytes in the notation of Redis: 100, 100mb, 1g.
func parseMemory(text string) (int64, bool) {
	digits := strings.TrimRight(text, "bgkm")
	factor, known := map[string]int64{
		"": 1, "b": 1, "k": 1e3, "kb": 1 << 10, "m": 1e6, "mb": 1 << 20, "g": 1e9, "gb": 1 << 30,
	}[text[len(digits):]]
	n, err := strconv.ParseInt(digits, 10, 64)
	return n * factor, known && err == nil && n >= 0 && n <= math.MaxInt64/factor
}

// info implements INFO: the metrics that Redis tools read, with the names of Redis.
func (s *Server) info(c *conn, args [][]byte) {
	stats, uptime := s.Stats(), s.store.now().Sub(s.started)
	sections := []struct{ name, text string }{
		{"server", fmt.Sprintf("redis_mode:standalone\r\nuptime_in_seconds:%d\r\n", uptime/time.Second)},
		{"clients", fmt.Sprintf("connected_clients:%d\r\n", stats.Conns)},
		{"memory", fmt.Sprintf("used_memory:%d\r\nmaxmemory:%d\r\nmaxmemory_policy:%s\r\n",
			stats.Bytes, stats.MaxBytes, redisName(stats.Evict))},
		{"stats", fmt.Sprintf("total_connections_received:%d\r\ntotal_commands_processed:%d\r\nexpired_keys:%d\r\n"+
			"evicted_keys:%d\r\nkeyspace_hits:%d\r\nkeyspace_misses:%d\r\n",
			stats.Accepted, stats.Commands, stats.Expired, stats.Evicted, stats.Hits, stats.Misses)},
		{"errorstats", ""},
		{"keyspace", ""},
	}
	if stats.Refused > 0 {
		sections[len(sections)-2].text = fmt.Sprintf("errorstat_OOM:count=%d\r\n", stats.Refused)
	}
	if stats.Entries > 0 {
		sections[len(sections)-1].text = fmt.Sprintf("db0:keys=%d,expires=%d,avg_ttl=0\r\n", stats.Entries, stats.Expiring)
	}
	var texts []string
	for _, section := range sections {
		if includes(args[1:], section.name) {
			texts = append(texts, "# "+strings.ToUpper(section.name[:1])+section.name[1:]+"\r\n"+section.text)
		}
	}
	c.bulkText(strings.Join(texts, "\r\n"))
}

// includes reports whether INFO with these section names includes a section.
func includes(names [][]byte, section string) bool {
	return len(names) == 0 || slices.ContainsFunc(names, func(name []byte) bool {
		return slices.Contains([]string{section, "all", "default", "everything"}, strings.ToLower(clip(name)))
	})
}

// client implements CLIENT SETINFO, SETNAME, GETNAME, NO-EVICT and NO-TOUCH, which client
// libraries send when they connect.
func client(_ *Server, c *conn, args [][]byte) {
	switch sub := strings.ToLower(clip(args[1])); {
	case sub == "setinfo" && len(args) == 4, sub == "no-evict" && len(args) == 3, sub == "no-touch" && len(args) == 3:
		c.simple("OK")
	case sub == "setname" && len(args) == 3:
		c.name = clip(args[2])
		c.simple("OK")
	case sub == "getname" && len(args) == 2:
		if c.name != "" {
			c.bulkText(c.name)
		} else {
			c.null()
		}
	default:
		c.refuse("ERR unknown subcommand or wrong number of arguments for '" + clip(args[1]) + "'. Try CLIENT HELP.")
	}
}

// commandInfo implements COMMAND, with which clients list the commands of a server. COUNT
// is exact; the lists are always empty.
func (s *Server) commandInfo(c *conn, args [][]byte) {
	var sub string
	if len(args) > 1 {
		sub = strings.ToLower(clip(args[1]))
	}
	switch cmp.Or(sub, "list") {
	case "count":
		c.number(int64(len(s.commands)))
	case "list", "docs", "info":
		c.array(0)
	default:
		c.refuse("ERR unknown subcommand '" + clip(args[1]) + "'. Try COMMAND HELP.")
	}
}
