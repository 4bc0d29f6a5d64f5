package machine

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestOutside(t *testing.T) {
	before := CPU{Busy: 10, Total: 100}
	for own, want := range map[float64]float64{0: 0.4, 3: 0.1, 9: 0} { // more than all, by rounding
		if got := (CPU{Busy: 14, Total: 110}).Outside(before, own); got < want-1e-9 || got > want+1e-9 {
			t.Errorf("4 of 10 s busy, %v s of them by the run: %v outside, want %v", own, got, want)
		}
	}
	if got := before.Outside(before, 0); got != 0 {
		t.Errorf("without any time %v outside, want 0", got)
	}
}

// One tick of ten is no tenth of the CPU: it may have begun long before.
func TestCovers(t *testing.T) {
	before := CPU{Total: 100}
	if (CPU{}).Covers(CPU{}) || (CPU{Total: 100.1}).Covers(before) || !(CPU{Total: 100.25}).Covers(before) {
		t.Error("want shares of 0.25 s, and not of 0.1 s")
	}
}

// The CPU time of this machine grows, and not faster than its CPUs work.
func TestReadCPU(t *testing.T) {
	before := ReadCPU()
	for begin := time.Now(); time.Since(begin) < 100*time.Millisecond; {
	}
	after := ReadCPU()
	busy, total := after.Busy-before.Busy, after.Total-before.Total
	if !(busy > 0 && total > 0 && busy <= total+0.05) {
		t.Errorf("%+v, and after 100 ms of work %+v", before, after)
	}
}

func TestDisturbed(t *testing.T) {
	before := reading{cpu: CPU{Busy: 10, Total: 100}, known: true}
	for name, test := range map[string]struct {
		after reading
		want  string
	}{
		"quiet":    {reading{cpu: CPU{Busy: 10.1, Total: 102}, known: true}, ""},
		"our work": {reading{cpu: CPU{Busy: 11, Total: 102}, own: 0.9, known: true}, ""},
		"a CPU hog": {
			reading{cpu: CPU{Busy: 11, Total: 102}, known: true}, "use 50% of the CPU",
		},
		"a disk hog": {
			reading{cpu: CPU{Busy: 10, Total: 102}, pressure: Pressure{Disk: 300 * time.Millisecond}, known: true},
			"wait for the disk in 30%",
		},
		"little memory": {
			reading{cpu: CPU{Busy: 10, Total: 102}, pressure: Pressure{Memory: 50 * time.Millisecond}, known: true},
			"wait for memory in 5%",
		},
		"unknown pressure": {
			reading{cpu: CPU{Busy: 10, Total: 102}, pressure: Pressure{Disk: time.Second}}, "",
		},
	} {
		got := disturbed(before, test.after, time.Second)
		if !strings.Contains(got, test.want) || (got == "") != (test.want == "") {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

// A wait ends with its context, and a wait without patience after one look.
func TestAwaitQuiet(t *testing.T) {
	cancelled := errors.New("interrupted")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cancelled)
	if _, err := AwaitQuiet(ctx, time.Minute, func(string) {}); !errors.Is(err, cancelled) {
		t.Errorf("%v, want the cause of the cancellation", err)
	}
	waited := false
	reason, err := AwaitQuiet(t.Context(), 0, func(string) { waited = true })
	if err != nil || waited {
		t.Errorf("reason %q, error %v, waited %v, want one look", reason, err, waited)
	}
}

func TestCalibrate(t *testing.T) {
	if s := Calibrate(); !(s.Compute > 0 && s.Loopback > 0 && s.Memory > 0) {
		t.Errorf("speed %+v, want some of each", s)
	}
}
