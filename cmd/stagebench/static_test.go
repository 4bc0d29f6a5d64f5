package main

import (
	"io"
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/workloads/preset"
)

// The real service answers every op of static-heavy. Images have the version that the page links, so caches may keep
// them for ever. Assets have none, so caches must revalidate them after a minute.
func TestStaticContent(t *testing.T) {
	t.Parallel()
	r := bringUp(t, sut.Single, nil, "static-heavy")
	step := r.load(t, 100, 2*time.Second, 0, nil)
	if failed(step) > 0 {
		t.Errorf("ledger %+v causes %v, want no failed request", step.Ledger, step.Causes)
	}
	for _, class := range []string{"image", "asset", "page", "feed", "photo", "me"} {
		if !slices.ContainsFunc(r.outcomes, func(o results.Outcome) bool { return o.Class == class }) {
			t.Errorf("no op of class %s was sent", class)
		}
	}
	_, page := r.read(t, "/")
	seen := map[string]bool{} // variants and assets, with their query
	workload := shipped(t, "static-heavy")
	for n := range uint64(1000) {
		op := workload.Op(n)
		name := path.Base(op.Path)
		if op.Class != preset.Image && op.Class != preset.Asset || seen[name] {
			continue
		}
		seen[name] = true
		want, linked := "public, max-age=60, stale-while-revalidate=60, stale-if-error=86400", true
		if op.Class == preset.Image {
			want = "public, max-age=31536000, immutable"
			linked = strings.HasPrefix(name, "thumb.") || strings.HasPrefix(name, "original.")
		}
		if header, _ := r.read(t, op.Path); header.Get("Cache-Control") != want {
			t.Errorf("%s: Cache-Control %q, want %q", op.Path, header.Get("Cache-Control"), want)
		}
		if linked && !strings.Contains(page, "/"+name) {
			t.Errorf("the page does not link %s", name)
		}
	}
	if len(seen) != 7 {
		t.Errorf("ops for %v, want four variants and three assets", slices.Sorted(maps.Keys(seen)))
	}
}

// read sends a GET to the frontend and returns the header and the body of its answer, which must be 200.
func (r *rig) read(t *testing.T, path string) (header http.Header, body string) {
	t.Helper()
	response, err := http.Get(r.Endpoints()[0] + path)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Errorf("%s: %s, %v", path, response.Status, err)
	}
	return response.Header, string(text)
}
