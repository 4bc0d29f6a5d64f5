package edgetest

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/stagebench/stagebench/sut"
)

// purgeProbes are the rules of sut.EdgeServer.Purge.
func purgeProbes() []probe {
	named := func(id, section string, run func(*bench) error) probe {
		return probe{Case{ID: "purge-" + id, Group: "purge", Severity: Required, Section: section}, run}
	}
	const purge, groups = "sut.Purge", "RFC 9875, 2"
	return []probe{
		named("url", purge, purgeURL),
		named("url-query", purge, purgeQuery),
		named("url-variants", purge, purgeVariants),
		named("url-unknown", purge, func(b *bench) error {
			return b.edge.Purge(b.ctx, sut.Purge{URLs: []string{"/purge/never-seen"}})
		}),
		named("group", groups, purgeGroup),
		named("group-exact", groups, purgeGroupExact),
		named("fill", purge, purgeFill),
		named("group-fill", groups, purgeGroupFill),
	}
}

// page is a URL whose origin counts requests and answers with a lifetime of an hour.
type page struct {
	path string
	seen *arrivals
}

// page makes a page whose responses also have the given fields.
func (b *bench) page(path string, fields ...string) page {
	p := page{path: path, seen: newArrivals()}
	b.origin.handle(path, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=3600")
		for _, line := range fields {
			name, value := field(line)
			w.Header().Add(name, value)
		}
		_, _ = fmt.Fprintf(w, "response %d", p.seen.add(1))
	})
	return p
}

// fetch requests a page and checks how many requests its origin has had then.
func (b *bench) fetch(p page, want int, suffix string, fields ...string) error {
	if err := ok(b.client.get(b.ctx, p.path+suffix, fields...)); err != nil {
		return fmt.Errorf("%s: %w", p.path, err)
	}
	if n, _, _ := p.seen.counts(); n != want {
		return fmt.Errorf("%s: %d requests have reached the origin, want %d", p.path, n, want)
	}
	return nil
}

// steps runs steps until the first error.
func steps(list ...func() error) error {
	for i, step := range list {
		if err := step(); err != nil {
			return fmt.Errorf("step %d: %w", i+1, err)
		}
	}
	return nil
}

func (b *bench) fetches(p page, want int, fields ...string) func() error {
	return func() error { return b.fetch(p, want, "", fields...) }
}

func (b *bench) purges(p sut.Purge) func() error {
	return func() error { return b.edge.Purge(b.ctx, p) }
}

func purgeURL(b *bench) error {
	one, other := b.page("/purge/one"), b.page("/purge/one/more")
	return steps(
		b.fetches(one, 1), b.fetches(one, 1), b.fetches(other, 1),
		b.purges(sut.Purge{URLs: []string{one.path}}),
		b.fetches(one, 2), b.fetches(one, 2), b.fetches(other, 1),
	)
}

func purgeQuery(b *bench) error {
	p := b.page("/purge/query")
	at := func(suffix string, want int) func() error {
		return func() error { return b.fetch(p, want, suffix) }
	}
	return steps(
		at("?v=1", 1), at("?v=2", 2),
		b.purges(sut.Purge{URLs: []string{p.path + "?v=1"}}),
		at("?v=2", 2), at("?v=1", 3), at("?v=1", 3),
	)
}

func purgeVariants(b *bench) error {
	p := b.page("/purge/variants", "Vary: Accept")
	return steps(
		b.fetches(p, 1, "Accept: image/webp"), b.fetches(p, 2, "Accept: image/png"), b.fetches(p, 2, "Accept: image/webp"),
		b.purges(sut.Purge{URLs: []string{p.path}}),
		b.fetches(p, 3, "Accept: image/webp"), b.fetches(p, 4, "Accept: image/png"),
	)
}

func purgeGroup(b *bench) error {
	one := b.page("/purge/group/1", `Cache-Groups: "photo-17", "user-3"`)
	two := b.page("/purge/group/2", `Cache-Groups: "user-3"`)
	lines := b.page("/purge/group/3", `Cache-Groups: "photo-19"`, `Cache-Groups: "user-3"`)
	other := b.page("/purge/group/4", `Cache-Groups: "user-4"`)
	none := b.page("/purge/group/5")
	return steps(
		b.fetches(one, 1), b.fetches(two, 1), b.fetches(lines, 1), b.fetches(other, 1), b.fetches(none, 1),
		b.purges(sut.Purge{Groups: []string{"user-3"}}),
		b.fetches(one, 2), b.fetches(two, 2), b.fetches(lines, 2), b.fetches(other, 1), b.fetches(none, 1),
		b.purges(sut.Purge{Groups: []string{"user-4"}, URLs: []string{none.path}}),
		b.fetches(one, 2), b.fetches(other, 2), b.fetches(none, 2),
	)
}

// purgeGroupExact: names of groups are compared byte for byte, and a part of a name is no name.
func purgeGroupExact(b *bench) error {
	long := b.page("/purge/exact/1", `Cache-Groups: "exact-17"`)
	upper := b.page("/purge/exact/2", `Cache-Groups: "Exact-1"`)
	dotted := b.page("/purge/exact/3", `Cache-Groups: "exact.1"`)
	return steps(
		b.fetches(long, 1), b.fetches(upper, 1), b.fetches(dotted, 1),
		b.purges(sut.Purge{Groups: []string{"exact-1"}}),
		b.fetches(long, 1), b.fetches(upper, 1), b.fetches(dotted, 1),
		b.purges(sut.Purge{Groups: []string{"exact.1"}}),
		b.fetches(long, 1), b.fetches(upper, 1), b.fetches(dotted, 2),
	)
}

func purgeFill(b *bench) error {
	const path = "/purge/fill"
	return b.purgeDuringFill(path, sut.Purge{URLs: []string{path}})
}

func purgeGroupFill(b *bench) error {
	return b.purgeDuringFill("/purge/group-fill", sut.Purge{Groups: []string{"filling"}})
}

// purgeDuringFill: what the origin was asked for before a purge is not stored after it. The response may be as old as
// the request.
func (b *bench) purgeDuringFill(path string, p sut.Purge) error {
	seen, release := newArrivals(), make(chan struct{})
	b.origin.handle(path, func(w http.ResponseWriter, r *http.Request) {
		n := seen.add(1)
		if n == 1 {
			<-release
		}
		w.Header().Set("Cache-Control", "max-age=3600")
		w.Header().Set("Cache-Groups", `"filling"`)
		_, _ = fmt.Fprintf(w, "response %d", n)
	})
	filled := make(chan error, 1)
	go func() { filled <- wantBody("response 1")(b.client.get(b.ctx, path)) }()
	arrived := seen.await(1, timeout)
	err := b.edge.Purge(b.ctx, p)
	close(release)
	if err := errors.Join(err, <-filled); err != nil {
		return err
	}
	if !arrived {
		return errors.New("no request reached the origin")
	}
	return wantBody("response 2")(b.client.get(b.ctx, path))
}
