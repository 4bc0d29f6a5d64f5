//go:build long

package main

import "testing"

// TestSlowExamplesOfReadme runs every example of README.md as printed. It takes about an hour.
func TestSlowExamplesOfReadme(t *testing.T) {
	runExamples(t, func(example) bool { return true })
}
