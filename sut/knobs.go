package sut

import (
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
)

// Knobs are settings of a topology by name, as text: "lb.policy" -> "least_conn".
// A Knobs that Build returned holds every knob with its effective value.
type Knobs map[string]string

// Knob describes one setting.
type Knob struct {
	Name    string
	Default string
	// Range is what is allowed, for people: "1..16", "true|false", "a|b|c".
	Range   string
	Engines []Engine // that support it; nil = all engines of its role
	Doc     string
	check   func(value string) error
}

// Catalogue lists every knob in the order in which they are shown.
func Catalogue() []Knob {
	return []Knob{
		intKnob("web.hosts", 3, 1, 16, "number of web hosts, from stage lb on"),
		sizesKnob("web.cpu", "1", 0.5, 32, "size of each web host in units, or one size for each, as 3,3,1: the last one holds for the rest; at stage single the host has the larger of web.cpu and db.cpu"),
		sizesKnob("web.weights", "1", 0.1, 100, "share of each web host under lb.policy=weighted_round_robin, as 2,1: the last one holds for the rest"),
		choiceKnob("web.split", "false", "uploads have web hosts of their own, which the balancer routes them to, from stage lb on", "true", "false"),
		intKnob("web.upload_hosts", 1, 1, 15, "with web.split: how many of web.hosts take the uploads"),
		intKnob("web.max_conns", 500, 1, 100_000, "connections that a web host accepts; past them it answers 503 with Retry-After"),
		choiceKnob("web.gzip", "false", "compress texts for clients that accept it", "true", "false"),
		floatKnob("db.cpu", 1, 0.5, 32, "size of the database host in units"),
		choiceKnob("db.engine", string(SQLite), "what realises the database", string(SQLite), string(Postgres)),
		intKnob("db.replicas", 2, 0, 8, "database hosts besides the primary, from stage replicas on"),
		func() Knob {
			k := choiceKnob("db.topology", "primary-replica", "what the copies are: one primary and replicas of it; or several primaries, each of which ships to all others, or in a ring to the next one: the last writer of a row wins",
				"primary-replica", "multi-primary", "ring")
			k.Engines = []Engine{SQLite}
			return k
		}(),
		choiceKnob("db.sync", "async", "what a write waits for: async = the primary, sync = db.sync_copies replicas, too", "async", "sync"),
		intKnob("db.sync_copies", 1, 1, 8, "with db.sync=sync: how many replicas must hold a write before it is acknowledged"),
		func() Knob {
			k := floatKnob("db.sync_timeout", 2, 0.1, 2.5, "with db.sync=sync: seconds after which a write that too few replicas hold is answered with an error; it may have taken effect. PostgreSQL waits as long as a request may take, 5 s")
			k.Engines = []Engine{SQLite}
			return k
		}(),
		choiceKnob("db.read_preference", "replica", "where reads go; to the primary when no replica can be read", "replica", "primary"),
		durationKnob("db.replica_lag", 0, 10*time.Second, "artificial lag: a replica applies each change so long after its commit"),
		floatKnob("db.probe_interval", 0.2, 0.05, 60, "seconds between two probes of a database, by which its death is detected"),
		intKnob("db.probe_failures", 3, 1, 100, "failed probes in a row after which a database is taken for dead, and a dead primary replaced by a replica"),
		intKnob("cache.hosts", 1, 0, 16, "cache hosts, from stage cache on, 0 = none; keys are spread over them by consistent hashing"),
		floatKnob("cache.cpu", 1, 0.5, 32, "size of each cache host in units"),
		choiceKnob("cache.engine", string(RESP), "what realises the cache; memcached counts times to live in whole seconds", string(RESP), string(Redis), string(Memcached)),
		choiceKnob("cache.read", "look_aside", "who loads what the cache does not have: look_aside = the web host, which stores it in the cache; read_through = the cache host itself (many texts call look-aside read-through)", "look_aside", "read_through"),
		choiceKnob("cache.write", "write_around", "how a photo is written: write_around = the web host writes to the database and removes it from the cache; write_through = the cache host writes to the database and keeps it; write_back = the cache host acknowledges likes, comments and renames at once and writes them later, in batches, and reads from the primary alone, whatever db.read_preference says", "write_around", "write_through", "write_back"),
		durationKnob("cache.flush_interval", 500*time.Millisecond, time.Minute, "with write_back, the time between two batches: what a cache host that dies can lose, and more while the database is slow or away"),
		floatKnob("cache.memory_mb", 64, 0.1, 100_000, "budget of each cache host in MiB, for keys, values and what an entry costs besides; on redis, which counts its own structures, too, at least 2, on memcached whole numbers"),
		choiceKnob("cache.evict", "lru", "who goes when the budget is used up; on redis all are sampled, and fifo is approximated by volatile-ttl; memcached has lru only, for entries of about one size", "lru", "lfu", "fifo"),
		durationKnob("cache.ttl", time.Minute, time.Hour, "how long the cache keeps a photo or a user that nobody writes"),
		durationKnob("cache.feed_ttl", 2*time.Second, time.Hour, "how long the cache keeps a feed, which no write removes; 0s = feeds are not cached"),
		choiceKnob("cache.single_flight", "true", "of several requests on a web host, or with read_through on the cache host, that miss a key at a time, one reads it from the database for all", "true", "false"),
		intKnob("blob.hosts", 0, 0, 16, "hosts for the bytes of photos, from stage db-split on; 0 = they are on the database host; stage single has none"),
		intKnob("blob.copies", 1, 1, 5, "copies of each photo's bytes on different hosts, by consistent hash; at most blob.hosts, or 1"),
		floatKnob("blob.cpu", 1, 0.5, 32, "size of each blob host in units"),
		intKnob("blob.capacity_mb", 0, 0, 1_000_000, "bytes that a blob host holds, in MB; past them it is full; 0 = what the disk holds"),
		intKnob("lb.hosts", 1, 1, 8, "number of balancer hosts; clients that cannot connect to one fail over to the next"),
		floatKnob("lb.cpu", 2, 0.5, 32, "size of each balancer host in units"),
		choiceKnob("lb.engine", string(OwnBalance), "what realises the balancer", string(OwnBalance), string(HAProxy)),
		choiceKnob("lb.layer", "l7", "l7 balances requests, and may route them; l4 balances connections, and sees addresses only", "l7", "l4"),
		choiceKnob("lb.policy", "round_robin", "how the balancer picks a web host; least_response_time with lb.engine=balance only",
			"round_robin", "weighted_round_robin", "ip_hash", "least_conn", "least_response_time"),
		choiceKnob("lb.sticky", "auto", "cookie affinity: a user stays on the web host that holds the session; auto = true at l7, false at l4", "auto", "true", "false"),
		routesKnob("lb.routes", "what the balancer sends where (l7), first match first, as 'path=/img/* -> web-3; method=POST header=X-Batch:1 -> web-1 web-2'; else anywhere"),
		floatKnob("lb.health_interval", 1, 0.05, 60, "seconds between two health checks of a web host"),
		intKnob("lb.eject_after", 5, 0, 1000, "failures in a row that take a web host out until it has been good for a while; 0 = only health checks do"),
		choiceKnob("log.requests", "failed", "which requests web and balancer nodes log, with their ids", "failed", "all", "none"),
	}
}

func intKnob(name string, def, low, high int, doc string) Knob {
	return Knob{Name: name, Default: strconv.Itoa(def), Range: fmt.Sprintf("%d..%d", low, high), Doc: doc, check: func(v string) error {
		if n, err := strconv.Atoi(v); err != nil || n < low || n > high {
			return fmt.Errorf("want a whole number from %d to %d", low, high)
		}
		return nil
	}}
}

func floatKnob(name string, def, low, high float64, doc string) Knob {
	text := func(f float64) string { return strconv.FormatFloat(f, 'g', -1, 64) }
	return Knob{Name: name, Default: text(def), Range: text(low) + ".." + text(high), Doc: doc, check: func(v string) error {
		// The comparison is written so that NaN fails it.
		if f, err := strconv.ParseFloat(v, 64); err != nil || !(f >= low && f <= high) {
			return fmt.Errorf("want a number from %s to %s", text(low), text(high))
		}
		return nil
	}}
}

// durationKnob is a time in Go's notation, from 0 on.
func durationKnob(name string, def, high time.Duration, doc string) Knob {
	return Knob{Name: name, Default: def.String(), Range: "0s.." + high.String(), Doc: doc, check: func(v string) error {
		if d, err := time.ParseDuration(v); err != nil || d < 0 || d > high {
			return fmt.Errorf("want a time from 0s to %v, for example 200ms", high)
		}
		return nil
	}}
}

// sizesKnob is a list of numbers, one for each host; the last one holds for the
// rest.
func sizesKnob(name, def string, low, high float64, doc string) Knob {
	one := floatKnob(name, low, low, high, doc)
	return Knob{Name: name, Default: def, Range: one.Range + ", ...", Doc: doc, check: func(v string) error {
		for _, part := range strings.Split(v, ",") {
			if err := one.check(part); err != nil {
				return fmt.Errorf("%w, or several with commas between them", err)
			}
		}
		return nil
	}}
}

// routesKnob is a list of routes in the form that ParseRoutes reads.
func routesKnob(name, doc string) Knob {
	return Knob{Name: name, Range: "CONDITION... -> HOST...; ...", Doc: doc, check: func(v string) error {
		_, err := ParseRoutes(v)
		return err
	}}
}

func choiceKnob(name, def, doc string, values ...string) Knob {
	return Knob{Name: name, Default: def, Range: strings.Join(values, "|"), Doc: doc, check: func(v string) error {
		if !slices.Contains(values, v) {
			return fmt.Errorf("want one of %s", strings.Join(values, ", "))
		}
		return nil
	}}
}

// ParseKnobs reads "name=value" settings. An unknown name, a value out of range
// or a name given twice is an error that says what is allowed.
func ParseKnobs(settings []string) (Knobs, error) {
	knobs := Knobs{}
	for _, s := range settings {
		name, value, found := strings.Cut(s, "=")
		if !found {
			return nil, fmt.Errorf("knob %q: want name=value, for example lb.policy=least_conn", s)
		}
		if _, twice := knobs[name]; twice {
			return nil, fmt.Errorf("knob %s is set twice", name)
		}
		knobs[name] = value
	}
	return knobs, knobs.Validate()
}

// Validate checks names and values.
func (k Knobs) Validate() error {
	known := map[string]Knob{}
	var names []string
	for _, knob := range Catalogue() {
		known[knob.Name] = knob
		names = append(names, knob.Name)
	}
	given := make([]string, 0, len(k))
	for name := range k {
		given = append(given, name)
	}
	sort.Strings(given)
	for _, name := range given {
		knob, found := known[name]
		if !found {
			return fmt.Errorf("unknown knob %q: want one of %s", name, strings.Join(names, ", "))
		}
		if err := knob.check(k[name]); err != nil {
			return fmt.Errorf("knob %s=%s: %w", name, k[name], err)
		}
	}
	return nil
}

// Complete returns a copy with defaults for what is not set.
func (k Knobs) Complete() Knobs {
	all := Knobs{}
	for _, knob := range Catalogue() {
		all[knob.Name] = knob.Default
	}
	for name, value := range k {
		all[name] = value
	}
	return all
}

// Int returns a whole-number knob. The knobs must have been validated and
// completed; anything else is a mistake in the program.
func (k Knobs) Int(name string) int {
	n, err := strconv.Atoi(k[name])
	if err != nil {
		panic("sut: knob " + name + " is not a validated whole number: " + err.Error())
	}
	return n
}

// Float returns a number knob, under the same condition as Int.
func (k Knobs) Float(name string) float64 {
	f, err := strconv.ParseFloat(k[name], 64)
	if err != nil {
		panic("sut: knob " + name + " is not a validated number: " + err.Error())
	}
	return f
}

// Duration returns a time knob, under the same condition as Int.
func (k Knobs) Duration(name string) time.Duration {
	d, err := time.ParseDuration(k[name])
	if err != nil {
		panic("sut: knob " + name + " is not a validated time: " + err.Error())
	}
	return d
}

// At returns the number that a list of sizes has for the i-th host, under the
// same condition as Int.
func (k Knobs) At(name string, i int) float64 {
	parts := strings.Split(k[name], ",")
	f, err := strconv.ParseFloat(parts[min(i, len(parts)-1)], 64)
	if err != nil {
		panic("sut: knob " + name + " is not a validated list of numbers: " + err.Error())
	}
	return f
}

// Bool returns a true-or-false knob.
func (k Knobs) Bool(name string) bool { return k[name] == "true" }
