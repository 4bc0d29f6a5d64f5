package matrix

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

func read(t *testing.T, text string) *File {
	t.Helper()
	f, err := Read([]byte(text), "m.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func names(f *File) (all []string) {
	for _, c := range f.Cells {
		all = append(all, f.Name(c))
	}
	return all
}

func TestCellsAreTheProductOfTheAxes(t *testing.T) {
	f := read(t, `
stages: [single, lb]
engines: [embedded, native]
knobs: {web.gzip: [true, false]}
`)
	want := []string{
		"single read-heavy engines=embedded,web.gzip=true", "single read-heavy engines=embedded,web.gzip=false",
		"single read-heavy engines=native,web.gzip=true", "single read-heavy engines=native,web.gzip=false",
		"lb read-heavy engines=embedded,web.gzip=true", "lb read-heavy engines=embedded,web.gzip=false",
		"lb read-heavy engines=native,web.gzip=true", "lb read-heavy engines=native,web.gzip=false",
	}
	if diff := cmp.Diff(want, names(f)); diff != "" {
		t.Error(diff)
	}
	if f.Repeats != 3 || f.Seed != 1 || f.Data != "small" {
		t.Errorf("defaults %+v", f)
	}
}

func TestIncludeAndExclude(t *testing.T) {
	f := read(t, `
stages: [single, lb]
workloads: [read-heavy, write-heavy]
rates: [search, 100]
exclude:
  - {stage: single, rate: 100}
  - {workload: write-heavy, rate: [100, search], stage: lb}
include:
  - {stage: cache, rate: 50}
  - {stage: lb, workload: read-heavy, rate: 100, web.hosts: [1, 2]}
`)
	want := []string{
		"single read-heavy rate=search", "single write-heavy rate=search", "lb read-heavy rate=search",
		"lb read-heavy rate=100", "cache read-heavy rate=50", "cache write-heavy rate=50",
		"lb read-heavy rate=100,web.hosts=1", "lb read-heavy rate=100,web.hosts=2",
	}
	if diff := cmp.Diff(want, names(f)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"stage", "workload", "rate", "web.hosts"}, f.Varied()); diff != "" {
		t.Error(diff)
	}
}

func TestServices(t *testing.T) {
	text, err := os.ReadFile("testdata/services.yaml")
	if err != nil {
		t.Fatal(err)
	}
	f := read(t, string(text))
	if len(f.Cells) != 13 { // 2 targets x 2 workloads x 2 x 2, without 4, with 1
		t.Errorf("%d cells: %q", len(f.Cells), names(f))
	}
	s, ok := f.Service(f.Cells[0])
	if !ok || s.Name != "old" || s.Up != "./old-server --workers $WORKERS\n" || s.Wait.Seconds() != 90 {
		t.Errorf("service %+v, %v", s, ok)
	}
	if diff := cmp.Diff(map[string]string{"WORKERS": "2", "DEBUG": "true"}, f.Cells[0].Knobs()); diff != "" {
		t.Error(diff)
	}
	one := read(t, "target: {url: 'http://127.0.0.1:1/'}")
	if len(one.Cells) != 1 || one.Name(one.Cells[0]) != "target url" {
		t.Errorf("cells %q", names(one))
	}
}

// badFiles are files that Read refuses, and the errors. If schema is false, a schema cannot refuse them.
func badFiles() []struct {
	name, text, want string
	schema           bool
} {
	return []struct {
		name, text, want string
		schema           bool
	}{
		{"empty", "", "m.yaml: the file is empty", true},
		{"no stages", "repeats: 2", "m.yaml:1:1: no stages and no targets", true},
		{"a list", "- stages: [lb]", "m.yaml:1:1: ", true},
		{"unknown key", "stages: [lb]\nstage: lb", `m.yaml:2:1: unknown field "stage"`, true},
		{"unknown stage", "stages: [lb,\n  lbb]", `m.yaml:2:3: unknown stage "lbb": want one of single, db-split, lb`, true},
		{"stage twice", "stages: [lb, lb]", "m.yaml:1:14: stage lb is given twice", true},
		{"no value", "stages:\n  -", "m.yaml:2:5: no value", true},
		{"empty list", "stages: []", "m.yaml:1:9: an empty list", true},
		{"nested list", "stages: [[lb]]", "m.yaml:1:10: want one text or number, but got a list", true},
		{"unknown knob", "stages: lb\nknobs:\n  web.host: [1]", `m.yaml:3:3: unknown knob "web.host"`, true},
		{"unknown value", "stages: lb\nknobs: {lb.policy: [best]}", "m.yaml:2:21: knob lb.policy=best: want one of", true},
		{"value out of range", "stages: lb\nset: {web.hosts: 99}", "m.yaml:2:18: knob web.hosts=99: want a whole", false},
		{"several values in set", "stages: lb\nset: {web.hosts: [1, 2]}", "m.yaml:2:7: set web.hosts: want one value", true},
		{
			"knob in both", "stages: lb\nset: {web.hosts: 1}\nknobs: {web.hosts: [2]}",
			"m.yaml:3:9: knob web.hosts is also in set", false,
		},
		{"unknown engines", "stages: lb\nengines: [mixed]", `m.yaml:2:11: unknown engines "mixed"`, true},
		{"unknown driver", "stages: lb\ndrivers: k6", `m.yaml:2:10: unknown driver "k6": want one of vegeta`, true},
		{"rate 0", "stages: lb\nrates: [0]", "m.yaml:2:9: rate 0: want requests per second, from 1 to", true},
		{"rate NaN", "stages: lb\nrates: [.nan]", "m.yaml:2:9: rate .nan: want requests", true},
		{"no repeats", "stages: lb\nrepeats: 0", "m.yaml:2:10: repeats 0: want a whole number from 1 to 1000", true},
		{"half a repeat", "stages: lb\nrepeats: 1.5", "m.yaml:2:10: repeats 1.5: want a whole number", true},
		{"negative seed", "stages: lb\nseed: -1", "m.yaml:2:7: seed -1", true},
		{"unknown data", "stages: lb\ndata: huge", `m.yaml:2:7: unknown data "huge"`, true},
		{"bad objective", "stages: lb\nslo: fast", "m.yaml:2:6: slo: ", false},
		{"quick", "stages: lb\nquick: maybe", `m.yaml:2:8: unknown quick "maybe"`, true},
		{"short step", "stages: lb\nrates: 9\nduration: 5ms", "m.yaml:3:11: duration 5ms: want a time", false},
		{"no time", "stages: lb\nrates: 9\nduration: 5", "m.yaml:3:11: duration 5: want a time", true},
		{"no rate", "stages: lb\nduration: 5s", "m.yaml:2:11: duration is that of a fixed rate", false},
		{"two kinds", "stages: lb\ntarget: {url: 'http://[::1]/'}", "m.yaml:1:9: stages and targets exclude", true},
		{"no url", "targets: [{name: a}]", "m.yaml:1:18: target a has no url", true},
		{"target of a stage", "targets: [{name: lb, url: x}]", `m.yaml:1:18: target "lb"`, false},
		{"down alone", "target: {url: x, down: y}", "m.yaml:1:24: down without up", true},
		{"same targets", "targets: [{url: x}, {url: y}]", "m.yaml:1:27: target target is given twice", false},
		{"engines of targets", "target: {url: x}\nengines: native", "m.yaml:2:10: engines are for stages", true},
		{"name of a variable", "target: {url: x}\nknobs: {web.hosts: 1}", `m.yaml:2:9: knob "web.hosts"`, true},
		{"workload url", "stages: lb\nworkloads: url", `m.yaml:2:12: workload "url"`, true},
		{"exclude all", "stages: lb\nexclude: [{stage: lb}]", "m.yaml:1:1: every cell is excluded", false},
		{"exclude nothing", "stages: lb\nexclude: [{stage: single}]", "m.yaml:2:12: exclude: no cell has", false},
		{"exclude by no axis", "stages: lb\nexclude: [{web.hosts: 1}]", `m.yaml:2:12: exclude: "web.hosts" is no`, false},
		{"exclude a stage", "stages: lb\nexclude: [{stage: x}]", `m.yaml:2:19: unknown stage "x"`, true},
		{"include nothing new", "stages: lb\ninclude: [{stage: lb}]", "m.yaml:2:12: include: the matrix has", false},
		{"include unknown", "stages: lb\ninclude: [{colour: red}]", `m.yaml:2:12: unknown knob "colour"`, true},
		{"include empty", "stages: lb\ninclude: [{}]", "m.yaml:2:11: include: an empty entry", true},
		{"knob twice", "stages: lb\nset:\n  web.hosts: 1\n  web.hosts: 2", "m.yaml:4:3: ", true},
		{"unknown axis", "stages: lb\ntables: [{rows: web.hosts}]", `m.yaml:2:17: unknown axis "web.hosts"`, false},
		{"same axis", "stages: lb\ntables: [{rows: stage, columns: stage}]", "m.yaml:2:17: rows and columns", false},
		{"unknown figure", "stages: lb\ntables: [{figure: p42}]", `m.yaml:2:19: unknown figure "p42"`, true},
		{"too many", "stages: lb\nrates: [" + many(10_001) + "]", "m.yaml:1:1: more than 10000 cells", false},
	}
}

// many returns the numbers from 1 to n, separated by commas.
func many(n int) string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprint(i+1))
	}
	return strings.Join(all, ",")
}

func TestErrorsNameLineAndColumn(t *testing.T) {
	for _, test := range badFiles() {
		t.Run(test.name, func(t *testing.T) {
			_, err := Read([]byte(test.text), "m.yaml")
			if err == nil || !strings.HasPrefix(err.Error(), test.want) {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
	_, err := Read([]byte("stages: [lb]\nrepeats: x\nrates: [y]"), "m.yaml")
	want := "m.yaml:2:10: repeats x: want a whole number from 1 to 1000\n" +
		"m.yaml:3:9: rate y: want requests per second, from 1 to 1000000, or search"
	if err == nil || err.Error() != want {
		t.Errorf("all problems: got %v, want %s", err, want)
	}
}

// The schema accepts the examples, and refuses what the parser refuses as far as a schema can.
func TestSchema(t *testing.T) {
	text, err := json.Marshal(Schema())
	if err != nil {
		t.Fatal(err)
	}
	decoded, err := jsonschema.UnmarshalJSON(strings.NewReader(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("matrix.json", decoded); err != nil {
		t.Fatal(err)
	}
	schema, err := compiler.Compile("matrix.json") // also checks it against the schema of schemas
	if err != nil {
		t.Fatal(err)
	}
	validate := func(t *testing.T, text []byte) error {
		t.Helper()
		converted, err := yaml.YAMLToJSON(text)
		if err != nil {
			return err
		}
		document, err := jsonschema.UnmarshalJSON(strings.NewReader(string(converted)))
		if err != nil {
			return err // there is no NaN in JSON
		}
		return schema.Validate(document)
	}
	examples, err := filepath.Glob("testdata/*.yaml")
	examples = append(examples, "../../../docs/matrix.yaml")
	if err != nil || len(examples) != 3 {
		t.Fatalf("examples %q, %v", examples, err)
	}
	for _, example := range examples {
		text, err := os.ReadFile(example)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Read(text, example); err != nil {
			t.Error(err)
		}
		if err := validate(t, text); err != nil {
			t.Errorf("%s: %v", example, err)
		}
	}
	for _, test := range badFiles() {
		if err := validate(t, []byte(test.text)); test.schema != (err != nil) {
			t.Errorf("%s: the schema says %v, and refuses it should be %v", test.name, err, test.schema)
		}
	}
}

func TestOrderIsBalanced(t *testing.T) {
	for _, repeats := range []int{1, 2, 3, 5} {
		for seed := range 20 {
			f := read(t, fmt.Sprintf(`
stages: [single, db-split, lb, replicas]
workloads: [read-heavy, write-heavy]
engines: [embedded, native]
knobs: {web.gzip: [true, false]}
repeats: %d
seed: %d
`, repeats, seed))
			order := f.Order()
			middle := float64(len(order)-1) / 2
			sums, counts := map[string]float64{}, map[string]float64{}
			seen := map[Unit]bool{}
			for at, u := range order {
				seen[u] = true
				for axis, value := range f.Cells[u.Cell] {
					sums[axis+"="+value] += float64(at)
					counts[axis+"="+value]++
				}
			}
			if len(order) != 32*repeats || len(seen) != len(order) {
				t.Fatalf("%d units, %d different ones", len(order), len(seen))
			}
			for value, sum := range sums {
				if mean := sum / counts[value]; math.Abs(mean-middle) > 0.1*middle {
					t.Errorf("repeats %d, seed %d: %s is at %.1f on average, and the middle is %.1f",
						repeats, seed, value, mean, middle)
				}
			}
			if again := f.Order(); !slices.Equal(order, again) {
				t.Error("two orders of one file differ")
			}
		}
	}
}

func TestOrderHasOneRepeatOfEachCellInAPass(t *testing.T) {
	f := read(t, "stages: [single, db-split, lb, replicas, cache, cdn, stateless]\nrepeats: 4")
	order := f.Order()
	var first []int
	for pass := range f.Repeats {
		var cells []int
		for _, u := range order[pass*7 : pass*7+7] {
			if u.Repeat != pass {
				t.Errorf("pass %d has repeat %d", pass, u.Repeat)
			}
			cells = append(cells, u.Cell)
		}
		switch {
		case pass == 0:
			first = slices.Clone(cells)
		case pass == 1:
			slices.Reverse(cells)
			if !slices.Equal(first, cells) {
				t.Errorf("the second pass is no reverse of the first: %v, %v", first, cells)
			}
		}
		if slices.Sort(cells); !slices.Equal(cells, []int{0, 1, 2, 3, 4, 5, 6}) {
			t.Errorf("pass %d has cells %v", pass, cells)
		}
	}
}

func FuzzRead(f *testing.F) {
	for _, name := range []string{"caches.yaml", "services.yaml"} {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	for _, bad := range badFiles() {
		if len(bad.text) < 1000 {
			f.Add([]byte(bad.text))
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		file, err := Read(text, "m.yaml")
		if err == nil && (len(file.Cells) == 0 || file.Repeats < 1) {
			t.Errorf("accepted without cells: %+v", file)
		}
	})
}
