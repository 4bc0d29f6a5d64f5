package cell

import (
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/pace"
)

// paths is a workload of GET requests.
type paths []string

func (paths) Name() string { return "paths" }
func (paths) Users() int   { return 0 }
func (p paths) Op(n uint64) workloads.Op {
	return workloads.Op{Index: n, Path: p[n%uint64(len(p))], Write: p[n%uint64(len(p))] == "/img/written"}
}

// The lifetime of a response decides which requests an edge can answer, over all steps.
func TestCeiling(t *testing.T) {
	t.Parallel()
	w := paths{"/img/1?v=1", "/img/1", "/api/me", "/img/written", "/static/a.css"}
	schedule, err := pace.Constant(1)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Unix(1000, 0)
	for name, test := range map[string]struct {
		ttl   string
		later time.Duration // begin of the second step
		want  [2]int64      // reusable requests of the first and the second step
	}{
		"the same minute":       {"0s", 10 * time.Second, [2]int64{3, 6}},
		"only the versioned":    {"0s", 70 * time.Second, [2]int64{3, 4}},
		"the edge's lifetime":   {"10s", 10 * time.Second, [2]int64{3, 3}},
		"a lifetime of nothing": {"1ms", 10 * time.Second, [2]int64{0, 0}},
	} {
		c := newCeiling(sut.Knobs{"cdn.edges": "1", "cdn.ttl": test.ttl})
		requests, first := c.step(pace.NewJourneys(w, 0, schedule), 10*time.Second, start)
		more, second := c.step(pace.NewJourneys(w, 10, schedule), 10*time.Second, start.Add(test.later))
		if requests != 6 || more != 6 || first != test.want[0] || second != test.want[1] {
			t.Errorf("%s: %d of %d, then %d of %d; want %v of 6", name, first, requests, second, more, test.want)
		}
	}
	if c := newCeiling(sut.Knobs{"cdn.edges": "2"}); c != nil {
		t.Error("two edges have a ceiling")
	}
}
