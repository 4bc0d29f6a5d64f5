// Package nesting refuses texts that are nested too deeply, before a parser gets them that needs memory or stack for
// each level: 80 KB of opening brackets take a YAML parser gigabytes.
package nesting

import (
	"bytes"
	"fmt"
)

// most is the number of levels that a file may have. Files that people write have fewer than ten.
const most = 100

// Check returns an error if a YAML text is nested too deeply. It does not parse it: brackets in quoted texts and
// comments count, too.
func Check(text []byte) error {
	open, number := 0, 0
	for line := range bytes.Lines(text) {
		number++
		lists := 0 // that begin on this line: "- - -"
		for rest := bytes.TrimLeft(line, " "); len(rest) > 1 && (rest[0] == '-' || rest[0] == '?') && rest[1] == ' '; {
			lists++
			rest = bytes.TrimLeft(rest[1:], " ")
		}
		deepest := open
		for _, c := range line {
			switch c {
			case '[', '{':
				open++
				deepest = max(deepest, open)
			case ']', '}':
				open = max(open-1, 0)
			}
		}
		if max(lists, deepest) > most {
			return fmt.Errorf("line %d: more than %d levels: want fewer nested lists and maps", number, most)
		}
	}
	return nil
}
