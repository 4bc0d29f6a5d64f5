package resp

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"
)

// fakeClock is a clock that moves only by advance.
type fakeClock struct{ now time.Time }

func newFakeClock() *fakeClock { return &fakeClock{time.UnixMilli(1_000_000)} }

func (c *fakeClock) Now() time.Time          { return c.now }
func (c *fakeClock) advance(d time.Duration) { c.now = c.now.Add(d) }

func open(t testing.TB, budget int64, evict Evict, shards int, now func() time.Time) *store {
	t.Helper()
	s, err := newStore(budget, evict, shards, now)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// audit checks the accounting of a shard against its entries.
func (s *shard) audit() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var used int64
	expiring := 0
	for key, e := range s.entries {
		used += size(len(key), e.value)
		if e.expires != 0 {
			if expiring++; int(e.expiringIndex) >= len(s.expiring) || s.expiring[e.expiringIndex] != e {
				return fmt.Errorf("%q: expiringIndex is wrong", key)
			}
		}
	}
	if used != s.used || expiring != len(s.expiring) || s.budget > 0 && used > s.budget {
		return fmt.Errorf("%d bytes and %d expiring entries are counted as %d and %d; the budget is %d bytes",
			used, expiring, s.used, len(s.expiring), s.budget)
	}
	return nil
}

// After each random operation, no shard exceeds its budget, and its accounting is exact.
func TestBudgetHolds(t *testing.T) {
	t.Parallel()
	for _, evict := range []Evict{LRU, LFU, FIFO, None} {
		t.Run(string(evict), func(t *testing.T) {
			t.Parallel()
			const seed = 11
			random := rand.New(rand.NewPCG(seed, seed))
			clock := newFakeClock()
			s := open(t, 64<<10, evict, 4, clock.Now)
			model := map[string]string{} // the last stored values; some may be evicted
			for step := range 20_000 {
				key := fmt.Append(nil, "k", random.IntN(400))
				sh, now := s.shardOf(key), s.clock()
				switch random.IntN(12) {
				case 0:
					sh.del(key, now)
					delete(model, string(key))
				case 1:
					sh.expire(key, now+random.Int64N(2000)-10, now)
				case 2:
					clock.advance(time.Duration(random.IntN(200)) * time.Millisecond)
				case 3:
					s.sweep()
				case 4:
					if random.IntN(500) == 0 {
						s.flush()
					} else if random.IntN(20) == 0 {
						budget := int64(32<<10 + random.IntN(64<<10))
						if evict != None { // without eviction a store cannot shrink
							s.setBudget(budget)
						}
					}
				case 5, 6, 7:
					value, found := sh.get(key, now)
					if want, stored := model[string(key)]; found && (!stored || want != string(value)) {
						t.Fatalf("seed %d, step %d: the value of %s is not the last one stored", seed, step, key)
					}
				default:
					value := bytes.Repeat([]byte{byte(step)}, random.IntN(1<<random.IntN(16)))
					expires := int64(0)
					if random.IntN(3) == 0 {
						expires = now + 1 + random.Int64N(2000)
					}
					_, err := sh.set(key, value, expires, always, now)
					if err == nil {
						model[string(key)] = string(value)
					} else if evict != None {
						delete(model, string(key)) // a value that does not fit removes the old one
					}
				}
				if err := sh.audit(); err != nil {
					t.Fatalf("seed %d, step %d: %v", seed, step, err)
				}
			}
			for _, sh := range s.shards {
				if err := sh.audit(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// A value that is too large removes the old value of its key, and no other entry.
func TestTooLarge(t *testing.T) {
	t.Parallel()
	s := open(t, 10_000, LRU, 1, newFakeClock().Now)
	sh := s.shards[0]
	for _, key := range []string{"a", "b"} {
		if _, err := sh.set([]byte(key), []byte("old"), 0, always, 1); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := sh.set([]byte("a"), make([]byte, 20_000), 0, always, 1); err == nil {
		t.Error("20,000 bytes fit into 10,000")
	}
	if _, found := sh.get([]byte("a"), 1); found {
		t.Error("the old value can still be read")
	}
	if _, found := sh.get([]byte("b"), 1); !found {
		t.Error("another key was evicted")
	}
}

func TestExpiry(t *testing.T) {
	t.Parallel()
	clock := newFakeClock()
	s := open(t, 0, LRU, 1, clock.Now)
	sh := s.shards[0]
	set := func(key string, ttl int64) {
		if _, err := sh.set([]byte(key), []byte("1"), s.clock()+ttl, always, s.clock()); err != nil {
			t.Fatal(err)
		}
	}
	has := func(key string) bool { _, found := sh.get([]byte(key), s.clock()); return found }
	set("a", 100)
	clock.advance(100 * time.Millisecond)
	if !has("a") {
		t.Error("the entry expired too early")
	}
	clock.advance(time.Millisecond)
	if has("a") {
		t.Error("the entry did not expire")
	}
	if got := s.stats(); got.Expired != 1 || got.Entries != 0 || got.Bytes != 0 || got.Evicted != 0 {
		t.Errorf("%+v", got)
	}
	// add keeps the expiry of a key; set replaces it.
	set("n", 100)
	if _, err := sh.add([]byte("n"), 1, s.clock()); err != nil {
		t.Fatal(err)
	}
	set("m", 100)
	if _, err := sh.set([]byte("m"), []byte("1"), 0, always, s.clock()); err != nil {
		t.Fatal(err)
	}
	clock.advance(101 * time.Millisecond)
	if has("n") || !has("m") {
		t.Error("add changed the expiry, or set kept the old one")
	}
	// For the conditions of set, an expired entry does not exist.
	set("x", 1)
	clock.advance(2 * time.Millisecond)
	if stored, _ := sh.set([]byte("x"), nil, 0, ifExists, s.clock()); stored {
		t.Error("an expired entry was replaced")
	}
	if stored, _ := sh.set([]byte("x"), nil, 0, ifMissing, s.clock()); !stored {
		t.Error("an expired entry prevented a new one")
	}
}

// A victim that has expired is counted as expired and not as evicted.
func TestExpiredVictims(t *testing.T) {
	t.Parallel()
	clock := newFakeClock()
	s := open(t, 100_000, LRU, 1, clock.Now)
	sh := s.shards[0]
	fill := func(from, to int, ttl int64) {
		for i := from; i < to; i++ {
			if _, err := sh.set(fmt.Append(nil, i), make([]byte, 1_000), s.clock()+ttl, always, s.clock()); err != nil {
				t.Fatal(err)
			}
		}
	}
	fill(0, 1_000, 10)
	before := s.stats()
	if before.Evicted == 0 || before.Expired != 0 {
		t.Fatalf("%+v", before)
	}
	clock.advance(11 * time.Millisecond)
	fill(1_000, 1_010, 1_000)
	if after := s.stats(); after.Evicted != before.Evicted || after.Expired == 0 {
		t.Errorf("before %+v, after %+v", before, after)
	}
}

// The sweep removes most expired entries without any request, and no other entries.
func TestSweep(t *testing.T) {
	t.Parallel()
	clock := newFakeClock()
	s := open(t, 0, LRU, 4, clock.Now)
	for i := range 10_000 {
		key, expires := fmt.Append(nil, i), int64(0)
		switch i % 4 {
		case 1:
			expires = s.clock() + 3_600_000
		case 2, 3:
			expires = s.clock() + 50
		}
		if _, err := s.shardOf(key).set(key, key, expires, always, s.clock()); err != nil {
			t.Fatal(err)
		}
	}
	s.sweep()
	if got := s.stats(); got.Expired != 0 || got.Entries != 10_000 || got.Expiring != 7500 {
		t.Errorf("before the entries expired: %+v", got)
	}
	clock.advance(time.Second)
	for range 100 {
		s.sweep()
	}
	// The sweep stops when a quarter or less of a sample has expired, so some are left.
	if got := s.stats(); got.Expired < 4000 || got.Entries < 5000 || got.Entries+got.Expired != 10_000 {
		t.Errorf("after the entries expired: %+v", got)
	}
}

// The counted bytes differ by at most 10 % from the bytes that the runtime allocates.
func TestAccounting(t *testing.T) {
	for _, valueBytes := range []int{0, 100, 1000, 10_000} {
		n := 20_000_000 / (valueBytes + 100)
		before := allocated()
		s := open(t, 0, LRU, 16, newFakeClock().Now)
		value := make([]byte, valueBytes)
		for i := range n {
			key := fmt.Appendf(nil, "photo:%08d", i)
			if _, err := s.shardOf(key).set(key, value, 0, always, 1); err != nil {
				t.Fatal(err)
			}
		}
		allocatedBytes, counted := float64(allocated()-before), float64(s.stats().Bytes)
		runtime.KeepAlive(s)
		t.Logf("values of %d bytes: %.0f bytes per entry, counted as %.0f",
			valueBytes, allocatedBytes/float64(n), counted/float64(n))
		if allocatedBytes > 1.1*counted || allocatedBytes < 0.9*counted {
			t.Errorf("%.0f bytes are counted as %.0f", allocatedBytes, counted)
		}
	}
}

func allocated() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestSharesAddUp(t *testing.T) {
	t.Parallel()
	for _, budget := range []int64{16, 17, 1 << 20, 1<<40 + 7} {
		for _, shards := range []int{1, 2, 16} {
			var sum int64
			for i := range shards {
				sum += share(budget, shards, i)
			}
			if sum != budget {
				t.Errorf("%d in %d shards: %d", budget, shards, sum)
			}
		}
	}
}
