package edgetest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// site is the authority in the cases with EdgeConfig.Site.
const site = "photos.example:8080"

// settingSuites are the rules of sut.EdgeConfig and of sut.EdgeServer. Each has an edge of its own.
func settingSuites() []suite {
	return []suite{
		{name: "ttl", adjust: func(c *sut.EdgeConfig) { c.TTL = time.Hour }, cases: ttlCases()},
		{name: "second_hit", adjust: func(c *sut.EdgeConfig) { c.Admit = sut.AdmitSecondHit }, cases: secondHit()},
		{name: "site", adjust: func(c *sut.EdgeConfig) { c.Site = site }, cases: siteCases()},
		{name: "hosts", cases: hostCases()},
		{name: "figures", probes: []probe{setting("figures", Required, figures)}},
		{
			name: "small", adjust: func(c *sut.EdgeConfig) { c.MaxBytes = smallMemory },
			probes: []probe{setting("memory-bound", Required, memoryBound)},
		},
		{name: "origins", probes: []probe{
			setting("origins-refused", Required, originsRefused),
			setting("origins-in-turn", Required, originsInTurn),
			setting("origins-under-load", Required, originsUnderLoad),
			setting("origins-down", Optimal, originDown),
		}},
	}
}

func setting(id string, severity Severity, run func(*bench) error) probe {
	return probe{Case{ID: id, Group: "settings", Severity: severity, Section: "sut.EdgeServer"}, run}
}

// ttlCases are for an edge whose TTL is an hour.
func ttlCases() []Case {
	all := cases("ttl", "sut.EdgeConfig", "ttl-replaces", []rule{
		{"ttl-replaces", Required, Hit, "Cache-Control: max-age=3600|Date: @0|Expires: @-10"},
		{"ttl-no-store", Required, Miss, "Cache-Control: no-store"},
		{"ttl-private", Required, Miss, "Cache-Control: private, max-age=60"},
		{"ttl-no-cache", Required, Miss, "Cache-Control: no-cache, max-age=60"},
		{"ttl-set-cookie", Required, Miss, "Cache-Control: max-age=60|Set-Cookie: a=b"},
		{"ttl-vary-star", Required, Miss, "Cache-Control: max-age=60|Vary: *"},
	})
	return append(all, in("ttl", "sut.EdgeConfig",
		Case{ID: "ttl-longer", Severity: Required, Steps: []Step{
			{Answer: answer(brief), Want: Miss},
			{Wait: 1, Want: Hit, Fields: []string{brief}},
		}},
		Case{ID: "ttl-longer-expires", Severity: Required, Steps: []Step{
			{Answer: answer("Date: @0|Expires: @1"), Want: Miss}, {Wait: 1, Want: Hit},
		}},
	)...)
}

// secondHit are the cases of an edge that stores at the second request.
func secondHit() []Case {
	return in("second-hit", "sut.AdmitSecondHit",
		Case{ID: "second-hit", Severity: Required, Steps: []Step{
			{Answer: answer(fresh), Want: Miss}, {Want: Miss}, {Want: Hit}, {Want: Hit},
		}},
		Case{ID: "second-hit-by-key", Severity: Required, Steps: []Step{
			{At: "?a", Answer: answer(fresh), Want: Miss}, {At: "?b", Want: Miss}, {At: "?a", Want: Miss}, {At: "?a", Want: Hit},
		}},
		Case{ID: "second-hit-no-store", Severity: Required, Steps: []Step{
			{Answer: answer("Cache-Control: no-store"), Want: Miss}, {Want: Miss}, {Want: Miss},
		}},
	)
}

func siteCases() []Case {
	return in("site", "sut.EdgeConfig",
		Case{ID: "site-host", Severity: Required, Steps: []Step{
			{Answer: answer(""), Want: Miss, Forwarded: []string{"Host: " + site}},
			{Send: []string{"Host: other.example"}, Want: Miss, Forwarded: []string{"Host: " + site}},
		}},
		Case{ID: "site-key", Severity: Required, Steps: []Step{
			{Send: []string{"Host: a.example"}, Answer: answer(fresh), Want: Miss},
			{Send: []string{"Host: b.example"}, Want: Hit},
		}},
	)
}

// hostCases are for an edge without a site.
func hostCases() []Case {
	return in("host", "sut.EdgeConfig",
		Case{ID: "host-forwarded", Severity: Required, Steps: []Step{
			{Send: []string{"Host: a.example:81"}, Answer: answer(""), Want: Miss, Forwarded: []string{"Host: a.example:81"}},
		}},
		Case{ID: "host-key", Severity: Required, Steps: []Step{
			{Send: []string{"Host: a.example"}, Answer: answer(fresh), Want: Miss},
			{Send: []string{"Host: b.example"}, Want: Miss},
			{Send: []string{"Host: a.example"}, Want: Hit},
		}},
	)
}

// figures: the counters are those of the requests. A counter of -1 is unknown.
func figures(b *bench) error {
	before, err := b.edge.Figures(b.ctx)
	if err != nil {
		return err
	}
	stored, passed := b.page("/figures/stored"), "/figures/passed"
	b.origin.handle(passed, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		_, _ = w.Write(make([]byte, 1000))
	})
	for range 10 {
		if err := errors.Join(b.fetch(stored, 1, ""), ok(b.client.get(b.ctx, passed))); err != nil {
			return err
		}
	}
	want := sut.EdgeFigures{Requests: 20, Hits: 9, Fetched: 11, FetchedBytes: 10_000, Stored: 1, Entries: 1, Bytes: 1}
	var problem error
	for deadline := time.Now().Add(timeout); time.Now().Before(deadline); { // some engines count a little later
		now, err := b.edge.Figures(b.ctx)
		if err != nil {
			return err
		}
		if problem = compareFigures(before, now, want); problem == nil {
			return nil
		}
		if !pause(b.ctx, 100*time.Millisecond) {
			break
		}
	}
	return problem
}

// compareFigures returns an error if the growth from before to now is not what is wanted. The bytes, and what is
// stored, are lower bounds.
func compareFigures(before, now, want sut.EdgeFigures) error {
	for _, f := range []struct {
		name              string
		before, now, want int64
		least             bool
	}{
		{"requests", before.Requests, now.Requests, want.Requests, false},
		{"hits", before.Hits, now.Hits, want.Hits, false},
		{"fetched", before.Fetched, now.Fetched, want.Fetched, false},
		{"fetched bytes", before.FetchedBytes, now.FetchedBytes, want.FetchedBytes, true},
		{"stored", before.Stored, now.Stored, want.Stored, true},
		{"entries", before.Entries, now.Entries, want.Entries, true},
		{"bytes", before.Bytes, now.Bytes, want.Bytes, true},
	} {
		grown := f.now - f.before
		if f.now != -1 && (grown < f.want || grown > f.want && !f.least) {
			return fmt.Errorf("%s: grew from %d to %d, want by %d", f.name, f.before, f.now, f.want)
		}
	}
	if now.MaxBytes <= 0 {
		return fmt.Errorf("memory budget %d, want more than 0", now.MaxBytes)
	}
	return nil
}

// smallMemory is the budget of an edge that must evict.
const smallMemory = 4 << 20

// memoryBound: entries are evicted, and those that are used stay.
func memoryBound(b *bench) error {
	const size, number = 64 << 10, 200 // three times the budget
	seen := newArrivals()
	body := make([]byte, size)
	for i := range number {
		b.origin.handle(fmt.Sprintf("/memory/%d", i), func(w http.ResponseWriter, _ *http.Request) {
			seen.add(1)
			w.Header().Set("Cache-Control", "max-age=3600")
			_, _ = w.Write(body)
		})
	}
	for i := range number {
		if err := ok(b.client.get(b.ctx, fmt.Sprintf("/memory/%d", i))); err != nil {
			return err
		}
	}
	var f sut.EdgeFigures
	for deadline := time.Now().Add(timeout); time.Now().Before(deadline); { // some engines evict a little later
		var err error
		if f, err = b.edge.Figures(b.ctx); err != nil {
			return err
		}
		if f.Bytes <= smallMemory+smallMemory/8 || !pause(b.ctx, 100*time.Millisecond) {
			break
		}
	}
	b.t.Logf("memory: %d bytes of %d in %d entries, %d evicted", f.Bytes, f.MaxBytes, f.Entries, f.Evicted)
	if f.Bytes > smallMemory+smallMemory/8 {
		return fmt.Errorf("%d bytes are stored, the budget is %d", f.Bytes, smallMemory)
	}
	before, _, _ := seen.counts()
	if err := ok(b.client.get(b.ctx, "/memory/0")); err != nil { // the oldest
		return err
	}
	if n, _, _ := seen.counts(); n != before+1 {
		return errors.New("the oldest of too many entries is still stored")
	}
	return nil
}

// originsRefused: invalid origins change nothing.
func originsRefused(b *bench) error {
	for _, peers := range [][]sut.Peer{nil, {{Node: "web-1", Address: "nowhere"}}} {
		if err := b.edge.SetOrigins(b.ctx, peers); !errors.Is(err, sut.ErrWiring) {
			return fmt.Errorf("origins %v: error %v, want one that wraps sut.ErrWiring", peers, err)
		}
	}
	p := b.page("/origins/refused")
	return b.fetch(p, 1, "")
}

// second starts a second origin that answers all paths below /origins/ with its name, not to be stored.
func (b *bench) second(paths ...string) *origin {
	other := newOrigin(b.t)
	for _, path := range paths {
		for name, o := range map[string]*origin{"first": b.origin, "second": other} {
			o.handle(path, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Cache-Control", "no-store")
				_, _ = w.Write([]byte(name))
			})
		}
	}
	return other
}

// originsInTurn: requests go to each origin in turn. A few more or less are possible, because an engine may have more
// than one worker with a turn of its own.
func originsInTurn(b *bench) error {
	const path, requests = "/origins/turn", 40
	other := b.second(path)
	if err := b.edge.SetOrigins(b.ctx, []sut.Peer{b.origin.peer("web-1"), other.peer("web-2")}); err != nil {
		return err
	}
	got := map[string]int{}
	for range requests {
		res, err := b.client.get(b.ctx, path)
		if err := ok(res, err); err != nil {
			return err
		}
		got[res.body]++
	}
	if got["first"] < requests/3 || got["second"] < requests/3 {
		return fmt.Errorf("requests by origin: %v, want about %d each", got, requests/2)
	}
	return nil
}

// originsUnderLoad changes the origins while clients send requests. None may fail, and a removed origin gets none.
func originsUnderLoad(b *bench) error {
	const path, clients, changes = "/origins/load", 4, 6
	other := b.second(path)
	if err := b.edge.SetOrigins(b.ctx, []sut.Peer{b.origin.peer("web-1")}); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(b.ctx)
	var load sync.WaitGroup
	failures, sent := make([]error, clients), make([]int, clients)
	for i := range clients {
		load.Go(func() {
			for ctx.Err() == nil && failures[i] == nil {
				failures[i] = ok(b.client.get(b.ctx, path))
				sent[i]++
			}
		})
	}
	var took time.Duration
	change := func(n int) error {
		want, o := "first", b.origin
		if n%2 == 0 {
			want, o = "second", other
		}
		begun := time.Now()
		if err := b.edge.SetOrigins(b.ctx, []sut.Peer{o.peer("web-" + itoa(n))}); err != nil {
			return err
		}
		took += time.Since(begun)
		for range 5 {
			if err := wantBody(want)(b.client.get(b.ctx, path)); err != nil {
				return fmt.Errorf("after change %d: %w", n+1, err)
			}
		}
		return nil
	}
	var err error
	for n := 0; n < changes && err == nil; n++ {
		err = change(n)
	}
	stop()
	load.Wait()
	b.t.Logf("origins: %d changes in %v, requests by client: %v", changes, took, sent)
	return errors.Join(append(failures, err)...)
}

// originDown: when an origin does not accept connections, another one is asked.
func originDown(b *bench) error {
	const path = "/origins/down"
	down := b.second(path)
	peer := down.peer("web-2")
	down.server.Close()
	if err := b.edge.SetOrigins(b.ctx, []sut.Peer{peer, b.origin.peer("web-1")}); err != nil {
		return err
	}
	for range 10 {
		if err := wantBody("first")(b.client.get(b.ctx, path)); err != nil {
			return err
		}
	}
	return nil
}
