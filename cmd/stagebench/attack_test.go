package main

import (
	"io"
	"strings"
	"testing"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/table"
)

// The error of exit status 3 gives a reason that makes the measurement invalid. A step can
// also have warnings that do not.
func TestWhyAnAttackIsInvalid(t *testing.T) {
	step := results.Step{Warnings: []string{"node web-1 did not answer"}}
	step.Ledger.Scheduled = 1
	results.Judge(&step, results.DefaultSLO(), results.Evidence{})
	err := attackOptions{format: string(table.FormatText)}.conclude(t.Context(), streams{out: io.Discard}, step, nil)
	if err == nil || !strings.Contains(err.Error(), "invalid: op counts do not add up") {
		t.Errorf("error %v, want the reason why the step is invalid", err)
	}
}
