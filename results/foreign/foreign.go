// Package foreign reads results of other tools: result files of vegeta, summaries of k6, and Go benchmark text.
//
// A figure that the file lacks stays missing. Durations are in nanoseconds. The latencies of vegeta and k6 begin when a
// request is sent. So they are service times: a user who had to wait for a free connection waited longer. An incomplete
// file is an error, because its figures would be those of another run.
//
// Read reads from the given reader and does no other I/O. It may be used concurrently.
package foreign

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/compare"
)

// The tools whose results can be read.
const (
	Vegeta     = "vegeta"
	K6         = "k6"
	Benchmarks = "Go benchmarks"
)

// Result is what a file has.
type Result struct {
	Tool string
	// Run has one cell with one step, except for Benchmarks.
	Run results.Run
	// Series are the figures of Benchmarks, and Warnings are about lines that could not be read.
	Series   []compare.Series
	Warnings []string
}

// peek is the length of the beginning of a file from which its tool is told.
const peek = 1 << 20

// Read reads a file of any of the tools. The error is about the content of the file or from the reader.
func Read(r io.Reader) (Result, error) {
	in := bufio.NewReaderSize(r, peek)
	head, err := in.Peek(peek)
	if err != nil && !errors.Is(err, io.EOF) {
		return Result{}, err
	}
	switch {
	case len(head) == 0:
		return Result{}, errors.New("the file is empty\nrepeat the run that should have written it")
	case regexp.MustCompile(`(?m)^Benchmark\S*\s+\d+\s`).Match(head):
		return readBenchmarks(in)
	case bytes.HasPrefix(bytes.TrimSpace(head), []byte("{")) && regexp.MustCompile(`"(metrics|results)"\s*:`).Match(head):
		return readK6(in)
	}
	return readVegeta(in)
}

// cell returns the run of a step that another tool measured.
func cell(tool string, s results.Step) results.Run {
	s.Purpose, s.Valid = "attack", true
	c := results.Cell{
		Stage: "target", Workload: tool, Driver: tool, CapacityMethod: results.MethodFixed, Valid: true,
		Reference: &s, Steps: []results.Step{s},
	}
	return results.Run{Schema: results.Schema, Complete: true, Cells: []results.Cell{c}}
}

// unknown is the error for a file of no known tool.
func unknown() error {
	return fmt.Errorf("the file is no result of vegeta, no summary of k6, and no Go benchmark text\n" +
		"want what vegeta attack, k6 run --summary-export or go test -bench wrote")
}
