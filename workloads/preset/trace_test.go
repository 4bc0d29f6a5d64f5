package preset_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/preset"
	"github.com/stagebench/stagebench/workloads/trace"
)

// Paths become photos, clients users, methods are kept, and what has no
// counterpart is counted.
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
	source, err := trace.Read(strings.NewReader(strings.Join(lines, "\n")), "site")
	if err != nil {
		t.Fatal(err)
	}
	p := params()
	p.Photos, p.Owner = 2, func(int) int { return 1 }
	w, sent, skipped, err := preset.FromTrace(source, p)
	if err != nil {
		t.Fatal(err)
	}
	type asked struct {
		Method, Path string
		Class        workloads.Class
		Write        bool
		User         int
	}
	var got []asked
	for n := range uint64(6) {
		op := w.Op(n)
		got = append(got, asked{op.Method, op.Path, op.Class, op.Write, op.User})
	}
	want := []asked{
		{"GET", "/api/photos/1", "photo", false, 0},
		{"GET", "/img/2/thumb.jpg", "image", false, 1},
		{"HEAD", "/img/2/thumb.jpg", "image", false, 0},
		{"POST", "/api/photos/1/like", "like", true, 2},
		{"GET", "/api/photos/1", "photo", false, 1}, // the third path shares the first photo
		{"GET", "/api/photos/1", "photo", false, 0}, // and from the beginning
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("ops (-want +got)\n%s", diff)
	}
	left := map[string]int64{"method PROPFIND has no counterpart": 1, "method DELETE has no counterpart": 1}
	if diff := cmp.Diff(left, skipped); diff != "" || w.Users() != 3 {
		t.Errorf("%d users, skipped (-want +got)\n%s", w.Users(), diff)
	}
	schedule, err := sent.Schedule(trace.Replay{Speed: 1})
	if err != nil {
		t.Fatal(err)
	}
	if at := schedule.At(2).Seconds(); at != 3 {
		t.Errorf("the HEAD is due at %vs, want 3s: ops and times are out of step", at)
	}
	if op := w.(workloads.Login).LoginOp(1); op.Class != preset.Login {
		t.Errorf("login op %+v", op)
	}

	none, err := trace.Read(strings.NewReader(lines[2]), "site")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := preset.FromTrace(none, p); err == nil || !strings.Contains(err.Error(), "no request of it has a counterpart") {
		t.Errorf("error %v", err)
	}
}
