package nesting_test

import (
	"strings"
	"testing"

	"github.com/stagebench/stagebench/internal/nesting"
)

func TestCheck(t *testing.T) {
	const usual = "ops:\n  - {path: '/a?b[]=c', body: '{\"x\": [1, 2, {}]}'}\n"
	for name, c := range map[string]struct {
		text string
		deep bool
	}{
		"a usual file":          {strings.Repeat(usual, 10_000), false},
		"brackets":              {strings.Repeat("[", 80_000), true},
		"braces on many lines":  {strings.Repeat("{a:\n", 200), true},
		"lists in lists":        {strings.Repeat("- ", 40_000) + "x", true},
		"keys in keys":          {"a:\n  " + strings.Repeat("? ", 200), true},
		"quoted brackets":       {strings.Repeat(strings.Repeat("[", 90)+`"`+strings.Repeat("]", 90)+`",`, 2), true},
		"closing brackets":      {strings.Repeat("]", 1000) + strings.Repeat("[", 100), false},
		"brackets in a comment": {"# " + strings.Repeat("[", 1000), false},
	} {
		if err := nesting.Check([]byte(c.text)); (err != nil) != c.deep {
			t.Errorf("%s: error %v, too deep: %t", name, err, c.deep)
		}
	}
}
