package ladder

import (
	"errors"
	"fmt"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// Cache is the settings of the cache hosts.
type Cache struct {
	Hosts         int     // 0 before stage cache
	CPU           float64 // size of each host in units
	Engine        sut.Engine
	Read          ReadStrategy
	Write         WriteStrategy
	FlushInterval time.Duration // time between two batches with WriteBack
	MemoryMB      float64       // memory budget of each host in MiB
	Evict         string        // "lru", "lfu" or "fifo"
	TTL           time.Duration // time to live of a photo or a user
	FeedTTL       time.Duration // time to live of a feed; 0 = feeds are not cached
	SingleFlight  bool          // concurrent misses of a key share one database read
}

// ReadStrategy selects the node that loads an entry after a cache miss.
type ReadStrategy string

// With LookAside the web host loads the entry, with ReadThrough the cache host.
const (
	LookAside   ReadStrategy = "look_aside"
	ReadThrough ReadStrategy = "read_through"
)

// WriteStrategy selects the node that writes a photo to the database.
type WriteStrategy string

// With WriteAround the web host writes to the database and removes the photo from the
// cache. With WriteThrough the cache host writes to the database and caches the photo.
// With WriteBack the cache host acknowledges likes, comments and renames at once and
// writes them later.
const (
	WriteAround  WriteStrategy = "write_around"
	WriteThrough WriteStrategy = "write_through"
	WriteBack    WriteStrategy = "write_back"
)

// CacheOf returns the settings of the cache hosts.
func CacheOf(k sut.Knobs) Cache { return settings[Cache](k) }

// Bytes is the memory budget of each host.
func (s Cache) Bytes() int64 { return int64(s.MemoryMB * (1 << 20)) }

// UsesDatabase reports whether the cache hosts load or write records themselves.
func (s Cache) UsesDatabase() bool { return s.Read == ReadThrough || s.Write != WriteAround }

// WritesBack reports whether cache hosts acknowledge writes before they write them to the
// database.
func (s Cache) WritesBack() bool { return s.Hosts > 0 && s.Write == WriteBack }

func (s *Cache) knobs() []Knob {
	return []Knob{
		integer("cache.hosts", &s.Hosts, 1, 0, 16,
			"cache hosts, from stage cache on; 0 = no cache; consistent hashing spreads the keys over the hosts"),
		number("cache.cpu", &s.CPU, 1, 0.5, 32, "size of each cache host in units"),
		engine(sut.Cache, &s.Engine, cacheEngines(),
			"implementation of the cache; memcached counts times to live in whole seconds"),
		choice("cache.read", &s.Read, LookAside, "which host loads an entry after a miss: look_aside = the web host, "+
			"which then stores it in the cache; read_through = the cache host "+
			"(many texts call look-aside read-through)", ReadThrough),
		choice("cache.write", &s.Write, WriteAround, "how a photo is written: write_around = the web host writes it to the "+
			"database and removes it from the cache; write_through = the cache host writes it to the database and caches it; "+
			"write_back = the cache host acknowledges likes, comments and renames at once, writes them later "+
			"in batches, and always reads from the primary, regardless of db.read_preference", WriteThrough, WriteBack),
		duration("cache.flush_interval", &s.FlushInterval, 500*time.Millisecond, time.Minute, "with write_back: "+
			"time between two batches; a cache host that dies loses the writes of about this time, "+
			"and more while the database is slow or down"),
		number("cache.memory_mb", &s.MemoryMB, 64, 0.1, 100_000, "memory budget of each cache host in MiB, for keys, "+
			"values and overhead; redis needs at least 2, because it counts its own structures; "+
			"memcached takes whole numbers only"),
		choice("cache.evict", &s.Evict, "lru", "which entry is evicted when memory is full; redis samples entries, and "+
			"approximates fifo by volatile-ttl; memcached has lru only, separately for each class of entry sizes",
			"lfu", "fifo"),
		duration("cache.ttl", &s.TTL, time.Minute, time.Hour,
			"time to live of a photo or a user in the cache; a write to it removes or updates it earlier"),
		duration("cache.feed_ttl", &s.FeedTTL, 2*time.Second, time.Hour,
			"time to live of a feed in the cache; writes do not remove a feed; 0s = feeds are not cached"),
		truth("cache.single_flight", &s.SingleFlight, true, "concurrent requests that miss the same key share one "+
			"database read: on each web host, or with read_through on the cache host"),
	}
}

func cacheEngines() []EngineInfo {
	return []EngineInfo{{Name: sut.RESP}, {Name: sut.Redis, Native: true}, {Name: sut.Memcached, Native: true}}
}

func cacheTier() Tier {
	return Tier{
		Role: sut.Cache, From: sut.Caches, Engines: cacheEngines(), Knobs: new(Cache).knobs(),
		Calls: func(_ sut.Stage, k sut.Knobs) []sut.Role {
			if CacheOf(k).UsesDatabase() {
				return []sut.Role{sut.DB}
			}
			return nil
		},
		Scaling: []Scaling{{
			Name: "cache", Knob: "cache.hosts", Sharded: true,
			Keys: "keys", Moved: "stagebench_cache_node_moved_total", Held: "stagebench_cache_node_entries",
		}},
		Figures: []Figure{
			{
				Name: "cache_hits", Metric: `stagebench_cache_reads_total{result="hit"}`,
				From: []sut.Role{sut.Web}, Kind: Counter, Doc: "keys that web hosts found in the cache tier",
			},
			{
				Name: "cache_misses", Metric: `stagebench_cache_reads_total{result="miss"}`,
				From: []sut.Role{sut.Web}, Kind: Counter, Doc: "keys that web hosts missed in the cache tier",
			},
			{
				Name: "cache_evictions", Metric: "stagebench_cache_node_evictions_total",
				From: []sut.Role{sut.Cache}, Kind: Counter, Title: "cache\nevictions",
				Doc: "evictions: entries that were removed because memory was full",
			},
		},
		check: checkCache, place: placeCache,
	}
}

func checkCache(stage sut.Stage, k sut.Knobs) error {
	s := CacheOf(k)
	memcached := s.Engine == sut.Memcached
	switch {
	case before(stage, sut.Caches):
		k["cache.hosts"] = "0"
	case s.TTL == 0:
		return errors.New("cache.ttl=0s: want more than 0s; only cache.feed_ttl may be 0s")
	case s.Write == WriteBack && s.FlushInterval == 0:
		return errors.New("cache.flush_interval=0s: want more than 0s, " +
			"or cache.write=write_through to write without delay")
	case memcached && s.Evict != "lru":
		return fmt.Errorf("cache.evict=%s needs cache.engine=resp or redis: memcached has lru only", s.Evict)
	case memcached && s.MemoryMB != float64(int64(s.MemoryMB)):
		return fmt.Errorf("cache.memory_mb=%s needs cache.engine=resp or redis: memcached takes whole numbers",
			k["cache.memory_mb"])
	case s.Engine == sut.Redis && s.MemoryMB < 2:
		return fmt.Errorf("cache.memory_mb=%s needs cache.engine=resp: redis uses 1 MiB for its own structures, "+
			"so it needs 2 or more", k["cache.memory_mb"])
	}
	return nil
}

func placeCache(p *plan) error {
	s := CacheOf(p.knobs)
	for i := range s.Hosts {
		name := numbered(p.role, i)
		p.node(sut.Node{Name: name, Host: p.host(name, s.CPU), Engine: s.Engine})
		// The Go runtime collects a heap when it has doubled, and allocators round up. A
		// full embedded node takes 2.6 times its budget, a full Redis 1.1 times.
		p.memory(3 * s.Bytes())
	}
	return nil
}
