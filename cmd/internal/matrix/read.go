package matrix

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/pivot"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/workloads/pace"
)

// Bounds and defaults.
const (
	defaultRepeats  = 3
	maxRepeats      = 1000
	maxCells        = 10_000
	maxConnections  = 10_000
	maxSeed         = 1<<63 - 1
	defaultDuration = 30 * time.Second
	minDuration     = time.Second
	defaultWait     = time.Minute
	defaultTarget   = "target" // name of a target without one
)

// engineSets lists the values of axis engines; drivers those of axis driver.
func engineSets() []string { return []string{"embedded", "native"} }
func drivers() []string    { return []string{"vegeta"} }

// stageNames lists the stages.
func stageNames() (names []string) {
	for _, s := range ladder.Stages() {
		names = append(names, string(s.Stage))
	}
	return names
}

// variable matches the name of an environment variable, and serviceName that of a target.
const (
	variable    = `^[A-Za-z_][A-Za-z0-9_]*$`
	serviceName = `^[A-Za-z0-9_][A-Za-z0-9_.,=+-]*$`
)

// Read parses a file. Name is its name for errors, which list every problem with line and column.
func Read(text []byte, name string) (*File, error) {
	d, err := decode(text, name)
	if err != nil {
		return nil, err
	}
	r := &reader{problems: problems{name: name}, file: &File{name: name, lines: map[string]position{}}}
	r.targets(d)
	r.scalars(d)
	r.axes(d)
	r.set(d.Set)
	if err := r.error(); err != nil {
		return nil, err
	}
	r.expand(d)
	r.tables(d.Tables)
	return r.file, r.error()
}

// reader makes a file from a document, and collects the problems.
type reader struct {
	problems
	file *File
	axis []Axis // without the values of include
}

// targets reads the targets of the user.
func (r *reader) targets(d document) {
	services := d.Targets
	if d.Target != nil {
		services = append(services, *d.Target)
	}
	switch {
	case d.Target != nil && d.Targets != nil:
		r.add(d.Target.URL.at, "target and targets exclude each other: use only one of them")
	case len(services) > 0 && d.Stages != nil:
		r.add(d.Stages[0].at, "stages and targets exclude each other: write two files")
	case len(services) == 0 && d.Stages == nil:
		r.add(position{}, "no stages and no targets: want, for example, stages: [single, lb]")
	case len(services) > 0 && d.Engines != nil:
		r.add(d.Engines[0].at, "engines are for stages: a target has its own")
	}
	for _, s := range services {
		wait := defaultWait
		if s.Wait.given() {
			wait = r.duration("wait", s.Wait, 1)
		}
		if !s.Name.given() {
			s.Name = scalar{defaultTarget, s.URL.at}
		}
		switch {
		case !s.URL.given():
			r.add(s.Name.at, "target %s has no url: want, for example, url: http://127.0.0.1:8080/", s.Name.text)
		case !regexp.MustCompile(serviceName).MatchString(s.Name.text) ||
			slices.Contains(stageNames(), s.Name.text):
			r.add(s.Name.at, "target %q: want a name of letters, digits and any of _ . , = + - that is not a stage", s.Name.text)
		case s.Down.given() && !s.Up.given():
			r.add(s.Down.at, "down without up: add the command that starts the target")
		}
		if !s.Ready.given() {
			s.Ready = s.URL
		}
		r.file.Services = append(r.file.Services, Service{
			Name: s.Name.text, URL: s.URL.text, Up: s.Up.text, Down: s.Down.text, Ready: s.Ready.text, Wait: wait,
		})
		r.file.lines[Target+"="+s.Name.text] = s.URL.at
	}
}

// scalars reads everything that is one value.
func (r *reader) scalars(d document) {
	f := r.file
	f.Repeats = r.whole("repeats", d.Repeats, defaultRepeats, 1, maxRepeats)
	f.Seed = uint64(r.whole("seed", d.Seed, 1, 0, maxSeed))
	f.Connections = r.whole("connections", d.Connections, 0, 1, maxConnections)
	f.Data, f.SLO, f.Duration = sut.DataSizes()[0], d.SLO.text, defaultDuration
	if d.Data.given() {
		f.Data = r.oneOf("data", d.Data, sut.DataSizes())
	}
	if d.Quick.given() {
		f.Quick = r.oneOf("quick", d.Quick, []string{"true", "false"}) == "true"
	}
	if d.SLO.given() {
		if _, err := results.ParseSLO(d.SLO.text); err != nil {
			r.add(d.SLO.at, "slo: %v", err)
		}
	}
	if d.Reference.given() {
		f.Reference = r.rate("reference", d.Reference)
	}
	if d.Duration.given() {
		f.Duration = r.duration("duration", d.Duration, minDuration)
		if !slices.ContainsFunc(d.Rates, func(s scalar) bool { return s.text != Search }) {
			r.add(d.Duration.at, "duration is that of a fixed rate, and there is none: add, for example, rates: [100]")
		}
	}
}

// axes reads the axes.
func (r *reader) axes(d document) {
	add := func(name string, values list, otherwise ...string) {
		a := Axis{Name: name}
		for _, v := range values {
			if slices.Contains(a.Values, v.text) {
				r.add(v.at, "%s %s is given twice: list it once", name, v.text)
				continue
			}
			if r.value(name, v) {
				a.Values = append(a.Values, v.text)
			}
		}
		if values == nil {
			a.Values = otherwise
		}
		r.axis = append(r.axis, a)
	}
	if services := r.file.Services; len(services) > 0 {
		a := Axis{Name: Target}
		for _, s := range services {
			if slices.Contains(a.Values, s.Name) {
				r.add(r.file.lines[Target+"="+s.Name], "target %s is given twice: choose another name", s.Name)
			}
			a.Values = append(a.Values, s.Name)
		}
		r.axis = append(r.axis, a)
		add(Workload, d.Workloads, URL)
	} else {
		add(Stage, d.Stages)
		add(Workload, d.Workloads, "read-heavy")
		add(Engines, d.Engines, engineSets()[0])
	}
	add(Driver, d.Drivers, drivers()[0])
	for _, e := range d.Knobs.entries {
		if slices.ContainsFunc(d.Set.entries, func(o entry) bool { return o.name.text == e.name.text }) {
			r.add(e.name.at, "knob %s is also in set: remove one of them", e.name.text)
		}
		if r.knob(e.name) {
			add(e.name.text, e.values)
		}
	}
	add(Rate, d.Rates, Search)
}

// set reads the knobs of all cells.
func (r *reader) set(s settings) {
	r.file.Set = map[string]string{}
	for _, e := range s.entries {
		if len(e.values) != 1 {
			r.add(e.name.at, "set %s: want one value; several values are an axis, in knobs", e.name.text)
			continue
		}
		if r.knob(e.name) && r.value(e.name.text, e.values[0]) {
			r.file.Set[e.name.text] = e.values[0].text
		}
	}
}

// knob reports whether a name is that of a knob.
func (r *reader) knob(name scalar) bool {
	if len(r.file.Services) > 0 {
		if slices.Contains(fixedAxes(), name.text) || !regexp.MustCompile(variable).MatchString(name.text) {
			r.add(name.at, "knob %q: want the name of an environment variable for up and down", name.text)
			return false
		}
		return true
	}
	if !slices.ContainsFunc(ladder.Catalogue(), func(k ladder.Knob) bool { return k.Name == name.text }) {
		r.add(name.at, "unknown knob %q: see stagebench list knobs", name.text)
		return false
	}
	return true
}

// value reports whether a value is one of its axis, and keeps its position.
func (r *reader) value(axis string, v scalar) bool {
	before := len(r.all)
	switch axis {
	case Stage:
		r.oneOf(axis, v, stageNames())
	case Target:
		var names []string
		for _, s := range r.file.Services {
			names = append(names, s.Name)
		}
		r.oneOf(axis, v, names)
	case Engines:
		r.oneOf(axis, v, engineSets())
	case Driver:
		r.oneOf(axis, v, drivers())
	case Rate:
		if v.text != Search {
			r.rate(axis, v)
		}
	case Workload:
		if v.text == "" || v.text == URL && len(r.file.Services) == 0 {
			r.add(v.at, "workload %q: want a name, a FILE.yaml, or trace:FILE; see: stagebench list workloads", v.text)
		}
	default:
		if len(r.file.Services) > 0 {
			break
		}
		if err := ladder.Validate(sut.Knobs{axis: v.text}); err != nil {
			r.add(v.at, "%v", err)
		}
	}
	if _, known := r.file.lines[axis+"="+v.text]; !known {
		r.file.lines[axis+"="+v.text] = v.at
	}
	return len(r.all) == before
}

// oneOf returns a value that must be one of several.
func (r *reader) oneOf(what string, v scalar, values []string) string {
	if !slices.Contains(values, v.text) {
		r.add(v.at, "unknown %s %q: want one of %s", what, v.text, strings.Join(values, ", "))
	}
	return v.text
}

// whole returns a whole number.
func (r *reader) whole(what string, v scalar, otherwise, low, high int) int {
	if !v.given() {
		return otherwise
	}
	n, err := strconv.Atoi(v.text)
	if err != nil || n < low || n > high {
		r.add(v.at, "%s %s: want a whole number from %d to %d", what, v.text, low, high)
	}
	return n
}

// rate returns a rate in requests per second.
func (r *reader) rate(what string, v scalar) float64 {
	rate, err := strconv.ParseFloat(v.text, 64)
	if err != nil || !(rate >= 1 && rate <= pace.MaxRate) || math.IsInf(rate, 0) { // NaN fails both comparisons
		text := fmt.Sprintf("%s %s: want requests per second, from 1 to %d", what, v.text, int(pace.MaxRate))
		if what == Rate {
			text += ", or " + Search
		}
		r.add(v.at, "%s", text)
	}
	return rate
}

// duration returns a time of at least a minimum.
func (r *reader) duration(what string, v scalar, least time.Duration) time.Duration {
	d, err := time.ParseDuration(v.text)
	if err != nil || d < least {
		r.add(v.at, "%s %s: want a time such as 30s, at least %v", what, v.text, least)
	}
	return d
}

// tables reads the questions.
func (r *reader) tables(tables []table) {
	for _, t := range tables {
		q := Question{t.Rows.text, t.Columns.text, t.Figure.text}
		at := t.Rows.at
		for _, s := range []scalar{t.Columns, t.Figure} {
			if at.line == 0 {
				at = s.at
			}
		}
		if err := r.file.Check(q); err != nil {
			r.add(at, "%v", err)
		}
		r.file.Tables = append(r.file.Tables, q)
	}
}

// Check returns an error if a question names an unknown axis or figure.
func (f *File) Check(q Question) error {
	for _, name := range []string{q.Rows, q.Columns} {
		if name == "" || slices.ContainsFunc(f.Axes, func(a Axis) bool { return a.Name == name }) {
			continue
		}
		var names []string
		for _, a := range f.Axes {
			names = append(names, a.Name)
		}
		return fmt.Errorf("unknown axis %q: want one of %s", name, strings.Join(names, ", "))
	}
	if q.Rows != "" && q.Rows == q.Columns {
		return fmt.Errorf("rows and columns are both %s: want two axes", q.Rows)
	}
	if q.Figure != "" {
		if _, err := pivot.Find(q.Figure); err != nil {
			return err
		}
	}
	return nil
}
