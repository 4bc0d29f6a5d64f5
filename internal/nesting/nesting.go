// Package nesting refuses texts that are nested too deeply, before a parser gets them that needs memory or stack for
// each level: 80 KB of opening brackets take a YAML parser gigabytes.
package nesting

import (
	"fmt"

	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/token"
)

// most is the number of levels that a file may have. Files that people write have fewer than ten.
const most = 100

// Check returns an error if a YAML text is nested too deeply. It splits the text into tokens, which takes memory in
// proportion to its length, and does not parse it.
func Check(text []byte) error {
	open, lists, line := 0, 0, 0 // lists begin on this line: "- - -"
	for _, t := range lexer.Tokenize(string(text)) {
		if t.Position.Line != line {
			lists, line = 0, t.Position.Line
		}
		switch t.Type {
		case token.SequenceStartType, token.MappingStartType:
			open++
		case token.SequenceEndType, token.MappingEndType:
			open = max(open-1, 0)
		case token.SequenceEntryType, token.MappingKeyType:
			lists++
		}
		if max(open, lists) > most {
			return fmt.Errorf("line %d: more than %d levels: want fewer nested lists and maps", line, most)
		}
	}
	return nil
}
