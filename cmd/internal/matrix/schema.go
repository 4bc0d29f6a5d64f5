package matrix

import (
	"strings"

	"github.com/stagebench/stagebench/results/pivot"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/workloads/pace"
)

// object is a JSON object of a schema.
type object map[string]any

// Schema returns the JSON Schema (draft 2020-12) of a matrix file, with the stages and knobs of this release. It
// accepts every file that Read accepts. Read refuses more: conflicts between values, names of files, and what is given
// twice in different places.
func Schema() map[string]any {
	ours := object{"required": []string{"stages"}, "properties": object{
		"target": false, "targets": false,
		"workloads": oneOrMore(object{"type": "string", "not": object{"const": URL}}),
		"knobs":     knobs(oneOrMore), "set": knobs(one), "include": entries(true), "exclude": entries(true),
	}}
	theirs := object{"anyOf": []any{object{"required": []string{"target"}}, object{"required": []string{"targets"}}}}
	theirs["properties"] = object{
		"stages": false, "engines": false, "knobs": variables(oneOrMore), "set": variables(one),
		"include": entries(false), "exclude": entries(false),
	}
	theirs["not"] = object{"required": []string{"target", "targets"}}
	return object{
		"$schema": "https://json-schema.org/draft/2020-12/schema",
		"title":   "stagebench matrix file",
		"type":    "object", "additionalProperties": false, "oneOf": []any{ours, theirs},
		"properties": object{
			"stages":    described("stages of the ladder", oneOrMore(object{"enum": stageNames()})),
			"target":    described("a service of the user", serviceSchema()),
			"targets":   described("services of the user", object{"type": "array", "minItems": 1, "items": serviceSchema()}),
			"workloads": described("names, FILE.yaml or trace:FILE", oneOrMore(object{"type": "string", "minLength": 1})),
			"engines":   described("embedded or native servers", oneOrMore(object{"enum": engineSets()})),
			"drivers":   described("load generators", oneOrMore(object{"enum": drivers()})),
			"knobs":     described("axes of knobs", object{"type": "object"}),
			"rates":     described("requests per second, or search for the capacity", oneOrMore(rates())),
			"repeats":   described("measurements of each cell", whole(1, maxRepeats)),
			"include":   object{"type": "array"}, "exclude": object{"type": "array"},
			"set": described("knobs of all cells", object{"type": "object"}), "seed": whole(0, maxSeed),
			"data": object{"enum": sut.DataSizes()}, "slo": described("objective", object{"type": "string"}),
			"quick":       described("short steps", object{"enum": []any{true, false, "true", "false"}}),
			"connections": whole(1, maxConnections), "reference": number(1, pace.MaxRate),
			"duration": described("of the step at a fixed rate", timeSchema()),
			"tables": object{"type": "array", "items": object{
				"type": "object", "additionalProperties": false, "properties": object{
					"rows": object{"type": "string"}, "columns": object{"type": "string"},
					"figure": object{"enum": pivot.Names()},
				},
			}},
		},
	}
}

func described(what string, o object) object {
	o["description"] = what
	return o
}

// oneOrMore is a value or a list of different values.
func oneOrMore(item object) object {
	return object{"anyOf": []any{
		item, object{"type": "array", "minItems": 1, "uniqueItems": true, "items": item},
	}}
}

// one is the value itself.
func one(item object) object { return item }

// textOr is a value, or the text of one: quotes make no difference.
func textOr(pattern string, o object) object {
	return object{"anyOf": []any{o, object{"type": "string", "pattern": pattern}}}
}

func whole(low, high int) object {
	return textOr(`^[0-9]+$`, object{"type": "integer", "minimum": low, "maximum": high})
}

func number(low, high float64) object {
	return textOr(`^[0-9.eE+-]+$`, object{"type": "number", "minimum": low, "maximum": high})
}

func rates() object {
	return object{"anyOf": []any{object{"const": Search}, number(1, pace.MaxRate)}}
}

func timeSchema() object {
	return object{"type": "string", "pattern": `^\+?([0-9.]+(ns|us|µs|μs|ms|s|m|h))+$`}
}

func serviceSchema() object {
	text := object{"type": "string"}
	return object{
		"type": "object", "additionalProperties": false, "required": []string{"url"},
		"dependentRequired": object{"down": []string{"up"}},
		"properties": object{
			"name": object{"type": "string", "pattern": serviceName}, "url": object{"type": "string", "format": "uri"},
			"up": text, "down": text, "ready": text, "wait": timeSchema(),
		},
	}
}

// scalarValue is any text, number or boolean.
func scalarValue() object { return object{"type": []string{"string", "number", "boolean"}} }

// knobValues returns the values of a knob as far as its range says them.
func knobValues(k ladder.Knob) object {
	if !strings.Contains(k.Range, "|") {
		return scalarValue()
	}
	var values []any
	for _, v := range strings.Split(k.Range, "|") {
		values = append(values, v)
	}
	if k.Range == "true|false" {
		values = append(values, true, false)
	}
	return object{"enum": values}
}

// knobs is a mapping from the knobs of the ladder to their values.
func knobs(wrap func(object) object) object {
	all := object{}
	for _, k := range ladder.Catalogue() {
		all[k.Name] = described(k.Doc, wrap(knobValues(k)))
	}
	return object{"type": "object", "additionalProperties": false, "properties": all}
}

// variables is a mapping from environment variables to values.
func variables(wrap func(object) object) object {
	return object{
		"type": "object", "additionalProperties": wrap(scalarValue()),
		"propertyNames": object{"pattern": variable, "not": object{"enum": fixedAxes()}},
	}
}

// entries is include or exclude: a list of mappings from axes to values.
func entries(ours bool) object {
	axes := object{Workload: oneOrMore(object{"type": "string"}), Driver: oneOrMore(object{"enum": drivers()})}
	axes[Rate] = oneOrMore(rates())
	if ours {
		axes[Stage], axes[Engines] = oneOrMore(object{"enum": stageNames()}), oneOrMore(object{"enum": engineSets()})
		for _, k := range ladder.Catalogue() {
			axes[k.Name] = oneOrMore(knobValues(k))
		}
	} else {
		axes[Target] = oneOrMore(object{"type": "string"})
	}
	item := object{"type": "object", "minProperties": 1, "properties": axes}
	if ours {
		item["additionalProperties"] = false
	} else {
		item["additionalProperties"] = oneOrMore(scalarValue())
	}
	return object{"type": "array", "items": item}
}
