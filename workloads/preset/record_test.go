package preset_test

import (
	"fmt"
	"testing"

	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/preset"
)

// Photos are picked by index and asked for by id.
func TestPhotoIDs(t *testing.T) {
	each(t, func(t *testing.T, w workloads.Workload) {
		p := params()
		p.PhotoID = func(photo int) uint64 { return 1<<50 + uint64(photo) }
		other, all := load(t, w.Name(), p), forms()
		for n := range uint64(5_000) {
			op, moved := w.Op(n), other.Op(n)
			photo, found := id(t, all[op.Class], op, "photo")
			if got, _ := id(t, all[op.Class], moved, "photo"); found && got != 1<<50+photo || !found && moved.Path != op.Path {
				t.Fatalf("op %d: %s with ids of another kind, %s with indexes", n, moved.Path, op.Path)
			}
		}
	})
}

// Reads and writes of one photo are about one record; ops that show several, or
// whose record only the answer names, are about none.
func TestRecords(t *testing.T) {
	keyed := map[workloads.Class]bool{preset.Photo: true, preset.Like: true, preset.Comment: true, preset.Rename: true}
	each(t, func(t *testing.T, w workloads.Workload) {
		all, seen := forms(), map[workloads.Class]bool{}
		for n := range uint64(20_000) {
			op := w.Op(n)
			want := ""
			if photo, found := id(t, all[op.Class], op, "photo"); found && keyed[op.Class] {
				want = fmt.Sprintf("/api/photos/%d", photo)
				seen[op.Class] = true
			}
			if op.Record != want {
				t.Fatalf("op %d: %s %s is about the record %q, want %q", n, op.Class, op.Path, op.Record, want)
			}
		}
		for _, share := range shares(w) {
			if keyed[share.Class] && !seen[share.Class] {
				t.Errorf("no %s was asked for", share.Class)
			}
		}
	})
}
