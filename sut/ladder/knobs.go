package ladder

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// Knob is one setting. It is bound to the field that holds its value, as a flag is bound
// to a variable.
type Knob struct {
	Name    string
	Default string
	// Range shows the allowed values to people: "1..16", "true|false", "a|b|c".
	Range   string
	Engines []sut.Engine // the engines that support it; nil = all engines of its tier
	Doc     string
	// live changes the knob, and others that depend on it, in the knobs of a system that serves. Its error says why that
	// is impossible; nil = the knob cannot change while a system serves.
	live func(stage sut.Stage, k sut.Knobs, value string) error
	// set parses a value and stores it in the field. Its error names the allowed values.
	set func(value string) error
}

// on returns the knob, restricted to these engines.
func (k Knob) on(engines ...sut.Engine) Knob {
	k.Engines = engines
	return k
}

// whileServing returns the knob, which live can change while a system serves.
func (k Knob) whileServing(live func(stage sut.Stage, k sut.Knobs, value string) error) Knob {
	k.live = live
	return k
}

// Live reports whether the knob can change while a system serves.
func (k Knob) Live() bool { return k.live != nil }

// Set returns the topology of a system that serves with another value of a knob. Its error says why that change is
// impossible.
func Set(now sut.Topology, name, value string) (sut.Topology, error) {
	if err := Validate(sut.Knobs{name: value}); err != nil {
		return now, err
	}
	var names []string
	for _, k := range Catalogue() {
		switch {
		case !k.Live():
			continue
		case k.Name != name:
			names = append(names, k.Name)
			continue
		case now.Knobs[name] == value:
			return now, fmt.Errorf("%s is %s already", name, value)
		}
		knobs := maps.Clone(now.Knobs)
		if err := k.live(now.Stage, knobs, value); err != nil {
			return now, err
		}
		return Build(now.Stage, knobs, now.UnitCPU)
	}
	return now, fmt.Errorf("the knob %s cannot change while the system serves\nwant one of: %s", name,
		strings.Join(names, ", "))
}

// Catalogue lists all knobs, tier by tier. Knobs without a tier come last.
func Catalogue() []Knob {
	var all []Knob
	for _, t := range Tiers() {
		all = append(all, t.Knobs...)
	}
	return append(all, new(Logs).knobs()...)
}

// Logs is the settings of logs.
type Logs struct {
	Requests string // which requests are logged: "failed", "all" or "none"
}

// LogsOf returns the settings of logs.
func LogsOf(k sut.Knobs) Logs { return settings[Logs](k) }

func (l *Logs) knobs() []Knob {
	return []Knob{
		choice("log.requests", &l.Requests, "failed",
			"which requests web and balancer nodes log, with their ids", "all", "none"),
	}
}

// ParseKnobs reads "name=value" settings. An unknown name, a value out of range and a
// repeated name are errors. The error names the allowed names or values.
func ParseKnobs(settings []string) (sut.Knobs, error) {
	knobs := sut.Knobs{}
	for _, s := range settings {
		name, value, found := strings.Cut(s, "=")
		if !found {
			return nil, fmt.Errorf("knob %q: want name=value, for example lb.policy=least_conn", s)
		}
		if _, repeated := knobs[name]; repeated {
			return nil, fmt.Errorf("knob %s is set twice", name)
		}
		knobs[name] = value
	}
	return knobs, Validate(knobs)
}

// Validate checks names and values.
func Validate(k sut.Knobs) error {
	all := Catalogue()
	for _, name := range slices.Sorted(maps.Keys(k)) {
		i := slices.IndexFunc(all, func(known Knob) bool { return known.Name == name })
		if i < 0 {
			var names []string
			for _, known := range all {
				names = append(names, known.Name)
			}
			return fmt.Errorf("unknown knob %q: want one of %s", name, strings.Join(names, ", "))
		}
		if err := all[i].set(k[name]); err != nil {
			return fmt.Errorf("knob %s=%s: %w", name, k[name], err)
		}
	}
	return nil
}

// Complete returns a copy in which every knob that is not set has its default.
func Complete(k sut.Knobs) sut.Knobs {
	all := sut.Knobs{}
	for _, knob := range Catalogue() {
		all[knob.Name] = knob.Default
	}
	maps.Copy(all, k)
	return all
}

// settings reads settings from validated knobs. A knob that is not set has its default.
// settings panics on an invalid value, because only a bug can pass one.
func settings[T any, P interface {
	*T
	knobs() []Knob
}](k sut.Knobs) T {
	var s T
	for _, knob := range P(&s).knobs() {
		value := cmp.Or(k[knob.Name], knob.Default)
		if err := knob.set(value); err != nil {
			panic(fmt.Sprintf("ladder: knob %s=%s was not validated: %v", knob.Name, value, err))
		}
	}
	return s
}

// integer is a whole number from low to high.
func integer(name string, field *int, def, low, high int, doc string) Knob {
	k := Knob{Name: name, Default: strconv.Itoa(def), Range: fmt.Sprintf("%d..%d", low, high), Doc: doc}
	k.set = func(v string) error {
		n, err := strconv.Atoi(v)
		if err != nil || n < low || n > high {
			return fmt.Errorf("want a whole number from %d to %d", low, high)
		}
		*field = n
		return nil
	}
	return k
}

// number is a number from low to high.
func number(name string, field *float64, def, low, high float64, doc string) Knob {
	text := func(f float64) string { return strconv.FormatFloat(f, 'g', -1, 64) }
	return Knob{Name: name, Default: text(def), Range: text(low) + ".." + text(high), Doc: doc, set: func(v string) error {
		f, err := strconv.ParseFloat(v, 64)
		// f < low || f > high would accept NaN.
		if err != nil || !(f >= low && f <= high) {
			return fmt.Errorf("want a number from %s to %s", text(low), text(high))
		}
		*field = f
		return nil
	}}
}

// seconds is a duration, given as a number of seconds.
func seconds(name string, field *time.Duration, def, low, high float64, doc string) Knob {
	var f float64
	k := number(name, &f, def, low, high, doc)
	parse := k.set
	k.set = func(v string) error {
		err := parse(v)
		*field = time.Duration(f * float64(time.Second))
		return err
	}
	return k
}

// duration is a duration in Go's notation, from 0 to high.
func duration(name string, field *time.Duration, def, high time.Duration, doc string) Knob {
	return Knob{Name: name, Default: def.String(), Range: "0s.." + high.String(), Doc: doc, set: func(v string) error {
		d, err := time.ParseDuration(v)
		if err != nil || d < 0 || d > high {
			return fmt.Errorf("want a duration from 0s to %v, for example 200ms", high)
		}
		*field = d
		return nil
	}}
}

// Sizes is one number for each host. The last number applies to all further hosts.
type Sizes []float64

// At returns the number of the i-th host, from 0.
func (s Sizes) At(i int) float64 { return s[min(i, len(s)-1)] }

// sizes is a list of numbers from low to high.
func sizes(name string, field *Sizes, low, high float64, doc string) Knob {
	var one float64
	k := number(name, &one, 1, low, high, doc)
	parse := k.set
	k.Range += ", ..."
	k.set = func(v string) error {
		*field = nil
		for _, text := range strings.Split(v, ",") {
			if err := parse(text); err != nil {
				return fmt.Errorf("%w, or a list separated by commas", err)
			}
			*field = append(*field, one)
		}
		return nil
	}
	return k
}

// routes is a list of routes, parsed by sut.ParseRoutes.
func routes(name string, field *[]sut.Route, doc string) Knob {
	return Knob{Name: name, Range: "CONDITION... -> HOST...; ...", Doc: doc, set: func(v string) (err error) {
		*field, err = sut.ParseRoutes(v)
		return err
	}}
}

// choice is one word of a list: def or one of others.
func choice[T ~string](name string, field *T, def T, doc string, others ...T) Knob {
	values := []string{string(def)}
	for _, v := range others {
		values = append(values, string(v))
	}
	return oneOf(name, string(def), doc, values, func(v string) { *field = T(v) })
}

// truth is true or false.
func truth(name string, field *bool, def bool, doc string) Knob {
	values := []string{"true", "false"}
	return oneOf(name, strconv.FormatBool(def), doc, values, func(v string) { *field = v == "true" })
}

func oneOf(name, def, doc string, values []string, put func(string)) Knob {
	return Knob{Name: name, Default: def, Range: strings.Join(values, "|"), Doc: doc, set: func(v string) error {
		if !slices.Contains(values, v) {
			return fmt.Errorf("want one of %s", strings.Join(values, ", "))
		}
		put(v)
		return nil
	}}
}

// engine is the choice of a tier's engine. The first engine is the default.
func engine(role sut.Role, field *sut.Engine, engines []EngineInfo, doc string) Knob {
	var others []sut.Engine
	for _, e := range engines[1:] {
		others = append(others, e.Name)
	}
	return choice(string(role)+".engine", field, engines[0].Name, doc, others...)
}
