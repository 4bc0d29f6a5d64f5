package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/results/trend"
)

// regression returns an error if the newest level of a series is worse than the one before. It is also an error if the
// newest run has no valid figure of a series that the run before has: what broke entirely has no figure to be worse.
func (o historyOptions) regression(all []trend.Series, records []trend.Record) error {
	if len(all) == 0 {
		return exit.Usagef("no run has such a figure, so nothing can be worse\nsee: stagebench history")
	}
	newest := records[len(records)-1]
	var worse []string
	var since trend.Record // the newest change
	for _, line := range all {
		level, before := line.Last()
		point, _ := line.Latest()
		if point.Run != newest.Run || before == nil || !line.Metric.Worse(level.Median, before.Median) {
			continue
		}
		worse = append(worse, fmt.Sprintf("%s %s (%s since %s)", line.Cell, line.Metric.Name,
			line.Metric.Change(before.Median, level.Median), shortCommit(*level.From.Record)))
		if level.From.Time.After(since.Time) {
			since = *level.From.Record
		}
	}
	if missing := o.missing(all, records); len(worse) == 0 && len(missing) > 0 {
		return exit.Invalidf("run %s has no valid figure of: %s\n"+
			"find out why, or accept it by a run without these cells", newest.Run, strings.Join(missing, ", "))
	}
	if len(worse) == 0 {
		return nil
	}
	return exit.Missedf("worse than before the last change point: %s\n"+
		"find the cause, or accept the new level with --since %s",
		strings.Join(worse, ", "), since.Run)
}

// missing returns the cells of the newest run that are not valid, and the figures that only the run before has.
func (o historyOptions) missing(all []trend.Series, records []trend.Record) (names []string) {
	newest, invalid := records[len(records)-1], map[string]bool{}
	for _, c := range newest.Cells {
		if !c.Valid && (len(o.cells) == 0 || slices.Contains(o.cells, c.Name())) {
			invalid[c.Name()] = true
			names = append(names, c.Name()+" ("+cmp.Or(c.Invalid, "not valid")+")")
		}
	}
	for _, line := range all {
		_, valid := line.Latest()
		if !invalid[line.Cell] && len(records) > 1 && valid != nil && valid.Run == records[len(records)-2].Run {
			names = append(names, line.Cell+" "+line.Metric.Name)
		}
	}
	return names
}
