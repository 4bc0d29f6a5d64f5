package autoscale_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets/autoscale"
)

// start is when all hosts of these tests were ready. Decisions are an hour later or more.
func start() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) }

func config(target float64) autoscale.Config {
	return autoscale.Config{
		Metric: ladder.ScaleCPU, Target: target, Min: 1, Max: 100,
		Window: 300 * time.Second, Interval: 15 * time.Second,
	}
}

// Values of hosts that have none.
const (
	missing = -1 // ready, but its metric is unknown
	unready = -2 // does not serve
	young   = -3 // ready for less than an interval, with a high value of its start
)

// samples returns one sample for each value.
func samples(now time.Time, values ...float64) (all []autoscale.Sample) {
	for _, v := range values {
		s := autoscale.Sample{ReadySince: start(), Value: &v}
		switch v {
		case missing:
			s.Value = nil
		case unready:
			s.ReadySince, s.Value = time.Time{}, nil
		case young:
			s.ReadySince, s.Value = now.Add(-14*time.Second), new(1000.0)
		}
		all = append(all, s)
	}
	return all
}

// same returns n equal values.
func same(n int, value float64) []float64 { return slices.Repeat([]float64{value}, n) }

const (
	docs = "kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale, "
	calc = "kubernetes/pkg/controller/podautoscaler/replica_calculator_test.go, TestReplicaCalc"
)

// The advice for one set of samples is that of Kubernetes.
func TestAdvice(t *testing.T) {
	for _, test := range []struct {
		source string
		target float64
		values []float64
		want   int
		limit  autoscale.Limit
	}{
		{docs + "Algorithm details: 200m at a target of 100m doubles", 100, []float64{200}, 2, autoscale.ByMetric},
		{docs + "Algorithm details: 50m at a target of 100m halves", 100, same(4, 50), 2, autoscale.ByMetric},
		{docs + "Algorithm details: ceil(3 x 90 / 60)", 60, same(3, 90), 5, autoscale.ByMetric},
		{docs + "Algorithm details: ceil(5 x 20 / 60)", 60, same(5, 20), 2, autoscale.ByMetric},
		{docs + "Algorithm details: a ratio of 1.05 changes nothing", 60, same(3, 63), 3, autoscale.ByTolerance},
		{docs + "Algorithm details: a ratio of 1.1 changes nothing", 50, same(3, 55), 3, autoscale.ByTolerance},
		{docs + "Algorithm details: a ratio of 0.9 changes nothing", 50, same(9, 45), 9, autoscale.ByTolerance},
		{docs + "Algorithm details: a ratio of 1.11 does", 100, same(3, 111), 4, autoscale.ByMetric},
		{calc + "ScaleUp", 30, []float64{30, 50, 70}, 5, autoscale.ByMetric},
		{calc + "ScaleUpCM", 15, []float64{20, 10, 30}, 4, autoscale.ByMetric},
		{calc + "ScaleUpUnreadyLessScale", 30, []float64{unready, 50, 70}, 4, autoscale.ByMetric},
		{calc + "ScaleUpHotCpuLessScale", 30, []float64{young, 50, 70}, 4, autoscale.ByMetric},
		{calc + "ScaleUpUnreadyNoScale", 30, []float64{40, unready, unready}, 3, autoscale.ByNewHosts},
		{calc + "ScaleHotCpuNoScale", 30, []float64{40, young, young}, 3, autoscale.ByNewHosts},
		{calc + "ScaleDown", 50, []float64{10, 30, 50, 25, 25}, 3, autoscale.ByMetric},
		{calc + "ScaleDownCM", 20, same(5, 12), 3, autoscale.ByMetric},
		{calc + "ScaleDownIncludeUnreadyPods", 50, []float64{10, 30, 50, unready, unready}, 2, autoscale.ByMetric},
		{calc + "ScaleDownIgnoreHotCpuPods", 50, []float64{10, 30, 50, young, young}, 2, autoscale.ByMetric},
		{
			calc + "ScaleDownExcludeUnscheduledPods", 50,
			[]float64{10, unready, unready, unready, unready},
			1, autoscale.ByMetric,
		},
		{calc + "ToleranceCM", 20, []float64{20, 21, 21}, 3, autoscale.ByTolerance},
		{calc + "MissingMetrics", 100, []float64{40, 9.5, missing, missing}, 3, autoscale.ByMetric},
		{calc + "EmptyMetrics", 100, same(4, missing), 4, autoscale.ByUnknown},
		{calc + "MissingMetricsNoChangeEq", 100, []float64{100, missing}, 2, autoscale.ByTolerance},
		{calc + "MissingMetricsNoChangeGt", 100, []float64{190, missing}, 2, autoscale.ByNewHosts},
		{calc + "MissingMetricsNoChangeLt", 100, []float64{60, missing}, 2, autoscale.ByMetric},
		{calc + "MissingMetricsUnreadyChange", 50, []float64{unready, 45, missing}, 3, autoscale.ByTolerance},
		{calc + "MissingMetricsUnreadyScaleUp", 50, []float64{unready, 200, missing}, 4, autoscale.ByMetric},
		{"only hosts that start: nothing is known", 50, []float64{young, unready}, 2, autoscale.ByUnknown},
		{"CPU saturates: x1.67 at a target of 60", 60, same(1, 100), 2, autoscale.ByMetric},
		{"CPU saturates: x1.67 at a target of 60", 60, same(2, 100), 4, autoscale.ByMetric},
		{"CPU saturates: x1.67 at a target of 60", 60, same(4, 100), 7, autoscale.ByMetric},
		{"idle hosts advise none", 60, same(3, 0), 0, autoscale.ByMetric},
		{"no rounding up by floating point", 10, same(3, 12), 4, autoscale.ByMetric},
		{"no rounding up by floating point", 0.1, []float64{0.1, 0.2}, 3, autoscale.ByMetric},
	} {
		now := start().Add(time.Hour)
		// With an earlier decision, the present number is not an advice, so the window is empty.
		_, history := autoscale.Decide(config(test.target), samples(now, test.values...), autoscale.History{}, now)
		history.Advices = nil
		d, _ := autoscale.Decide(config(test.target), samples(now, test.values...), history, now)
		limit := d.Limit
		if test.want == 0 { // the minimum decides
			limit = autoscale.ByMetric
		}
		if d.Advice != test.want || limit != test.limit {
			t.Errorf("%s: %v at a target of %v: advice %d by %q, want %d by %q",
				test.source, test.values, test.target, d.Advice, d.Limit, test.want, test.limit)
		}
	}
}

// Hosts of unequal sizes count by their size: the sum of the usage divided by the sum of the requests
// (kubernetes/pkg/controller/podautoscaler/metrics, GetResourceUtilizationRatio).
func TestUnequalHosts(t *testing.T) {
	now := start().Add(time.Hour)
	hosts := samples(now, 100, 20)
	hosts[0].Size, hosts[1].Size = 1, 3
	d, _ := autoscale.Decide(config(40), hosts, autoscale.History{}, now)
	if *d.Metric != 40 || d.Limit != autoscale.ByTolerance {
		t.Errorf("metric %v, %s: want (1 x 100 + 3 x 20) / 4 = 40", *d.Metric, d.Reason)
	}
}

// scaler applies the decisions of an autoscaler to hosts that all have one value.
type scaler struct {
	config  autoscale.Config
	history autoscale.History
	now     time.Time
	hosts   int
}

func newScaler(c autoscale.Config, hosts int) *scaler {
	return &scaler{config: c, now: start().Add(time.Hour), hosts: hosts}
}

// decide decides one interval after the last decision.
func (s *scaler) decide(value float64) (d autoscale.Decision) {
	s.now = s.now.Add(s.config.Interval)
	d, s.history = autoscale.Decide(s.config, samples(s.now, same(s.hosts, value)...), s.history, s.now)
	if d.Changes() {
		s.history, s.hosts = s.history.Changed(s.hosts, d.Wanted, s.now), d.Wanted
	}
	return d
}

// The number shrinks to the largest advice of the window (docs, "Stabilization window"; kubernetes#101371: a maximum,
// not a delay).
func TestStabilisation(t *testing.T) {
	s := newScaler(config(60), 5)
	var sizes []int
	for range 21 { // the window has 20 intervals
		sizes = append(sizes, s.decide(20).Wanted)
	}
	if want := append(slices.Repeat([]int{5}, 20), 2); !slices.Equal(sizes, want) {
		t.Errorf("5 hosts at 20 %%, target 60: %v, want 5 for a whole window, then 2", sizes)
	}

	s = newScaler(config(60), 2)
	if d := s.decide(150); d.Wanted != 5 {
		t.Fatalf("spike: %v, want 5", d)
	}
	for i := range 19 {
		if d := s.decide(24); d.Wanted != 5 || d.Limit != autoscale.ByWindow {
			t.Fatalf("%d intervals after the spike: %v, want 5 hosts because of the window", i+1, d)
		}
	}
	if d := s.decide(24); d.Wanted != 2 {
		t.Errorf("the window has passed: %v, want 2", d)
	}

	s = newScaler(config(60), 6)
	for range 20 {
		s.decide(40) // advises 4
	}
	if d := s.decide(10); d.Wanted != 4 || d.Advice != 1 {
		t.Errorf("advice 1 after a window of advice 4: %v, want 4: the largest advice of the window", d)
	}
}

// One sample never shrinks the number: not the first one, not after a gap, and not after somebody else has changed it.
func TestOneSampleNeverShrinks(t *testing.T) {
	s := newScaler(config(60), 4)
	if d := s.decide(1); d.Changes() {
		t.Errorf("first decision: %v", d)
	}
	for range 30 {
		s.decide(60)
	}
	s.now = s.now.Add(time.Hour)
	if d := s.decide(1); d.Changes() {
		t.Errorf("after a gap: %v", d)
	}
	for range 20 {
		s.decide(1)
	}
	if s.hosts != 1 {
		t.Fatalf("%d hosts after a window with 1 %%, want 1", s.hosts)
	}
	s.hosts = 3 // by an operator
	for range 20 {
		if d := s.decide(1); d.Changes() {
			t.Fatalf("after an operator added hosts: %v, want that they stay for a window", d)
		}
	}
	if d := s.decide(1); d.Wanted != 1 {
		t.Errorf("a window after the operator: %v, want 1", d)
	}
	for range 30 {
		s.decide(missing)
	}
	if d := s.decide(60); d.Changes() {
		t.Errorf("after a window without metrics: %v", d)
	}
}

// The number grows by 4 hosts or 100 % within 15 s (docs, "Default behavior"), also if decisions are more frequent.
func TestRate(t *testing.T) {
	for _, test := range []struct {
		hosts int
		want  []int
	}{{1, []int{5, 10, 20, 40, 80, 100}}, {3, []int{7, 14, 28, 56, 100}}, {4, []int{8, 16}}} {
		s := newScaler(config(1), test.hosts)
		for i, want := range test.want {
			if d := s.decide(100); d.Wanted != want || want < 100 && d.Limit != autoscale.ByRate {
				t.Errorf("from %d hosts, step %d: %v, want %d", test.hosts, i+1, d, want)
			}
		}
	}
	c := config(10)
	c.Interval = 5 * time.Second
	s := newScaler(c, 2)
	var sizes []int
	for range 7 {
		sizes = append(sizes, s.decide(50).Wanted)
	}
	if want := []int{6, 6, 6, 12, 12, 12, 24}; !slices.Equal(sizes, want) {
		t.Errorf("a decision every 5 s: %v, want %v", sizes, want)
	}
}

// A change that takes longer than the window does not end it: the new hosts stay for a window after they are ready.
func TestSlowChange(t *testing.T) {
	c := config(60)
	c.Window = 30 * time.Second
	now := start().Add(time.Hour)
	d, history := autoscale.Decide(c, samples(now, 100), autoscale.History{}, now)
	if d.Wanted != 2 {
		t.Fatalf("%v, want 2", d)
	}
	now = now.Add(time.Minute)
	history = history.Changed(1, 2, now)
	for _, want := range []int{2, 1} { // after 15 and 30 s
		now = now.Add(c.Interval)
		if d, history = autoscale.Decide(c, samples(now, 1, 1), history, now); d.Wanted != want {
			t.Errorf("%v, want %d", d, want)
		}
	}
}

// A decision that was not carried out does not use up the rate.
func TestFailedChange(t *testing.T) {
	s := newScaler(config(60), 1)
	for range 3 {
		s.hosts = 1
		s.now = s.now.Add(s.config.Interval)
		var d autoscale.Decision
		if d, s.history = autoscale.Decide(s.config, samples(s.now, 100), s.history, s.now); d.Wanted != 2 {
			t.Errorf("%v, want 2 again", d)
		}
	}
}

// The number stays between its bounds, at once.
func TestBounds(t *testing.T) {
	c := config(60)
	c.Min, c.Max = 2, 4
	for _, test := range []struct {
		hosts int
		value float64
		want  int
		limit autoscale.Limit
	}{
		{3, 100, 4, autoscale.ByMax},
		{4, 60, 4, autoscale.ByTolerance},
		{6, 60, 4, autoscale.ByMax},
		{1, 60, 2, autoscale.ByMin},
		{1, missing, 2, autoscale.ByMin},
	} {
		if d := newScaler(c, test.hosts).decide(test.value); d.Wanted != test.want || d.Limit != test.limit {
			t.Errorf("%d hosts at %v: %v by %q, want %d by %q", test.hosts, test.value, d, d.Limit, test.want, test.limit)
		}
	}
	s := newScaler(c, 4)
	for range 21 {
		s.decide(1)
	}
	if s.hosts != 2 {
		t.Errorf("%d idle hosts, want the minimum of 2", s.hosts)
	}
}

// Decide does not modify its arguments.
func TestPure(t *testing.T) {
	s := newScaler(config(60), 2)
	for range 25 {
		s.decide(60)
	}
	before := slices.Clone(s.history.Advices)
	now, hosts := s.now.Add(time.Minute), samples(s.now, 100, 100)
	first, _ := autoscale.Decide(s.config, hosts, s.history, now)
	second, _ := autoscale.Decide(s.config, hosts, s.history, now)
	if first.String() != second.String() || !slices.Equal(before, s.history.Advices) {
		t.Errorf("%v, then %v with the same arguments; history %v, before %v", first, second, s.history.Advices, before)
	}
}

func TestReasons(t *testing.T) {
	c := config(60)
	c.Max = 9
	inFlight := config(4)
	inFlight.Metric = ladder.ScaleInFlight
	window := newScaler(c, 3)
	window.decide(20)
	for _, test := range []struct {
		d    autoscale.Decision
		want string
	}{
		{newScaler(c, 3).decide(90), "3 -> 5 hosts: CPU 90 % per host, target 60 %"},
		{newScaler(c, 3).decide(63), "3 hosts: CPU 63 % per host, target 60 %; within 10 % of it"},
		{newScaler(c, 1).decide(100), "1 -> 2 hosts: CPU 100 % per host, target 60 %"},
		{window.decide(20), "3 hosts: CPU 20 % per host, target 60 %; advice 1, but 3 in the last 5m0s"},
		{newScaler(c, 6).decide(100), "6 -> 9 hosts: CPU 100 % per host, target 60 %; advice 10, maximum 9"},
		{newScaler(c, 2).decide(missing), "2 hosts: no host has a known metric"},
		{
			newScaler(inFlight, 1).decide(40.26),
			"1 -> 5 hosts: 40.3 requests in flight per host, target 4.0; advice 11, but at most 4 or 100 % more per 15s",
		},
		{autoscale.Hold(2, "web-2 is dead"), "2 hosts: no change while web-2 is dead"},
	} {
		if got := test.d.String(); got != test.want {
			t.Errorf("%q, want %q", got, test.want)
		}
	}
	now := start().Add(time.Hour)
	d, _ := autoscale.Decide(c, samples(now, 80, young), autoscale.History{}, now)
	if !strings.HasSuffix(d.Reason, "; new or silent hosts may change it") {
		t.Errorf("%q", d.Reason)
	}
}

// The configuration comes from the knobs, with a target that fits the metric.
func TestConfigOf(t *testing.T) {
	for metric, target := range map[string]float64{"off": 60, "cpu": 60, "in_flight": 4} {
		c, on := autoscale.ConfigOf(ladder.WebOf(sut.Knobs{"web.autoscale": metric}))
		want := autoscale.Config{
			Metric: ladder.ScaleMetric(metric), Target: target, Min: 1, Max: 16,
			Window: 5 * time.Minute, Interval: 15 * time.Second,
		}
		if c != want || on != (metric != "off") {
			t.Errorf("%s: %+v, %v, want %+v", metric, c, on, want)
		}
	}
}
