package workloads

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Share is how often one class of op is asked for.
type Share struct {
	Class   Class   `json:"class"`
	Percent float64 `json:"percent"` // of all ops, above 0
}

// Mix is what a workload consists of. Its order is part of the workload: the
// same shares in another order give another op sequence.
type Mix []Share

// Validate says what is wrong with a mix: no shares, a class that is malformed
// or named twice, a share that is not above 0, a sum that is not 100.
func (m Mix) Validate() error {
	if len(m) == 0 {
		return errors.New("mix: it is empty: want at least one class, for example feed 100")
	}
	seen := map[Class]bool{}
	var sum float64
	for _, s := range m {
		switch {
		case !s.Class.valid():
			return fmt.Errorf("mix: class %q: want letters, digits, - and _", s.Class)
		case seen[s.Class]:
			return fmt.Errorf("mix: class %s is named twice: want one share for it", s.Class)
		case !(s.Percent > 0): // so written that NaN is refused too
			return fmt.Errorf("mix: share %v of %s: want more than 0, or leave the class out", s.Percent, s.Class)
		}
		seen[s.Class] = true
		sum += s.Percent
	}
	// Shares such as 1.4 have no exact binary form.
	if math.Abs(sum-100) > 1e-9 {
		return fmt.Errorf("mix: the shares sum to %s: want 100", percent(sum))
	}
	return nil
}

// Pick returns the position of the share that random bits fall on. The mix must
// be valid.
func (m Mix) Pick(random uint64) int {
	left := Unit(random) * 100
	for i := range m {
		if left -= m[i].Percent; left < 0 {
			return i
		}
	}
	return len(m) - 1 // rounding may leave a rest of 1e-14
}

// String shows the mix as it is written in documents: "feed 30, photo 25".
func (m Mix) String() string {
	var parts []string
	for _, s := range m {
		parts = append(parts, string(s.Class)+" "+percent(s.Percent))
	}
	return strings.Join(parts, ", ")
}

func percent(p float64) string { return strconv.FormatFloat(p, 'g', 6, 64) }

// valid reports whether the class can be a name in logs, tables and labels.
func (c Class) valid() bool {
	return c != "" && !strings.ContainsFunc(string(c), func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
	})
}
