package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/compare"
	"github.com/stagebench/stagebench/results/foreign"
	"github.com/stagebench/stagebench/results/gate"
)

// samples are the slices that files of another tool have, with the metrics of them.
type samples struct {
	metrics []gate.Metric
	slices  []gate.Slice
	// warnings are about what the files lack, or what cannot be compared.
	warnings []string
}

// foreign judges files of other tools.
func (o gateOptions) foreign(ctx context.Context, s streams) error {
	read := func(c contender) (samples, error) {
		return interruptible(ctx, func() (samples, error) {
			all, err := readSamples(strings.Split(c.text, ","))
			return all, exit.Usage(err)
		})
	}
	base, err := read(o.baseIs)
	if err != nil {
		return err
	}
	head, err := read(o.headIs)
	if err != nil {
		return err
	}
	missing := without(base.metrics, head.metrics)
	if len(missing) > 0 && len(o.metrics) == 0 {
		return exit.Invalidf("%s has no %s\nmeasure all figures of the base, or choose those to compare with --metrics",
			o.head, strings.Join(missing, ", "))
	}
	shared, err := o.bounded(slices.DeleteFunc(slices.Clone(base.metrics), func(m gate.Metric) bool {
		return slices.Contains(missing, m.Name)
	}))
	if err != nil {
		return err
	}
	var pairs []gate.Pair
	for i := range min(len(base.slices), len(head.slices)) {
		pairs = append(pairs, gate.Pair{Base: base.slices[i], Head: head.slices[i]})
	}
	compared := gate.InAll(shared, pairs)
	if len(compared) == 0 {
		return exit.Invalidf("%s and %s have no figure in common that each sample has\n"+
			"measure both with the same tool and the same settings", o.base, o.head)
	}
	warnings := []string{"the samples count as blocks in their order: measure base and head in turn, or a change of the " +
		"machine counts as one of the head"}
	if left := without(slices.Concat(base.metrics, head.metrics), compared); len(left) > 0 && len(o.metrics) == 0 {
		slices.Sort(left)
		warnings = append(warnings, "not compared, because a sample of base or head lacks them: "+
			strings.Join(slices.Compact(left), ", "))
	}
	if b, h := len(base.slices), len(head.slices); b != h {
		warnings = append(warnings, fmt.Sprintf("base has %d samples and head %d: the last ones do not count", b, h))
	}
	return o.judge(s, "", compared, pairs, slices.Concat(warnings, base.warnings, head.warnings))
}

// readSamples reads files of other tools. Each file of vegeta or k6 is one sample, and benchmarks have several.
func readSamples(names []string) (all samples, err error) {
	for _, name := range names {
		read, err := readCompared(name)
		if err != nil {
			return all, err
		}
		var more samples
		if read.Tool == foreign.Benchmarks {
			more = benchmarks(read.series)
		} else {
			more = serviceTimes(read.Run)
		}
		if all.metrics == nil {
			all.metrics = more.metrics
		}
		all.slices = append(all.slices, more.slices...)
		for _, w := range slices.Concat(read.warnings, more.warnings) {
			all.warnings = append(all.warnings, name+": "+w)
		}
	}
	return all, nil
}

// serviceTimes returns the sample of a file of vegeta or k6. Their latencies begin when a request is sent.
func serviceTimes(r compare.Run) samples {
	step, figures := r.Cells[0].Steps[0], map[string]float64{}
	all := samples{slices: []gate.Slice{{Figures: figures}}}
	clock, times := "service", step.ServiceNS
	if times.Count == 0 {
		clock, times = "response", step.ResponseAll
	}
	for name, ns := range map[string]*int64{"p50": times.P50, "p95": times.P95, "p99": times.P99} {
		if ns != nil {
			figures[clock+"-"+name] = float64(*ns)
		}
	}
	figures["errors"] = step.Ledger.ErrorRate()
	for _, name := range []string{clock + "-p50", clock + "-p95", clock + "-p99"} {
		all.metrics = append(all.metrics, gate.Foreign(name, "ns", false))
	}
	all.metrics = append(all.metrics, gate.Foreign("errors", results.GateShare, false))
	return all
}

// benchmarks returns the samples of Go benchmarks: the nth line of each benchmark belongs to the nth slice.
func benchmarks(series []compare.Series) (all samples) {
	for _, one := range series {
		name := strings.TrimPrefix(one.Package+"/", "/") + one.Name + " " + one.Unit
		if one.Better == 0 {
			all.warnings = append(all.warnings, fmt.Sprintf("%s is not compared, because it is unknown whether more is better; "+
				"a line says it: Unit %s better=lower", name, one.Unit))
			continue
		}
		all.metrics = append(all.metrics, gate.Foreign(name, one.Unit, one.Better > 0))
		for i, value := range one.Values {
			if i == len(all.slices) {
				all.slices = append(all.slices, gate.Slice{Figures: map[string]float64{}})
			}
			all.slices[i].Figures[name] = value
			if one.Invalid {
				all.slices[i].Steady.Invalid = []string{fmt.Sprintf("%s is marked as not valid", one.Name)}
			}
		}
	}
	return all
}
