package trend

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// seed is that of the permutation tests: equal records give equal change points.
const seed = 1

// Series is the history of one metric of one cell.
type Series struct {
	Cell   string
	Metric Metric
	Parts  []Part // at least one, in the order of time
}

// Part is a time in which nothing but the measured code changed. It has at least one point.
type Part struct {
	Why    string // what differs from the part before: "cores was 2, is 4"; "" = it is the first
	Points []Point
	Levels []Level // of the valid points, in the order of time; none if no point is valid
}

// Point is the value of one run.
type Point struct {
	*Record
	Figure
	Valid bool
	Why   string // why it is not valid
}

// Level is the time between two change points.
type Level struct {
	From   Point
	Runs   int
	Median float64
	P      float64 // p-value of the change point at which it begins; 0 = it begins with its part
}

// Latest returns the newest point, and the newest valid one; nil if none is valid.
func (s Series) Latest() (newest Point, valid *Point) {
	for _, part := range s.Parts {
		for i := range part.Points {
			if newest = part.Points[i]; newest.Valid {
				valid = &part.Points[i]
			}
		}
	}
	return newest, valid
}

// Last returns the newest level and the one before it, in the newest part; nil if there is none.
func (s Series) Last() (level, before *Level) {
	levels := s.Parts[len(s.Parts)-1].Levels
	if n := len(levels); n > 0 {
		level = &levels[n-1]
		if n > 1 {
			before = &levels[n-2]
		}
	}
	return level, before
}

// Worse reports whether a value is worse than another one.
func (m Metric) Worse(value, than float64) bool {
	if m.Higher {
		return value < than
	}
	return value > than
}

// Change returns the difference between two values for people: "-12.3 %", or for shares "+0.30 points".
func (m Metric) Change(from, to float64) string {
	if m.Unit == Share {
		return fmt.Sprintf("%+.2f points", 100*(to-from))
	}
	if from == 0 {
		return "from 0"
	}
	return fmt.Sprintf("%+.1f %%", 100*(to/from-1))
}

// SeriesOf returns the history of each metric of each cell, in the order in which the newest record has its cells.
// Records count in the order of their times.
func SeriesOf(records []Record) []Series {
	records = slices.Clone(records)
	slices.SortStableFunc(records, func(a, b Record) int { return a.Time.Compare(b.Time) })
	var all []Series
	for _, name := range cellNames(records) {
		for _, metric := range Metrics() {
			series := Series{Cell: name, Metric: metric}
			series.fill(records)
			if len(series.Parts) > 0 {
				all = append(all, series)
			}
		}
	}
	return all
}

// cellNames lists the cells of all records, those of the newest record first.
func cellNames(records []Record) (names []string) {
	for _, r := range slices.Backward(records) {
		for _, c := range r.Cells {
			if !slices.Contains(names, c.Name()) {
				names = append(names, c.Name())
			}
		}
	}
	return names
}

// fill adds the points of the records, cuts the series into parts, and finds the levels.
func (s *Series) fill(records []Record) {
	var facts map[string]string // of the previous point
	for i := range records {
		r := &records[i]
		for _, c := range r.Cells {
			figure, has := c.Metrics[s.Metric.Name]
			if c.Name() != s.Cell || !has {
				continue
			}
			now := map[string]string{}
			maps.Copy(now, r.Machine)
			maps.Copy(now, r.Plan)
			maps.Copy(now, c.Plan)
			if why := difference(facts, now); facts == nil || why != "" {
				s.Parts = append(s.Parts, Part{Why: why})
			}
			part := &s.Parts[len(s.Parts)-1]
			part.Points = append(part.Points, Point{r, figure, c.Valid, c.Invalid})
			facts = now
			break
		}
	}
	for i := range s.Parts {
		s.Parts[i].level()
	}
}

// difference describes the facts that both have with other values, "" if there are none. A fact that only one of them
// has, such as a knob that an older version did not know, is no difference.
func difference(before, now map[string]string) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(now)) {
		if old, has := before[name]; has && old != now[name] {
			parts = append(parts, fmt.Sprintf("%s was %s, is %s", name, cmp.Or(old, "empty"), cmp.Or(now[name], "empty")))
		}
	}
	return strings.Join(parts, "; ")
}

// level finds the change points among the valid points.
func (p *Part) level() {
	var points []Point
	var values []float64
	for _, point := range p.Points {
		if point.Valid {
			points, values = append(points, point), append(values, point.Value)
		}
	}
	if len(points) == 0 {
		return
	}
	begins := append([]Change{{}}, Detect(values, seed)...)
	for i, c := range begins {
		end := len(values)
		if i+1 < len(begins) {
			end = begins[i+1].At
		}
		p.Levels = append(p.Levels, Level{points[c.At], end - c.At, Median(values[c.At:end]), c.P})
	}
}
