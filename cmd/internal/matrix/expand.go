package matrix

import (
	"encoding/json"
	"maps"
	"slices"
)

// expand makes the cells: the product of the axes, without those of exclude, with those of include.
func (r *reader) expand(d document) {
	if !r.small(r.axis) {
		return
	}
	cells := product(r.axis)
	for i, e := range d.Exclude {
		chosen, ok := r.selection("exclude", e)
		if !ok {
			continue
		}
		before := len(cells)
		cells = slices.DeleteFunc(cells, func(c Cell) bool { return matches(c, chosen) })
		if len(cells) == before {
			r.add(d.Exclude[i].at, "exclude: no cell has these values: correct them, or remove this entry")
		}
	}
	all := slices.Clone(r.axis)
	for i, e := range d.Include {
		chosen, ok := r.selection("include", e)
		if !ok {
			continue
		}
		further := replaced(r.axis, chosen)
		if !r.small(further) {
			return
		}
		before, known := len(cells), map[string]bool{}
		for _, c := range cells {
			known[c.key()] = true
		}
		for _, c := range product(further) {
			if !known[c.key()] {
				known[c.key()] = true
				cells = append(cells, c)
			}
		}
		if len(cells) == before {
			r.add(d.Include[i].at, "include: the matrix has all of these cells already: remove this entry")
		}
		all = joined(all, chosen)
	}
	if len(cells) == 0 {
		r.add(position{}, "every cell is excluded: want at least one")
	}
	if len(cells) > maxCells {
		r.add(position{}, "more than %d cells: want fewer values, or several files", maxCells)
	}
	r.file.Axes, r.file.Cells = used(all, cells), cells
}

// small reports whether the product of axes is not too large.
func (r *reader) small(axes []Axis) bool {
	size := 1
	for _, a := range axes {
		if size *= len(a.Values); size > maxCells {
			r.add(position{}, "more than %d cells: want fewer values, or several files", maxCells)
			return false
		}
	}
	return true
}

// key identifies a cell.
func (c Cell) key() string {
	text, err := json.Marshal(c)
	if err != nil {
		panic("matrix: a cell is texts: " + err.Error())
	}
	return string(text)
}

// selection returns the values of an entry of include or exclude.
func (r *reader) selection(what string, s settings) (chosen []Axis, ok bool) {
	before := len(r.all)
	if len(s.entries) == 0 {
		r.add(s.at, "%s: an empty entry: want, for example, {stage: lb}", what)
	}
	for _, e := range s.entries {
		known := slices.ContainsFunc(r.axis, func(a Axis) bool { return a.Name == e.name.text })
		if !known && (what == "exclude" || !r.knob(e.name)) {
			if what == "exclude" {
				r.add(e.name.at, "exclude: %q is no axis of this file", e.name.text)
			}
			continue
		}
		a := Axis{Name: e.name.text}
		for _, v := range e.values {
			if r.value(a.Name, v) {
				a.Values = append(a.Values, v.text)
			}
		}
		chosen = append(chosen, a)
	}
	return chosen, len(r.all) == before
}

// matches reports whether a cell has one of the chosen values on each chosen axis.
func matches(c Cell, chosen []Axis) bool {
	return !slices.ContainsFunc(chosen, func(a Axis) bool { return !slices.Contains(a.Values, c[a.Name]) })
}

// product returns a cell for each combination of values. The first axis changes most slowly.
func product(axes []Axis) []Cell {
	cells := []Cell{{}}
	for _, a := range axes {
		var next []Cell
		for _, c := range cells {
			for _, value := range a.Values {
				with := maps.Clone(c)
				with[a.Name] = value
				next = append(next, with)
			}
		}
		cells = next
	}
	return cells
}

// replaced returns the axes with the values of the chosen ones, which may be further axes.
func replaced(axes, chosen []Axis) []Axis {
	axes = slices.Clone(axes)
	for _, c := range chosen {
		if i := slices.IndexFunc(axes, func(a Axis) bool { return a.Name == c.Name }); i >= 0 {
			axes[i] = c
		} else {
			axes = append(axes, c)
		}
	}
	return axes
}

// joined returns the axes with the values of both lists.
func joined(axes, more []Axis) []Axis {
	for _, m := range more {
		i := slices.IndexFunc(axes, func(a Axis) bool { return a.Name == m.Name })
		if i < 0 {
			axes = append(axes, m)
			continue
		}
		values := slices.Clone(axes[i].Values)
		for _, v := range m.Values {
			if !slices.Contains(values, v) {
				values = append(values, v)
			}
		}
		axes[i].Values = values
	}
	return axes
}

// used returns the axes with only the values that cells have. A knob that only some cells have also has the value "",
// which is its default.
func used(axes []Axis, cells []Cell) (all []Axis) {
	for _, a := range axes {
		kept, has := Axis{Name: a.Name}, map[string]bool{}
		for _, c := range cells {
			has[c[a.Name]] = true
		}
		for _, v := range append([]string{""}, a.Values...) {
			if has[v] {
				kept.Values = append(kept.Values, v)
			}
		}
		all = append(all, kept)
	}
	return all
}
