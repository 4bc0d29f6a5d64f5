package file_test

import (
	"fmt"
	"math"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/file"
)

func shop(t testing.TB, seed uint64) workloads.Workload {
	t.Helper()
	text, err := os.ReadFile("testdata/shop.yaml")
	if err != nil {
		t.Fatal(err)
	}
	w, err := file.Read(text, "shop.yaml", fstest.MapFS{}, seed)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func Example() {
	text, err := os.ReadFile("testdata/shop.yaml")
	if err != nil {
		panic(err)
	}
	w, err := file.Read(text, "shop.yaml", os.DirFS("testdata"), 1)
	if err != nil {
		panic(err)
	}
	for n := range uint64(4) {
		op := w.Op(n)
		line := fmt.Sprint(op.Class, " ", op.Method, " ", op.Path, " ", string(op.Body), " ", op.Header["X-Order"])
		fmt.Println(strings.TrimSpace(line))
	}
	// Output:
	// browse GET /items/1045?page=8&colour=deep+blue
	// buy POST /cart/deep%20blue {"item": 5940, "user": 49, "note": "{item}", "tags": {"n": 1}} o-2
	// browse GET /items/812?page=3&colour=red
	// buy POST /cart/red {"item": 1379, "user": 55, "note": "{item}", "tags": {"n": 3}} o-4
}

// The same file and seed give the same ops; another seed gives other ops.
func TestDeterminism(t *testing.T) {
	hash := func(seed uint64) string { return workloads.Hash(shop(t, seed), 0, 1000) }
	if a, b, c := hash(7), hash(7), hash(8); a != b || a == c {
		t.Errorf("hashes %s and %s for seed 7, %s for seed 8", a, b, c)
	}
}

// Classes follow their weights, and keys follow their distributions.
func TestShares(t *testing.T) {
	const n = 200_000
	w := shop(t, 3)
	classes, items := map[workloads.Class]int{}, map[string]int{}
	for i := range uint64(n) {
		op := w.Op(i)
		classes[op.Class]++
		if op.Class == "browse" {
			item, _, _ := strings.Cut(op.Path, "?")
			items[item]++
		}
		if op.User < 0 || op.User >= 100 {
			t.Fatalf("user %d of 100", op.User)
		}
	}
	if got := float64(classes["buy"]) / n; math.Abs(got-0.2) > 0.005 {
		t.Errorf("buy has a share of %.4f, want 0.2", got)
	}
	var zeta float64
	for rank := 1.0; rank <= 10_000; rank++ {
		zeta += math.Pow(rank, -0.99)
	}
	most := 0
	for _, count := range items {
		most = max(most, count)
	}
	if got, want := float64(most)/float64(classes["browse"]), 1/zeta; math.Abs(got-want) > 0.1*want {
		t.Errorf("the hottest item has a share of %.4f, want %.4f", got, want)
	}
}

func TestLogin(t *testing.T) {
	if _, ok := shop(t, 1).(workloads.Login); ok {
		t.Error("a workload without a login implements workloads.Login")
	}
	text := "users: 5\nlogin: {method: POST, path: /in, body: 'user={user}'}\nops: [{class: me, path: /me}]\n"
	w, err := file.Read([]byte(text), "dir/site.yaml", fstest.MapFS{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	op := w.(workloads.Login).LoginOp(3)
	if op.Class != "login" || string(op.Body) != "user=3" || op.User != 3 || !op.Write || w.Name() != "site" {
		t.Errorf("%s: login op %+v", w.Name(), op)
	}
}

func TestBodyFile(t *testing.T) {
	text := "ops: [{class: put, method: PUT, path: /x, body_file: data/picture, body_rate: 100}]"
	w, err := file.Read([]byte(text), "f.yaml", fstest.MapFS{"data/picture": {Data: []byte("{item}\x00")}}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if op := w.Op(0); string(op.Body) != "{item}\x00" || op.BodyRate != 100 || op.User != -1 {
		t.Errorf("op %+v: want the unchanged content of the file", op)
	}
}

// A text is sent as it is written, where YAML would make a number or a truth value of it. Numbers stay numbers.
func TestTextsAreTakenAsWritten(t *testing.T) {
	const text = `
users: 1_000
header: &common {X-Version: 1.10, X-Shop: 010, X-Flag: True, X-Quoted: "1.10", From: 0x1F, X-Tag: !!str 1.10}
keys: {k: {kind: choice, values: [007]}}
ops:
  - class: one
    weight: 1.50
    path: /v/{k}
    body: 1e3
    header: *common
    check: {status: [0xC8], contains: [.5], min_bytes: 1_0}
  - {class: two, weight: 0x10, path: /, header: {<<: *common, X-Shop: -0}}
`
	w, err := file.Read([]byte(text), "f.yaml", fstest.MapFS{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	ops := map[workloads.Class]workloads.Op{}
	for n := range uint64(1000) {
		ops[w.Op(n).Class] = w.Op(n)
	}
	one, two := ops["one"], ops["two"]
	want := map[string]string{
		"X-Version": "1.10", "X-Shop": "010", "X-Flag": "True", "X-Quoted": "1.10", "From": "0x1F", "X-Tag": "1.10",
	}
	if diff := cmp.Diff(want, one.Header); diff != "" {
		t.Errorf("headers (-want +got)\n%s", diff)
	}
	want["X-Shop"] = "-0"
	if diff := cmp.Diff(want, two.Header); diff != "" {
		t.Errorf("merged headers (-want +got)\n%s", diff)
	}
	if one.Path != "/v/007" || string(one.Body) != "1e3" || w.Users() != 1000 {
		t.Errorf("path %s, body %s, %d users", one.Path, one.Body, w.Users())
	}
	if c := one.Check; c.Status[0] != 200 || c.Contains[0] != ".5" || c.MinBytes != 10 {
		t.Errorf("check %+v, want status 200, text .5 and 10 bytes", c)
	}
}

// Paths are encoded as a request line needs it.
func TestPathsAreEncoded(t *testing.T) {
	text := "keys: {k: {kind: choice, values: ['a b']}}\nops: [{class: find, path: '/zwei Wörter/{k}?q=two words&r={k}'}]"
	w, err := file.Read([]byte(text), "f.yaml", fstest.MapFS{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := w.Op(0).Path, "/zwei%20W%C3%B6rter/a%20b?q=two%20words&r=a+b"; got != want {
		t.Errorf("path %s, want %s", got, want)
	}
}

// A sequence may start below zero, and it does not overflow at the largest int64.
func TestSequence(t *testing.T) {
	for key, want := range map[string]string{
		"from: -2":         "/-2 /-1 /0 /1 /2 /3",
		"from: -2, to: 0":  "/-2 /-1 /0 /-2 /-1 /0",
		"from: -9, to: -8": "/-9 /-8 /-9 /-8 /-9 /-8",
		"from: 9223372036854775806": "/9223372036854775806 /9223372036854775807 /9223372036854775808 " +
			"/9223372036854775809 /9223372036854775810 /9223372036854775811",
	} {
		text := "keys: {item: {kind: sequence, " + key + "}}\nops: [{class: get, path: '/{item}'}]"
		w, err := file.Read([]byte(text), "f.yaml", fstest.MapFS{}, 1)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for n := range uint64(6) {
			got = append(got, w.Op(n).Path)
		}
		if diff := cmp.Diff(want, strings.Join(got, " ")); diff != "" {
			t.Errorf("%s (-want +got)\n%s", key, diff)
		}
	}
}

// The newest value of kind latest is the hottest. The first values of kind hotspot get their fraction of the ops.
func TestHotValues(t *testing.T) {
	const ops, zeta = 100_000, 1 + 1/2. + 1/3. + 1/4. // of four values with theta 1
	for _, test := range []struct {
		key  string
		want map[string]float64 // share by path
	}{
		{"{kind: latest, theta: 1, from: 6, to: 9}", map[string]float64{
			"/9": 1 / zeta, "/8": 1 / 2. / zeta, "/7": 1 / 3. / zeta, "/6": 1 / 4. / zeta,
		}},
		{"{kind: hotspot, from: 1, to: 5}", map[string]float64{"/1": 0.8, "/2": 0.05, "/3": 0.05, "/4": 0.05, "/5": 0.05}},
		{"{kind: hotspot, hot_keys: 0.5, hot_ops: 0.9, from: -1, to: 2}", map[string]float64{
			"/-1": 0.45, "/0": 0.45, "/1": 0.05, "/2": 0.05,
		}},
		{"{kind: hotspot, hot_keys: 0.01, hot_ops: 0.3, from: 1, to: 2}", map[string]float64{"/1": 0.3, "/2": 0.7}},
		{"{kind: hotspot, hot_keys: 0.99, hot_ops: 0.3, from: 1, to: 2}", map[string]float64{"/1": 0.3, "/2": 0.7}},
		{"{kind: hotspot, from: 3, to: 3}", map[string]float64{"/3": 1}},
	} {
		w, err := file.Read([]byte("keys: {k: "+test.key+"}\nops: [{class: get, path: '/{k}'}]"), "f.yaml", fstest.MapFS{}, 5)
		if err != nil {
			t.Fatal(err)
		}
		counts := map[string]int{}
		for n := range uint64(ops) {
			counts[w.Op(n).Path]++
		}
		for path, count := range counts {
			p := test.want[path]
			if got := float64(count) / ops; math.Abs(got-p) > 3.3*math.Sqrt(p*(1-p)/ops) {
				t.Errorf("%s: %s has a share of %.4f, want %.4f", test.key, path, got, p)
			}
		}
		if len(counts) != len(test.want) {
			t.Errorf("%s: %d values, want %d", test.key, len(counts), len(test.want))
		}
	}
}

// Each error gives line and column, and the accepted values.
func TestProblems(t *testing.T) {
	for _, test := range append(problems(), keyProblems(), allProblems()) {
		t.Run(test.name, func(t *testing.T) {
			_, err := file.Read([]byte(test.text), "f.yaml", fstest.MapFS{}, 1)
			if err == nil {
				t.Fatal("no error")
			}
			if diff := cmp.Diff(test.want, err.Error()); diff != "" {
				t.Errorf("error (-want +got)\n%s", diff)
			}
		})
	}
}

// invalidFile is an invalid workload file and the expected error.
type invalidFile struct{ name, text, want string }

func problems() []invalidFile {
	return []invalidFile{
		{"not YAML", "ops: [", `f.yaml:1:6: sequence end token ']' not found`},
		{
			"unknown field", "ops:\n  - class: a\n    pth: /\n",
			"f.yaml:3:5: unknown field \"pth\"\nsee: go doc github.com/stagebench/stagebench/workloads/file",
		},
		{
			"phases", "phases:\n  - {for: soon, rate: 5}\n  - {for: 1s, rate: -1}\nops: [{class: a, path: /}]\n",
			"f.yaml:2:11: for \"soon\": want the length of the phase, such as 30s\n    - {for: soon, rate: 5}\n" +
				"f.yaml:3:5: rate -1 to -1: want 0 to 1000000 requests per second\n    - {for: 1s, rate: -1}",
		},
		{
			"phases without ops", "phases: [{for: 1s, rate: 0}]\nops: [{class: a, path: /}]\n",
			"f.yaml:1:9: the rates of all phases are 0: want one of at least 0.1 requests per second\n" +
				"    phases: [{for: 1s, rate: 0}]",
		},
		{
			"wrong type", "users: many\nops: [{class: a, path: /}]",
			`f.yaml:1:8: want a whole number, but got a text`,
		},
		{
			"wrong type of a weight", "ops: [{class: a, path: /, weight: [1]}]",
			`f.yaml:1:35: want a number, but got a list`,
		},
		{"duplicate field", "users: 1\nusers: 2\n", `f.yaml:2:1: mapping key "users" already defined at [1:1]`},
		{"no ops", "name: x\n", "f.yaml:1:1: no ops: want at least one, with class, weight and path\n    name: x"},
		{
			"body file", "ops: [{class: a, path: /, body_file: ../x}]",
			"f.yaml:1:38: body_file: open ../x: file does not exist\n    ops: [{class: a, path: /, body_file: ../x}]",
		},
		{
			"rate without a body", "ops: [{class: a, path: /, body_rate: 5}]",
			"f.yaml:1:38: body_rate without a body: add body or body_file, or remove body_rate\n" +
				"    ops: [{class: a, path: /, body_rate: 5}]",
		},
		{
			"login", "login: {path: /, weight: 1}\nops: [{class: a, path: /}]",
			"f.yaml:1:8: login must not set weight or a class other than login: it is sent when a user needs a session\n" +
				"    login: {path: /, weight: 1}\n" +
				"f.yaml:1:8: login without users: set users to 1 or more\n    login: {path: /, weight: 1}",
		},
	}
}

// keyProblems is a file whose keys have fields of other kinds, and values that are out of range.
func keyProblems() invalidFile {
	return invalidFile{"keys", `ops: [{class: a, path: /}]
keys:
  a: {kind: uniform, from: 1, to: 9, theta: 1}
  b: {kind: latest, from: 1, to: 9, scramble: true, hot_keys: 0.1}
  c: {kind: zipfian, from: 1, to: 9, hot_ops: 0.9}
  d: {kind: latest, from: 1}
  e: {kind: hotspot, from: 1, to: 9, theta: 1, hot_keys: 0, hot_ops: .nan}
  f: {kind: hotspot, from: 1, to: 9, hot_keys: 20, hot_ops: 1}
  g: {kind: latest, from: 1, to: 9, theta: 11}
  h: {kind: hotspot, from: 1, to: 2000000000000}
`, `f.yaml:3:45: key a: theta is only for kind: zipfian or latest
    a: {kind: uniform, from: 1, to: 9, theta: 1}
f.yaml:4:47: key b: scramble is only for kind: zipfian
    b: {kind: latest, from: 1, to: 9, scramble: true, hot_keys: 0.1}
f.yaml:4:63: key b: hot_keys is only for kind: hotspot
    b: {kind: latest, from: 1, to: 9, scramble: true, hot_keys: 0.1}
f.yaml:5:47: key c: hot_ops is only for kind: hotspot
    c: {kind: zipfian, from: 1, to: 9, hot_ops: 0.9}
f.yaml:6:6: key d: want from and to, with to >= from
    d: {kind: latest, from: 1}
f.yaml:7:45: key e: theta is only for kind: zipfian or latest
    e: {kind: hotspot, from: 1, to: 9, theta: 1, hot_keys: 0, hot_ops: .nan}
f.yaml:7:58: key e: hot_keys 0: want a fraction between 0 and 1, for example 0.2
    e: {kind: hotspot, from: 1, to: 9, theta: 1, hot_keys: 0, hot_ops: .nan}
f.yaml:7:70: key e: hot_ops NaN: want a fraction between 0 and 1, for example 0.8
    e: {kind: hotspot, from: 1, to: 9, theta: 1, hot_keys: 0, hot_ops: .nan}
f.yaml:8:48: key f: hot_keys 20: want a fraction between 0 and 1, for example 0.2
    f: {kind: hotspot, from: 1, to: 9, hot_keys: 20, hot_ops: 1}
f.yaml:8:61: key f: hot_ops 1: want a fraction between 0 and 1, for example 0.8
    f: {kind: hotspot, from: 1, to: 9, hot_keys: 20, hot_ops: 1}
f.yaml:9:6: key g: theta 11: want more than 0 and at most 10, for example 0.99
    g: {kind: latest, from: 1, to: 9, theta: 11}
f.yaml:10:6: key h: 2000000000000 keys: want 1 to 1099511627776
    h: {kind: hotspot, from: 1, to: 2000000000000}`}
}

// allProblems is a file with many problems. The error must list all of them in file order.
func allProblems() invalidFile {
	return invalidFile{"all problems", `users: -1
keys:
  item: {kind: zipf, from: 1, to: 9}
  Item: {kind: uniform, from: 1, to: 9}
  day: {kind: uniform, from: 9, to: 1}
  hot: {kind: zipfian, from: 1, to: 9, theta: -1}
  word: {kind: choice}
ops:
  - class: a b
    weight: 0
    path: items/{itm}
  - class: b
    method: fetch
    path: /%zz
    body: x
    body_file: ../secret
    check: {status: [99], matches: ['('], min_bytes: 5, max_bytes: 2}
  - class: b
    weight: 1
    path: /
    header: {"X Y": z}
    body_rate: -1
`, `f.yaml:1:8: users -1: want 0 to 1000000
    users: -1
f.yaml:3:16: key item: kind "zipf": want zipfian, latest, hotspot, uniform, sequence or choice
    item: {kind: zipf, from: 1, to: 9}
f.yaml:4:9: key "Item": want a name of lower-case letters, digits, _ and -; user and n are reserved
    Item: {kind: uniform, from: 1, to: 9}
f.yaml:5:8: key day: want from and to, with to >= from
    day: {kind: uniform, from: 9, to: 1}
f.yaml:6:8: key hot: theta -1: want more than 0 and at most 10, for example 0.99
    hot: {kind: zipfian, from: 1, to: 9, theta: -1}
f.yaml:7:9: key word: kind: choice needs values, without from and to
    word: {kind: choice}
f.yaml:9:12: class "a b": want letters, digits, - and _
    - class: a b
f.yaml:10:13: weight 0: want more than 0, or leave the op out
    weight: 0
f.yaml:11:11: unknown key {itm}: want one of user, n, Item, day, hot, item, word; for the literal text write {{itm}}
    path: items/{itm}
f.yaml:11:11: path "items/{itm}": want a path that starts with a slash
    path: items/{itm}
f.yaml:12:10: op b has no weight: want its share of all ops, relative to the other weights
    - class: b
f.yaml:13:13: method "fetch": want an HTTP method such as GET
    method: fetch
f.yaml:14:11: path "/%zz": invalid URL escape "%zz"
    path: /%zz
f.yaml:16:16: body and body_file cannot be used together
    body_file: ../secret
f.yaml:17:12: min_bytes 5, max_bytes 2: want 0 or more, with max_bytes >= min_bytes
    check: {status: [99], matches: ['('], min_bytes: 5, max_bytes: 2}
f.yaml:17:22: status 99: want 100 to 599
    check: {status: [99], matches: ['('], min_bytes: 5, max_bytes: 2}
f.yaml:17:37: error parsing regexp: missing closing ): ` + "`(`" + `
    check: {status: [99], matches: ['('], min_bytes: 5, max_bytes: 2}
f.yaml:18:12: class b is used twice: want a unique class per op
    - class: b
f.yaml:21:21: header X Y: "z": want a valid header name and value
    header: {"X Y": z}
f.yaml:22:16: body_rate -1: want bytes per second, or 0 for no limit
    body_rate: -1`}
}

func FuzzRead(f *testing.F) {
	text, err := os.ReadFile("testdata/shop.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("users: 5\nlogin: {method: POST, path: '/{user}'}\n" +
		"ops: [{class: a, path: '/{n}?{{x}}', header: {A: '{n}'}}]"))
	f.Add([]byte("a: &a [*a]\nops: [{class: a, path: /, check: {status: [1e3]}}]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		w, err := file.Read(text, "f.yaml", fstest.MapFS{"f": {Data: []byte("x")}}, 1)
		if err != nil {
			return
		}
		for _, n := range []uint64{0, 1, math.MaxUint64} {
			if op := w.Op(n); op.Class == "" || op.Method == "" || !strings.HasPrefix(op.Path, "/") {
				t.Fatalf("op %+v", op)
			}
		}
		if login, ok := w.(workloads.Login); ok {
			login.LoginOp(0)
		}
	})
}

func BenchmarkOp(b *testing.B) {
	w := shop(b, 1)
	b.ReportAllocs()
	for n := uint64(0); b.Loop(); n++ {
		w.Op(n)
	}
}
