package preset_test

import (
	"math"
	"testing"
	"time"

	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/preset"
)

// TestJourneys checks the structure of the journeys: their ops have one user, follow each other without a gap, and only
// the first one logs in and only the last one logs out.
func TestJourneys(t *testing.T) {
	t.Parallel()
	w := load(t, "session-heavy", params())
	v := w.(workloads.Journeys)
	mean, longest := v.Shape()
	const journeys = 4000
	var next uint64
	var thought time.Duration
	logins, logouts, thinks, users := 0, 0, 0, map[int]int{}
	lengths := map[int]int{}
	for n := range uint64(journeys) {
		first, ops := v.Journey(n)
		if first != next || ops < 2 {
			t.Fatalf("journey %d has %d ops from %d on: want at least 2 from %d on", n, ops, first, next)
		}
		next += uint64(ops)
		lengths[ops]++
		user, sum := w.Op(first).User, time.Duration(0)
		users[user]++
		for n := first; n < next; n++ {
			op := w.Op(n)
			if op.User != user || op.Login != (op.Class == preset.Login) || op.Logout != (op.Class == preset.Logout) ||
				op.Login && n != first || op.Logout && (n != next-1 || !w.Op(first).Login) {
				t.Fatalf("op %+v in a journey of user %d from %d to %d", op, user, first, next-1)
			}
			if op.Login {
				logins++
			}
			if op.Logout {
				logouts++
			}
			if n > first {
				sum += v.Think(n)
				thinks++
			}
		}
		if sum > longest {
			t.Fatalf("the user of journey %d thinks for %v: want at most %v", n, sum, longest)
		}
		thought += sum
	}
	if got := float64(next) / journeys; got != mean || logins != journeys/2 || logouts != journeys/4 {
		t.Errorf("%v ops per journey, %d logins, %d logouts: want %v, %d, %d",
			got, logins, logouts, mean, journeys/2, journeys/4)
	}
	if len(users) != virtual || len(lengths) < 15 {
		t.Errorf("journeys of %d users with %d different lengths", len(users), len(lengths))
	}
	// The standard deviation of a think time is less than its mean.
	think := thought.Seconds() / float64(thinks)
	if math.Abs(think-1) > 3.3/math.Sqrt(float64(thinks)) {
		t.Errorf("mean think time %v s: want 1 s", think)
	}
}
