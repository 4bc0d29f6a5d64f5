package preset_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/preset"
	"github.com/stagebench/stagebench/workloads/trace"
)

// TestFromTrace checks how requests are mapped to ops, and that skipped requests are
// counted.
func TestFromTrace(t *testing.T) {
	lines := []string{
		`{"time":1,"client":"a","method":"GET","path":"/page"}`,
		`{"time":2,"client":"b","method":"GET","path":"/logo.PNG?v=2"}`,
		`{"time":3,"client":"a","method":"PROPFIND","path":"/page"}`,
		`{"time":4,"client":"a","method":"HEAD","path":"/logo.PNG?v=2"}`,
		`{"time":5,"client":"c","method":"POST","path":"/page"}`,
		`{"time":6,"client":"b","method":"DELETE","path":"/other"}`,
		`{"time":7,"client":"b","method":"GET","path":"/other"}`,
	}
	source, err := trace.Read(strings.NewReader(strings.Join(lines, "\n")), "site", nil)
	if err != nil {
		t.Fatal(err)
	}
	p := params()
	p.Photos, p.Owner = 2, func(int) int { return 1 }
	w, sent, skipped, err := preset.FromTrace(source, p)
	if err != nil {
		t.Fatal(err)
	}
	type request struct {
		Method, Path string
		Class        workloads.Class
		Write        bool
		User         int
	}
	var got []request
	for n := range uint64(6) {
		op := w.Op(n)
		got = append(got, request{op.Method, op.Path, op.Class, op.Write, op.User})
	}
	want := []request{
		{"GET", "/api/photos/1", "photo", false, 0},
		{"GET", "/img/2/thumb.jpg?v=3", "image", false, 1},
		{"HEAD", "/img/2/thumb.jpg?v=3", "image", false, 0},
		{"POST", "/api/photos/1/like", "like", true, 2},
		{"GET", "/api/photos/1", "photo", false, 1}, // the third path shares the first photo
		{"GET", "/api/photos/1", "photo", false, 0}, // the first request again
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("ops (-want +got)\n%s", diff)
	}
	wantSkipped := map[string]int64{"method PROPFIND has no counterpart": 1, "method DELETE has no counterpart": 1}
	if diff := cmp.Diff(wantSkipped, skipped); diff != "" || w.Users() != 3 {
		t.Errorf("%d users, skipped (-want +got)\n%s", w.Users(), diff)
	}
	schedule, err := sent.Schedule(trace.Replay{Speed: 1})
	if err != nil {
		t.Fatal(err)
	}
	if at := schedule.At(2).Seconds(); at != 3 {
		t.Errorf("the HEAD is due at %vs, want 3s", at)
	}
	if op := w.(workloads.Login).LoginOp(1); op.Class != preset.Login {
		t.Errorf("login op %+v", op)
	}

	none, err := trace.Read(strings.NewReader(lines[2]), "site", nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _, _, err = preset.FromTrace(none, p)
	if err == nil || !strings.Contains(err.Error(), "none of its requests can be mapped") {
		t.Errorf("error %v", err)
	}
}
