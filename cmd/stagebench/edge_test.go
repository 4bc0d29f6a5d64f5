package main

import (
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/workloads/driver"
)

// edgeEngines returns the knobs that select each engine of the edges.
func edgeEngines() map[string]sut.Knobs {
	return map[string]sut.Knobs{
		"edge": {"edge.engine": "edge"}, "varnish": {"edge.engine": "varnish"}, "nginx": {"edge.engine": "nginx"},
	}
}

// fetched is a response to a GET, with its complete body.
type fetched struct {
	status int
	header http.Header
	body   string
}

// age returns the header Age in seconds; 0 = there is none.
func (f fetched) age() int {
	age, _ := strconv.Atoi(f.header.Get("Age"))
	return age
}

// hit reports whether an edge answered without the origin.
func (f fetched) hit() bool { return strings.Contains(f.header.Get(driver.CacheStatusHeader), "; hit") }

func fetch(t *testing.T, url string) fetched {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }() // read only
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatalf("GET %s: %v", url, err)
	}
	return fetched{response.StatusCode, response.Header, string(body)}
}

// The origin is down. The edge answers with what it has, although that is stale, and what it cannot have fails.
func TestOriginIsDown(t *testing.T) {
	t.Parallel()
	for name, knobs := range edgeEngines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stale := name != "nginx" // nginx has no stale-if-error for entries whose lifetime it was told
			settings := with(knobs, sut.Knobs{"web.hosts": "1"})
			if stale {
				settings["cdn.ttl"] = "1s"
			}
			r := bringUpSized(t, sut.CDN, settings, roomy)
			edge := r.Endpoints()[0]
			want := fetch(t, edge+thumbPath(1))
			if want.status != http.StatusOK {
				t.Fatalf("status %d: %s", want.status, want.body)
			}
			eventually(t, "a stale answer while the origin is down", func() bool {
				_ = r.Kill("lb-1") // an error if it is dead already
				down := fetch(t, edge+photoPath(1)).status >= http.StatusInternalServerError
				got := fetch(t, edge+thumbPath(1))
				if got.status != http.StatusOK || got.body != want.body {
					t.Fatalf("status %d with %d bytes, want the image", got.status, len(got.body))
				}
				return down && got.hit() && (got.age() > 1 || !stale)
			})
			eventually(t, "the origin is back", func() bool {
				return fetch(t, edge+photoPath(1)).status == http.StatusOK
			})
		})
	}
}

// The only edge is killed. Only the requests fail that were in flight there: clients use the origin until it is back.
func TestAnEdgeIsKilled(t *testing.T) {
	t.Parallel()
	for name, knobs := range edgeEngines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := bringUp(t, sut.CDN, knobs, "static-heavy")
			step, killed := r.kill(t, "edge-1", 120, 5*time.Second, time.Second)
			allowed := r.inFlight(killed)
			t.Logf("%d failed, %d were in flight; causes %v; events %v", failed(step), allowed, step.Causes, step.Events)
			if failed(step) > allowed {
				t.Errorf("%d requests failed, want at most %d", failed(step), allowed)
			}
			past := 0
			for _, o := range r.outcomes {
				if o.Edge == "" && !o.Fate.Failed() {
					past++
				}
			}
			if past == 0 {
				t.Error("no request went to the origin")
			}
			eventually(t, "clients use the edge again", func() bool {
				r.load(t, 60, time.Second, 0, nil)
				last := r.outcomes[len(r.outcomes)-1]
				return last.Edge != "" && !last.Fate.Failed()
			})
		})
	}
}

// A purge reaches every edge: one that serves, and one that is down meanwhile. Strangers cannot purge.
func TestPurge(t *testing.T) {
	t.Parallel()
	for name, knobs := range edgeEngines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := bringUpSized(t, sut.CDN, with(knobs, sut.Knobs{"cdn.edges": "3", "web.hosts": "1"}), roomy)
			purges := map[string]sut.Purge{"url": {URLs: []string{thumbPath(1)}}, "group": {Groups: []string{photoGroup(1)}}}
			for kind, p := range purges {
				r.fillEdges(t, thumbPath(1), thumbPath(2))
				r.strangersCannotPurge(t, p)
				if err := r.Kill("edge-2"); err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				purged, err := r.Purge(t.Context(), p)
				if err != nil && kind == "group" && name == "nginx" && strings.Contains(err.Error(), "501") {
					continue // nginx has no groups, and says so
				}
				if err != nil || len(purged) != 3 {
					t.Fatalf("purge by %s: %+v, %v", kind, purged, err)
				}
				t.Logf("purge by %s: %v", kind, time.Since(began))
				eventually(t, "edge-2 serves again", func() bool {
					response, err := http.Get(r.Endpoints()[1] + photoPath(1))
					return err == nil && response.Body.Close() == nil && response.StatusCode == http.StatusOK
				})
				for i, edge := range r.Endpoints() {
					if fetch(t, edge+thumbPath(1)).hit() {
						t.Errorf("purge by %s: edge-%d has the purged image", kind, i+1)
					}
					if got := fetch(t, edge+thumbPath(2)); got.hit() == (i == 1) {
						t.Errorf("purge by %s: edge-%d, another image: %q", kind, i+1, got.header[driver.CacheStatusHeader])
					}
				}
			}
		})
	}
}

// photoGroup is the group of the images of the seeded photo with this index, from 1.
func photoGroup(index int) string { return "photo-" + strconv.FormatInt(int64(seededPhoto(index)), 10) }

// fillEdges requests paths from each edge until it answers without the origin.
func (r *rig) fillEdges(t *testing.T, paths ...string) {
	t.Helper()
	for _, edge := range r.Endpoints() {
		for _, path := range paths {
			eventually(t, edge+" stores "+path, func() bool { return fetch(t, edge+path).hit() })
		}
	}
}

// strangersCannotPurge sends a purge without the secret, and with another one, to the admin address of an edge.
func (r *rig) strangersCannotPurge(t *testing.T, p sut.Purge) {
	t.Helper()
	document, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range r.Status() {
		if n.Node != "edge-1" {
			continue
		}
		for _, authorization := range []string{"", sut.NewSecret().Bearer()} {
			req, err := http.NewRequest(http.MethodPost, "http://"+n.Admin+sut.PurgePath, strings.NewReader(string(document)))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", authorization)
			response, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = response.Body.Close() // only the status matters
			if response.StatusCode != http.StatusUnauthorized {
				t.Errorf("a purge with Authorization %q: %s", authorization, response.Status)
			}
		}
	}
	if !fetch(t, r.Endpoints()[0]+thumbPath(1)).hit() {
		t.Error("a stranger purged edge-1")
	}
}
