package store

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"runtime"
	"sync"
	"testing"

	"github.com/stagebench/stagebench/sut/edge/rules"
)

func newStore(t testing.TB, bytes int64) *Store {
	t.Helper()
	s, err := New(Config{MaxBytes: bytes})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// put stores an entry outside of any fetch.
func put(s *Store, e *Entry) bool {
	ticket := s.Begin()
	defer s.End(ticket)
	return s.Put(ticket, e, false)
}

func entry(key string, bytes int, groups ...string) *Entry {
	return &Entry{
		Key: key, Status: http.StatusOK, Groups: groups, Body: make([]byte, bytes),
		Header: http.Header{"Content-Type": {"image/jpeg"}, "Etag": {`"` + key + `"`}, "Cache-Control": {"max-age=60"}},
	}
}

func has(s *Store, key string) bool {
	e, _ := s.Get(key, nil)
	return e != nil
}

// TestLeastRecentlyUsedIsEvicted: a used entry stays, an unused one goes, and its groups go with it.
func TestLeastRecentlyUsedIsEvicted(t *testing.T) {
	t.Parallel()
	s := newStore(t, 1<<20)
	put(s, entry("first", 200<<10, "g"))
	put(s, entry("second", 200<<10, "g"))
	for i := range 10 {
		if !has(s, "first") {
			t.Fatal("an entry that is used was evicted")
		}
		put(s, entry(fmt.Sprint(i), 200<<10, fmt.Sprint("g", i)))
	}
	if has(s, "second") {
		t.Error("an entry that is not used stays")
	}
	c := s.Contents()
	if c.Bytes > 1<<20 || c.Entries != 4 || c.Evicted != 8 || c.Stored != 12 {
		t.Errorf("contents %+v", c)
	}
	if len(s.groups) != 4 || len(s.groups["g"]) != 1 {
		t.Errorf("the index has %d groups", len(s.groups))
	}
}

// TestBudgetHolds: whatever is stored, the accounted memory stays within the budget, and everything is given back.
func TestBudgetHolds(t *testing.T) {
	t.Parallel()
	const budget = 1 << 20
	s := newStore(t, budget)
	random := rand.New(rand.NewPCG(1, 2))
	var reserved int64
	for range 20_000 {
		key := fmt.Sprint(random.IntN(500))
		switch random.IntN(6) {
		case 0:
			s.Purge([]string{key}, nil)
		case 1:
			s.Purge(nil, []string{"g" + key})
		case 2:
			if n := random.Int64N(100 << 10); s.Reserve(n) {
				reserved += n
			}
			if reserved > 300<<10 {
				s.Release(reserved)
				reserved = 0
			}
		default:
			e := entry(key, random.IntN(100<<10), "g"+key, "h"+fmt.Sprint(random.IntN(50)))
			e.Selecting = []rules.Field{{Name: "Foo", Value: fmt.Sprint(random.IntN(3)), Set: true}}
			put(s, e)
		}
		if c := s.Contents(); c.Bytes > budget {
			t.Fatalf("contents %+v", c)
		}
	}
	s.Release(reserved)
	var keys []string
	for i := range 500 {
		keys = append(keys, fmt.Sprint(i))
	}
	s.Purge(keys, nil)
	if c := s.Contents(); c.Bytes != 0 || c.Entries != 0 || len(s.groups) != 0 || len(s.resources) != 0 {
		t.Errorf("after everything was removed: %+v, %d groups, %d keys", c, len(s.groups), len(s.resources))
	}
	if s.recent.next != &s.recent {
		t.Error("the ring is not empty")
	}
}

// TestAccountedMemory: the accounted bytes are not less than what the heap grows by.
func TestAccountedMemory(t *testing.T) {
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	for _, body := range []int{10, 1000, 5000, 40_000} {
		s := newStore(t, 64<<20)
		before := heap()
		for i := range 1000 {
			e := entry(fmt.Sprintf("example.com/img/%d/thumb.jpg?v=%d", i, i), body, fmt.Sprint("photo-", i), "user-1")
			for j := range 8 {
				e.Header[fmt.Sprint("X-Field-", j)] = []string{fmt.Sprint("value ", i, j)}
			}
			put(s, e)
		}
		grown, accounted := heap()-before, s.Contents().Bytes
		if grown > accounted {
			t.Errorf("bodies of %d bytes: the heap grew by %d, accounted are %d", body, grown, accounted)
		}
		if accounted > 2*grown {
			t.Errorf("bodies of %d bytes: the heap grew by %d only, accounted are %d", body, grown, accounted)
		}
		runtime.KeepAlive(s)
	}
}

// TestVariants: entries of one key differ by their selecting fields, and their number is bounded.
func TestVariants(t *testing.T) {
	t.Parallel()
	s := newStore(t, 8<<20)
	variant := func(i int) *Entry {
		e := entry("key", 10)
		e.Selecting = []rules.Field{{Name: "Foo", Value: fmt.Sprint(i), Set: true}}
		return e
	}
	for i := range MaxVariants + 1 {
		put(s, variant(i))
	}
	replaced := variant(5)
	put(s, replaced)
	if c := s.Contents(); c.Entries != MaxVariants || c.Evicted != 1 {
		t.Errorf("contents %+v", c)
	}
	if e, known := s.Get("key", http.Header{"Foo": {"0"}}); e != nil || !known {
		t.Errorf("the first variant: %v, known: %v", e, known)
	}
	if e, _ := s.Get("key", http.Header{"Foo": {"5"}}); e != replaced {
		t.Error("a variant was not replaced")
	}
	if removed := s.Purge([]string{"key"}, nil); removed != MaxVariants {
		t.Errorf("a purge removed %d variants", removed)
	}
}

// TestTickets: a response is stored only if no purge of it came after its ticket.
func TestTickets(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name         string
		keys, groups []string
		want         bool
	}{
		{"its key", []string{"x", "key"}, nil, false},
		{"its group", nil, []string{"g"}, false},
		{"another key", []string{"other"}, []string{"other"}, true},
		{"too many purges to remember", make([]string, 1), nil, false},
	} {
		s := newStore(t, 1<<20)
		if test.name == "too many purges to remember" {
			for i := range maxPurges + 1 {
				test.keys = append(test.keys, fmt.Sprint(i))
			}
		}
		old := s.Begin()
		s.Purge(test.keys, test.groups)
		fresh := s.Begin()
		if got := s.Put(old, entry("key", 1, "g"), false); got != test.want {
			t.Errorf("%s: stored is %v", test.name, got)
		}
		if !s.Put(fresh, entry("key", 1, "g"), false) {
			t.Errorf("%s: a response that was requested afterwards is not stored", test.name)
		}
		s.End(old)
		s.End(fresh)
		if s.Current(old, "key", []string{"g"}) {
			t.Errorf("%s: a ticket of a fetch that is over is current, though there was a purge", test.name)
		}
		if len(s.purged) != 0 {
			t.Errorf("%s: %d purges are remembered without a fetch", test.name, len(s.purged))
		}
	}
}

// TestSeen: a key is known after its first use, and the memory does not grow.
func TestSeen(t *testing.T) {
	t.Parallel()
	s := newSeen(8 << 10)
	if s.bytes() > 8<<10 {
		t.Errorf("takes %d bytes", s.bytes())
	}
	wrong := 0
	for i := range 20 * s.capacity {
		key := fmt.Sprint("key ", i)
		if s.add(key) {
			wrong++
		}
		if !s.add(key) {
			t.Fatalf("%s was forgotten at once", key)
		}
	}
	if share := float64(wrong) / float64(20*s.capacity); share > 0.05 {
		t.Errorf("%.1f %% of the new keys count as seen", 100*share)
	}
	if s.add("key 0") {
		t.Error("a key is never forgotten")
	}
}

// TestConcurrentUse is for the race detector.
func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	s := newStore(t, 256<<10)
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for j := range 500 {
				key := fmt.Sprint(j % 50)
				if e, _ := s.Get(key, nil); e != nil && e.Key != key {
					t.Errorf("got %s for %s", e.Key, key)
				}
				ticket := s.Begin()
				if j%7 == i {
					s.Purge([]string{key}, []string{"g"})
				}
				s.Put(ticket, entry(key, 1000, "g"), false)
				s.End(ticket)
			}
		})
	}
	all.Wait()
	if c := s.Contents(); c.Bytes > 256<<10 {
		t.Errorf("contents %+v", c)
	}
}

func BenchmarkGet(b *testing.B) {
	s := newStore(b, 64<<20)
	keys := make([]string, 1000)
	for i := range keys {
		keys[i] = fmt.Sprintf("/img/%d/thumb.jpg?v=1", i)
		put(s, entry(keys[i], 5000))
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			if !has(s, keys[i%len(keys)]) {
				b.Fatal("miss")
			}
		}
	})
}
