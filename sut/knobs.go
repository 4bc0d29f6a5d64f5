package sut

import (
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// Knobs are settings of a topology by name, as text: "lb.policy" -> "least_conn".
// A Knobs that Build returned holds every knob with its effective value.
type Knobs map[string]string

// Knob describes one setting.
type Knob struct {
	Name    string
	Default string
	// Range is what is allowed, for people: "1..16", "true|false", "a|b|c".
	Range   string
	Engines []Engine // that support it; nil = all engines of its role
	Doc     string
	check   func(value string) error
}

// Catalogue lists every knob in the order in which they are shown.
func Catalogue() []Knob {
	return []Knob{
		intKnob("web.hosts", 3, 1, 16, "number of web hosts, from stage lb on"),
		floatKnob("web.cpu", 1, 0.5, 32, "size of each web host in units; at stage single the host has the larger of web.cpu and db.cpu"),
		floatKnob("db.cpu", 1, 0.5, 32, "size of the database host in units"),
		floatKnob("lb.cpu", 2, 0.5, 32, "size of each balancer host in units"),
		choiceKnob("db.engine", string(SQLite), "what realises the database", string(SQLite), string(Postgres)),
		choiceKnob("lb.engine", string(OwnBalance), "what realises the balancer", string(OwnBalance), string(HAProxy)),
		choiceKnob("lb.policy", "round_robin", "how the balancer picks a web host", "round_robin", "least_conn"),
		choiceKnob("lb.sticky", "true", "cookie affinity: a user stays on the web host that holds the session", "true", "false"),
		floatKnob("lb.health_interval", 1, 0.05, 60, "seconds between two health checks of a web host"),
	}
}

func intKnob(name string, def, low, high int, doc string) Knob {
	return Knob{Name: name, Default: strconv.Itoa(def), Range: fmt.Sprintf("%d..%d", low, high), Doc: doc, check: func(v string) error {
		if n, err := strconv.Atoi(v); err != nil || n < low || n > high {
			return fmt.Errorf("want a whole number from %d to %d", low, high)
		}
		return nil
	}}
}

func floatKnob(name string, def, low, high float64, doc string) Knob {
	text := func(f float64) string { return strconv.FormatFloat(f, 'g', -1, 64) }
	return Knob{Name: name, Default: text(def), Range: text(low) + ".." + text(high), Doc: doc, check: func(v string) error {
		// The comparison is written so that NaN fails it.
		if f, err := strconv.ParseFloat(v, 64); err != nil || !(f >= low && f <= high) {
			return fmt.Errorf("want a number from %s to %s", text(low), text(high))
		}
		return nil
	}}
}

func choiceKnob(name, def, doc string, values ...string) Knob {
	return Knob{Name: name, Default: def, Range: strings.Join(values, "|"), Doc: doc, check: func(v string) error {
		if !slices.Contains(values, v) {
			return fmt.Errorf("want one of %s", strings.Join(values, ", "))
		}
		return nil
	}}
}

// ParseKnobs reads "name=value" settings. An unknown name, a value out of range
// or a name given twice is an error that says what is allowed.
func ParseKnobs(settings []string) (Knobs, error) {
	knobs := Knobs{}
	for _, s := range settings {
		name, value, found := strings.Cut(s, "=")
		if !found {
			return nil, fmt.Errorf("knob %q: want name=value, for example lb.policy=least_conn", s)
		}
		if _, twice := knobs[name]; twice {
			return nil, fmt.Errorf("knob %s is set twice", name)
		}
		knobs[name] = value
	}
	return knobs, knobs.Validate()
}

// Validate checks names and values.
func (k Knobs) Validate() error {
	known := map[string]Knob{}
	var names []string
	for _, knob := range Catalogue() {
		known[knob.Name] = knob
		names = append(names, knob.Name)
	}
	given := make([]string, 0, len(k))
	for name := range k {
		given = append(given, name)
	}
	sort.Strings(given)
	for _, name := range given {
		knob, found := known[name]
		if !found {
			return fmt.Errorf("unknown knob %q: want one of %s", name, strings.Join(names, ", "))
		}
		if err := knob.check(k[name]); err != nil {
			return fmt.Errorf("knob %s=%s: %w", name, k[name], err)
		}
	}
	return nil
}

// Complete returns a copy with defaults for what is not set.
func (k Knobs) Complete() Knobs {
	all := Knobs{}
	for _, knob := range Catalogue() {
		all[knob.Name] = knob.Default
	}
	for name, value := range k {
		all[name] = value
	}
	return all
}

// Int returns a whole-number knob. The knobs must have been validated and
// completed; anything else is a mistake in the program.
func (k Knobs) Int(name string) int {
	n, err := strconv.Atoi(k[name])
	if err != nil {
		panic("sut: knob " + name + " is not a validated whole number: " + err.Error())
	}
	return n
}

// Float returns a number knob, under the same condition as Int.
func (k Knobs) Float(name string) float64 {
	f, err := strconv.ParseFloat(k[name], 64)
	if err != nil {
		panic("sut: knob " + name + " is not a validated number: " + err.Error())
	}
	return f
}

// Bool returns a true-or-false knob.
func (k Knobs) Bool(name string) bool { return k[name] == "true" }
