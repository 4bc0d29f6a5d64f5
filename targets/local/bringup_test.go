package local

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
)

func TestFailedBringUps(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		prepare func(s *fixture)
		want    []string
	}{
		"dies before ready": {
			func(s *fixture) { s.behave("web-1", "dies early") },
			[]string{"bring up lb: web-1: exit status 3 before it was ready\n", "disk is full"},
		},
		"invalid ready line": {
			func(s *fixture) { s.behave("blob-1", "invalid ready line") },
			[]string{`blob-1: its ready line "hello"`},
		},
		"the template's database": {
			func(s *fixture) { s.behave("template-db", "dies early") },
			[]string{"build template small-1-sqlite-v1: template-db: exit status 3"},
		},
		"the template's seed": {
			func(s *fixture) { s.behave("template-seed", "fails") },
			[]string{"template-seed: exit status 4 before it was ready"},
		},
		"missing binary": {
			func(s *fixture) { s.options.Binary = "/does/not/exist" },
			[]string{"no such file or directory"},
		},
		"budget too small": {
			func(s *fixture) { s.options.Topology.Hosts[0].CPU = 0.001 },
			[]string{"host lb-1: a budget of 0.001 cores"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newFixture(t, sut.LB, nil)
			c.prepare(s)
			system, err := Up(t.Context(), s.options)
			if err == nil {
				system.Down(t.Context())
				t.Fatal("it came up")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q, want %q in it", err, want)
				}
			}
		})
	}
}

// TestANodeIsNeverReady checks the error when a node exceeds readyTimeout. On a busy
// machine another node can exceed a short timeout before lb-1 starts. Then the test
// tries a longer one.
func TestANodeIsNeverReady(t *testing.T) {
	t.Parallel()
	s := newFixture(t, sut.LB, nil)
	s.behave("lb-1", "never ready")
	for ready := 500 * time.Millisecond; ; ready *= 2 {
		s.options.readyTimeout = ready
		system, err := Up(t.Context(), s.options)
		if err == nil {
			system.Down(t.Context())
			t.Fatal("it came up")
		}
		if strings.Contains(err.Error(), fmt.Sprintf("lb-1: not ready after %v\n", ready)) {
			return
		}
		if ready > timeout || !strings.Contains(err.Error(), "not ready after") {
			t.Fatalf("error %q, want one about lb-1", err)
		}
	}
}

// TestInterruptedBringUps interrupts Up at different moments. The cleanup of
// newFixture checks that nothing is left.
func TestInterruptedBringUps(t *testing.T) {
	t.Parallel()
	warm := newFixture(t, sut.LB, nil)
	system := warm.up(t)
	bringUp := system.BringUp()
	if err := system.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	const moments = 8
	for i := range moments {
		for _, cold := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d of %d, cold %v", i, moments, cold), func(t *testing.T) {
				s := newFixture(t, sut.LB, nil)
				if !cold {
					s.options.TemplateDir = warm.options.TemplateDir
				}
				ctx, cancel := context.WithTimeout(t.Context(), bringUp*time.Duration(i)/moments)
				defer cancel()
				system, err := Up(ctx, s.options)
				if err == nil { // this bring-up was faster than the first one
					err = system.Down(t.Context())
				} else if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("error %v", err)
				}
				if left := s.processes(); len(left) > 0 {
					t.Errorf("processes are left: %v, %v", left, err)
				}
			})
		}
	}
}
