package preset_test

import (
	"fmt"
	"testing"

	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/preset"
)

// TestPhotoIDs checks that photos are picked by index, and that paths contain ids.
func TestPhotoIDs(t *testing.T) {
	each(t, func(t *testing.T, w workloads.Workload) {
		p := params()
		p.PhotoID = func(photo int) uint64 { return 1<<50 + uint64(photo) }
		other, patterns := load(t, w.Name(), p), patterns()
		for n := range uint64(5_000) {
			op, moved := w.Op(n), other.Op(n)
			photo, found := id(t, patterns[op.Class], op, "photo")
			got, _ := id(t, patterns[op.Class], moved, "photo")
			if found && got != 1<<50+photo || !found && moved.Path != op.Path {
				t.Fatalf("op %d: path %s with large ids, and %s with ids that equal the indexes", n, moved.Path, op.Path)
			}
		}
	})
}

// TestRecords checks the record of each op. Reads and writes of a photo have the same
// record. Ops that read several records, and uploads, have none.
func TestRecords(t *testing.T) {
	keyed := map[workloads.Class]bool{preset.Photo: true, preset.Like: true, preset.Comment: true, preset.Rename: true}
	each(t, func(t *testing.T, w workloads.Workload) {
		patterns, seen := patterns(), map[workloads.Class]bool{}
		for n := range uint64(20_000) {
			op := w.Op(n)
			want := ""
			if photo, found := id(t, patterns[op.Class], op, "photo"); found && keyed[op.Class] {
				want = fmt.Sprintf("/api/photos/%d", photo)
				seen[op.Class] = true
			}
			if op.Record != want {
				t.Fatalf("op %d: %s %s has the record %q, want %q", n, op.Class, op.Path, op.Record, want)
			}
		}
		for _, share := range shares(w) {
			if keyed[share.Class] && !seen[share.Class] {
				t.Errorf("no op of class %s", share.Class)
			}
		}
	})
}
