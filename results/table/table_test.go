package table

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/results"
)

func TestMilliseconds(t *testing.T) {
	for ns, want := range map[int64]string{
		0: "0", 1: "0.00000100", 12_345: "0.0123", 999_500: "1.00", 1_000_000: "1.00", 9_996_000: "10.0",
		12_300_000: "12.3", 123_456_000: "123", 999_600_000: "1,000", 1_234_567_000: "1,230",
		60_000_000_000: "60,000", -1_500_000: "-1.50",
	} {
		if got := Milliseconds(ns); got != want {
			t.Errorf("%d ns is %q, want %q", ns, got, want)
		}
	}
}

func TestFigures(t *testing.T) {
	for _, test := range []struct {
		cell Cell
		want string
	}{
		{Count(0), "0"},
		{Count(999), "999"},
		{Count(-1_234_567), "-1,234,567"},
		{Rate(0.5), "0.5"},
		{Rate(12.345), "12.3"},
		{Rate(500.04), "500"},
		{Rate(999.7), "1,000"},
		{Rate(1_234.5), "1,234"},
		{Number(6), "6"},
		{Number(0.1), "0.1"},
		{Number(math.NaN()), "NaN"},
		{Share(0), "0%"},
		{Share(0.00012), "0.012%"},
		{Share(0.0203), "2%"},
		{Share(0.0994), "9.9%"},
		{Share(0.0996), "10%"},
		{Share(0.934), "93%"},
		{Share(12.5), "1,250%"},
		{YesNo(true), "yes"},
		{YesNo(false), "NO"},
		{Blank("why"), "-"},
	} {
		if test.cell.Text != test.want {
			t.Errorf("%v is %q, want %q", test.cell.Value, test.cell.Text, test.want)
		}
	}
}

func TestNotesAreSharedAndNumberedInReadingOrder(t *testing.T) {
	table := Table{
		Columns: []Column{{Name: "a"}, {Name: "b"}},
		Rows: [][]Cell{
			{Text("1").With("second"), Text("2").With("first", "second", "of all")},
			{Blank("first"), Text("3").With("third", "third", "of all")},
		},
	}
	want := ` a      b
────────────────
 1 [1]  2 [1,2]
 - [2]  3 [3]
 [1] second
 [2] first
 [3] third
 all rows, b: of all
`
	if diff := cmp.Diff(want, renderOne(t, table, FormatText)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	var decoded struct{ Rows []struct{ Notes []string } }
	if err := json.Unmarshal([]byte(renderOne(t, table, FormatJSON)), &decoded); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"third", "of all"}, decoded.Rows[1].Notes[1:]); diff != "" {
		t.Errorf("notes in JSON (-want +got):\n%s", diff)
	}
	if table.Rows[0][0].Text != "1" {
		t.Error("rendering changed the table")
	}
}

// A column that is empty in all rows for the same reason leaves only the reason.
func TestAnEmptyColumnLeavesItsReason(t *testing.T) {
	table := Table{
		Columns: []Column{{Name: "a"}, {Name: "p99\nms"}, {Name: "p99.9"}, {Name: "c"}},
		Rows: [][]Cell{
			{Text("1"), Blank("too few samples"), Blank("too few samples"), Blank("too few samples")},
			{Text("2"), Blank("too few samples"), Blank("too few samples"), Blank("too few samples", "and late")},
		},
	}
	want := ` a  c
──────────
 1  -
 2  - [1]
 [1] and late
 all rows, c: too few samples
 p99 ms, p99.9: too few samples
`
	if diff := cmp.Diff(want, renderOne(t, table, FormatText)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// In a narrow terminal, words are not broken: what does not fit goes into a second table.
func TestWordsAreNotBroken(t *testing.T) {
	t.Parallel()
	const address, long = "127.138.162.10:36363", "a text of many words that is wrapped where it has to be wrapped"
	nodes := Table{
		Title:   "Nodes",
		Columns: []Column{{Name: "node", Row: true}, {Name: "address"}, {Name: "other address"}, {Name: "last death"}},
		Rows:    [][]Cell{{Text("db-1"), Text(address), Text(address), Text(long)}},
	}
	for width := 40; width <= 120; width++ {
		var out strings.Builder
		if err := Render(&out, Style{Format: FormatText, Width: width}, nodes); err != nil {
			t.Fatal(err)
		}
		if got := strings.Count(out.String(), address); got != 2 {
			t.Fatalf("the address is %d times in a width of %d, want 2:\n%s", got, width, out.String())
		}
		for line := range strings.Lines(out.String()) {
			if utf8.RuneCountInString(strings.TrimRight(line, "\n")) > width {
				t.Fatalf("wider than %d: %s", width, line)
			}
		}
	}
}

// On a terminal, titles are bold and bad news is red, and the columns stay in line.
func TestColor(t *testing.T) {
	table := Table{
		Title: "Title", Columns: []Column{{Name: "valid"}, {Name: "n"}},
		Rows: [][]Cell{{YesNo(true), Text("1")}, {YesNo(false), Text("2")}},
	}
	var colored, uncolored bytes.Buffer
	for out, color := range map[*bytes.Buffer]bool{&colored: true, &uncolored: false} {
		if err := Render(out, Style{Format: FormatText, Color: color}, table); err != nil {
			t.Fatal(err)
		}
	}
	got := colored.String()
	if !strings.Contains(got, "\x1b[1mTitle\x1b[0m\n") || !strings.Contains(got, "\x1b[31mNO\x1b[0m") {
		t.Errorf("%q has no bold title and no red NO", got)
	}
	stripped := strings.NewReplacer("\x1b[1m", "", "\x1b[31m", "", "\x1b[0m", "").Replace(colored.String())
	if diff := cmp.Diff(uncolored.String(), stripped); diff != "" {
		t.Errorf("color moves the text (-without +with):\n%s", diff)
	}
}

func TestKeys(t *testing.T) {
	for column, want := range map[Column]string{
		{Name: "Default value"}: "default_value", {Name: "p99.9 ms"}: "p99_9_ms",
		{Name: "p99 ms", Key: "p99_ns"}: "p99_ns", {Name: " (x) "}: "x",
	} {
		if got := column.key(); got != want {
			t.Errorf("%q has the key %q, want %q", column.Name, got, want)
		}
	}
}

// Text from the system under test must not send commands to a terminal, break a
// row of Markdown, or end a CSV record.
func TestHostileText(t *testing.T) {
	table := Table{
		Title:   "a\nb",
		Columns: []Column{{Name: "cause"}},
		Rows:    [][]Cell{{Text("\x1b[2J|one\ntwo\r\u009b31m<b>").With("note\x07\nmore")}},
	}
	for _, f := range Formats() {
		got := renderOne(t, table, f)
		if strings.ContainsAny(got, "\x1b\x07\r\u009b") && f != FormatJSON {
			t.Errorf("%s lets control characters through: %q", f, got)
		}
		if f == FormatMarkdown && (strings.Count(got, "\n") != 7 || !strings.Contains(got, `\|one; two`)) {
			t.Errorf("markdown: %q", got)
		}
		if f == FormatCSV && strings.Count(got, "\n") != 2 {
			t.Errorf("csv: %q", got)
		}
	}
}

func TestAudiences(t *testing.T) {
	table := Table{
		Columns: []Column{{Name: "both"}, {Name: "person", For: People}, {Key: "machine", For: Machines}},
		Rows:    [][]Cell{{Text("1"), Text("2"), Text("3")}},
		Legend:  []string{"explained"},
	}
	if got, want := renderOne(t, table, FormatCSV), "both,machine,notes\n1,3,\n"; got != want {
		t.Errorf("CSV is %q, want %q", got, want)
	}
	got := renderOne(t, table, FormatMarkdown)
	if !strings.Contains(got, "| 1    | 2      |") || strings.Contains(got, "machine") ||
		!strings.Contains(got, "- explained") {
		t.Errorf("Markdown is %q", got)
	}
}

func TestMachineFormatsHoldPlainValues(t *testing.T) {
	table := Table{
		Columns: []Column{{Name: "n"}, {Name: "x"}, {Name: "b"}, {Name: "s"}, {Name: "none"}, {Name: "i"}},
		Rows: [][]Cell{{
			Count(1_234_567), Rate(1234.5), YesNo(false), Text(`a,"b`), Blank("no figure"), {Value: 7},
		}},
		Notes: []string{"p99<100ms"},
	}
	records, err := csv.NewReader(strings.NewReader(renderOne(t, table, FormatCSV))).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	record := []string{"1234567", "1234.5", "false", `a,"b`, "", "7", "no figure; p99<100ms"}
	if diff := cmp.Diff(record, records[1]); diff != "" {
		t.Errorf("CSV (-want +got):\n%s", diff)
	}
	want := `{
  "title": "",
  "rows": [
    {
      "n": 1234567,
      "x": 1234.5,
      "b": false,
      "s": "a,\"b",
      "none": null,
      "i": 7,
      "notes": [
        "no figure"
      ]
    }
  ],
  "notes": [
    "p99<100ms"
  ]
}
`
	if diff := cmp.Diff(want, renderOne(t, table, FormatJSON)); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
}

func TestTableWithoutRows(t *testing.T) {
	table := Table{Title: "Nodes", Columns: []Column{{Name: "node"}, {Name: "pid", Align: Right}}}
	for f, want := range map[Format]string{
		FormatText:     "Nodes\n node  pid\n",
		FormatMarkdown: "### Nodes\n\n| node | pid |\n|:-----|----:|\n",
		FormatCSV:      "node,pid,notes\n",
		FormatJSON:     "{\n  \"title\": \"Nodes\",\n  \"rows\": [],\n  \"notes\": []\n}\n",
	} {
		if diff := cmp.Diff(want, renderOne(t, table, f)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", f, diff)
		}
	}
}

func TestSeveralTablesAreOneJSONDocument(t *testing.T) {
	for _, tables := range [][]Table{nil, {{Title: "one"}, {Title: "two"}}} {
		var out bytes.Buffer
		if err := Render(&out, Style{Format: FormatJSON}, tables...); err != nil {
			t.Fatal(err)
		}
		var decoded []map[string]any
		if err := json.Unmarshal(out.Bytes(), &decoded); err != nil || len(decoded) != len(tables) {
			t.Errorf("%d tables became %q: %v", len(tables), out.String(), err)
		}
	}
}

func TestMistakesAreErrors(t *testing.T) {
	twice := Table{Columns: []Column{{Name: "a"}, {Name: "A"}}}
	short := Table{Columns: []Column{{Name: "a"}, {Name: "b"}}, Rows: [][]Cell{{Text("1")}}}
	infinity := Table{Columns: []Column{{Name: "a"}}, Rows: [][]Cell{{{Value: math.Inf(1)}}}}
	list := Table{Columns: []Column{{Name: "a"}}, Rows: [][]Cell{{{Value: []int{1}}}}}
	for _, test := range []struct {
		name   string
		table  Table
		format Format
		want   string
	}{
		{"key twice", twice, FormatText, `two columns have the key "a"`},
		{"reserved key", Table{Columns: []Column{{Name: "notes"}}}, FormatJSON, `the key "notes"`},
		{"short row", short, FormatMarkdown, "row 1 has 1 cells for 2 columns"},
		{"no format", Table{}, "", `unknown format "": want one of [table markdown csv json]`},
		{"infinity", infinity, FormatJSON, "column a: json: unsupported value"},
		{"no plain value", list, FormatCSV, "a cell has a value of type []int"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := Render(new(bytes.Buffer), Style{Format: test.format}, test.table)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q in it", err, test.want)
			}
		})
	}
}

func TestWriterErrorsAreReturned(t *testing.T) {
	for _, f := range Formats() {
		if err := Render(fullDisk{}, Style{Format: f}, Ladder(plainRun())); !errors.Is(err, errFull) {
			t.Errorf("%s: %v", f, err)
		}
	}
}

var errFull = errors.New("no space left on device")

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errFull }

func renderOne(t *testing.T, table Table, f Format) string {
	t.Helper()
	var out bytes.Buffer
	if err := Render(&out, Style{Format: f}, table); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// A cell whose system did not come up says nothing about the isolation of its hosts.
func TestIsolationIsUnknownWithoutSteps(t *testing.T) {
	failed := results.Cell{Stage: "lb", Workload: "get", Error: "no", Hosts: []results.CellHost{{}}}
	measured := results.Cell{Stage: "single", Workload: "get", Hosts: failed.Hosts, Steps: []results.Step{{}}}
	for _, test := range []struct {
		cells []results.Cell
		want  string
	}{
		{[]results.Cell{failed}, ""},
		{[]results.Cell{failed, measured}, "hosts: not isolated"},
	} {
		if got := isolationNote(test.cells); got != test.want {
			t.Errorf("%q, want %q", got, test.want)
		}
	}
}
