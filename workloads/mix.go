package workloads

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Share is the percentage of ops that belong to one class.
type Share struct {
	Class   Class   `json:"class"`
	Percent float64 `json:"percent"` // of all ops, above 0
}

// Mix lists the classes of a workload and their shares. The order matters: the
// same shares in another order give another op sequence.
type Mix []Share

// Validate returns an error for an empty mix, an invalid or duplicate class, a share
// that is not above 0, and shares that do not sum to 100.
func (m Mix) Validate() error {
	if len(m) == 0 {
		return errors.New("mix: no classes: want at least one, for example feed 100")
	}
	seen := map[Class]bool{}
	var sum float64
	for _, s := range m {
		switch {
		case !s.Class.valid():
			return fmt.Errorf("mix: class %q: want letters, digits, - and _", s.Class)
		case seen[s.Class]:
			return fmt.Errorf("mix: class %s is listed twice: want one share per class", s.Class)
		case !(s.Percent > 0): // not "<= 0", which would accept NaN
			return fmt.Errorf("mix: share %v of %s: want more than 0, or leave the class out", s.Percent, s.Class)
		}
		seen[s.Class] = true
		sum += s.Percent
	}
	// The tolerance is for shares such as 1.4, which have no exact binary form.
	if math.Abs(sum-100) > 1e-9 {
		return fmt.Errorf("mix: the shares sum to %s: want 100", percent(sum))
	}
	return nil
}

// Pick converts random bits to an index into the mix. Each index is as likely as its
// share. The mix must be valid.
func (m Mix) Pick(random uint64) int {
	left := Unit(random) * 100
	for i := range m {
		if left -= m[i].Percent; left < 0 {
			return i
		}
	}
	return len(m) - 1 // rounding may leave a remainder of 1e-14
}

// String formats the mix as the documents write it: "feed 30, photo 25".
func (m Mix) String() string {
	var parts []string
	for _, s := range m {
		parts = append(parts, string(s.Class)+" "+percent(s.Percent))
	}
	return strings.Join(parts, ", ")
}

func percent(p float64) string { return strconv.FormatFloat(p, 'g', 6, 64) }

// valid reports whether the class can be used as a name in logs, tables and labels.
func (c Class) valid() bool {
	return c != "" && !strings.ContainsFunc(string(c), func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
	})
}
