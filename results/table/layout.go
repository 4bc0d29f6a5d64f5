package table

import (
	"slices"
	"strings"

	"github.com/olekukonko/tablewriter/pkg/twwidth"
)

// DefaultWidth is the width of text where no terminal has another one, in columns.
const DefaultWidth = 100

// Style says how tables are written.
type Style struct {
	Format Format
	// Width is the maximum length of a line of FormatText. A wider table is wrapped, and then split. 0 = no limit.
	Width int
	// Color makes the titles of FormatText bold and bad news red, for a terminal.
	Color bool
}

// The control sequences of terminals (ECMA-48, 8.3.117).
const (
	bold  = "\x1b[1m"
	red   = "\x1b[31m"
	plain = "\x1b[0m"
)

// title returns a title for people.
func (s Style) title(text string) string {
	if !s.Color {
		return text
	}
	return bold + text + plain
}

// colored returns the table with its bad news in red.
func (s Style) colored(t Table) Table {
	if !s.Color {
		return t
	}
	rows := make([][]Cell, len(t.Rows))
	for r, row := range t.Rows {
		rows[r] = slices.Clone(row)
		for i, c := range row {
			if c.Bad {
				rows[r][i].Text = red + strings.ReplaceAll(c.Text, "\n", plain+"\n"+red) + plain
			}
		}
	}
	t.Rows = rows
	return t
}

// parts returns the tables that people see: one for the columns without a part, and one for each part. Columns that are
// empty in all rows are left out, and so are rows that are empty in a part. If all rows of a column are empty for the
// same reason, the reason becomes a note of the table.
func (t Table) parts() []Table {
	t = t.columnsFor(People)
	titles := []string{""}
	for _, c := range t.Columns {
		if !slices.Contains(titles, c.Part) {
			titles = append(titles, c.Part)
		}
	}
	var parts []Table
	for _, title := range titles {
		p := t.keep(func(i int, c Column) bool { return (c.Row || c.Part == title) && !t.emptyColumn(i) })
		if title != "" {
			p.Title, p.Legend, p.Notes = title, t.PartLegend[title], nil
			p.Rows = slices.DeleteFunc(p.Rows, p.emptyRow)
		}
		if title != "" && len(p.Rows) == 0 { // why it is missing is still said
			parts[0].Notes = append(parts[0].Notes, t.reasons(title)...)
			continue
		}
		p.Notes = append(slices.Clone(p.Notes), t.reasons(title)...)
		parts = append(parts, p)
	}
	return parts
}

// reasons returns why columns of a part are empty in all rows, each reason once: "p99 ms, p99.9 ms: too few samples".
// A reason that is also a note of a column with values is not repeated.
func (t Table) reasons(part string) (lines []string) {
	var reasons, shown []string
	for i, c := range t.Columns {
		if c.Part == part && !t.emptyColumn(i) {
			for _, row := range t.Rows {
				if !row[i].blank() {
					shown = append(shown, row[i].Notes...)
				}
			}
		}
	}
	columns := map[string][]string{}
	for i, c := range t.Columns {
		if c.Part != part || !t.emptyColumn(i) {
			continue
		}
		for _, note := range t.commonNotes(i) {
			if slices.Contains(shown, note) {
				continue
			}
			if columns[note] == nil {
				reasons = append(reasons, note)
			}
			columns[note] = append(columns[note], c.heading())
		}
	}
	for _, reason := range reasons {
		lines = append(lines, strings.Join(columns[reason], ", ")+": "+reason)
	}
	return lines
}

// heading returns the title of a column on one line.
func (c Column) heading() string { return strings.ReplaceAll(c.Name, "\n", " ") }

// blank reports whether a cell has nothing but notes.
func (c Cell) blank() bool { return c.Text == "" || c.Text == "-" }

// empty reports whether a cell says nothing to people.
func (c Cell) empty() bool { return c.blank() && len(c.Notes) == 0 }

// emptyColumn reports whether a column has nothing but notes that all its rows have.
func (t Table) emptyColumn(i int) bool {
	common := len(t.commonNotes(i))
	return len(t.Rows) > 0 && !slices.ContainsFunc(t.Rows, func(row []Cell) bool {
		return !row[i].blank() || len(row[i].Notes) > common
	})
}

// commonNotes returns the notes that the cells of a column have in all rows.
func (t Table) commonNotes(i int) (notes []string) {
	if len(t.Rows) == 0 {
		return nil
	}
	for _, note := range t.Rows[0][i].Notes {
		if !slices.ContainsFunc(t.Rows, func(row []Cell) bool { return !slices.Contains(row[i].Notes, note) }) {
			notes = append(notes, note)
		}
	}
	return notes
}

// emptyRow reports whether a row has nothing but the cells that identify it.
func (t Table) emptyRow(row []Cell) bool {
	for i, c := range row {
		if !t.Columns[i].Row && !c.empty() {
			return false
		}
	}
	return true
}

// keep returns the table with only some of its columns.
func (t Table) keep(wanted func(i int, c Column) bool) Table {
	kept := t
	kept.Columns, kept.Rows = nil, make([][]Cell, len(t.Rows))
	for i, c := range t.Columns {
		if !wanted(i, c) {
			continue
		}
		kept.Columns = append(kept.Columns, c)
		for r, row := range t.Rows {
			kept.Rows[r] = append(kept.Rows[r], row[i])
		}
	}
	return kept
}

// padding is the space around the text of a cell.
const padding = 2

// A column of words is wrapped at most to minWrapped, and words of at most maxWord, such as addresses, are not broken.
const minWrapped, maxWord = 18, 40

// fit returns tables that together have all columns and are not wider than a width. Columns of words are wrapped
// first. If that is not enough, the last columns go into further tables, each with the columns that identify a row.
func (t Table) fit(width int) []Table {
	widths := t.widths()
	if width == 0 || total(widths) <= width {
		return []Table{t}
	}
	t = t.shrunk(widths, total(widths)-width)
	widths = t.widths()
	keys := 0
	for i, c := range t.Columns {
		if c.Row {
			keys += widths[i]
		}
	}
	var fitting []Table
	for next := 0; next < len(t.Columns); {
		used, first, filled := keys, next, false
		for ; next < len(t.Columns); next++ {
			if t.Columns[next].Row {
				continue
			}
			if used += widths[next]; used > width && filled {
				break
			}
			filled = true
		}
		fitting = append(fitting, t.keep(func(i int, c Column) bool { return c.Row || first <= i && i < next }))
	}
	return fitting
}

// widths returns the widths of the columns with their padding.
func (t Table) widths() []int {
	widths := make([]int, len(t.Columns))
	for i, c := range t.Columns {
		widths[i] = lineWidth(c.Name)
		for _, row := range t.Rows {
			widths[i] = max(widths[i], lineWidth(row[i].Text))
		}
		widths[i] += padding
	}
	return widths
}

func total(widths []int) (sum int) {
	for _, w := range widths {
		sum += w
	}
	return sum
}

// lineWidth returns the length of the longest line of a text.
func lineWidth(text string) (longest int) {
	for line := range strings.SplitSeq(text, "\n") {
		longest = max(longest, twwidth.Width(line))
	}
	return longest
}

// shrunk returns the table with its widest columns of words wrapped, until it is narrower by the given number of
// columns or nothing is left to wrap.
func (t Table) shrunk(widths []int, tooWide int) Table {
	target, least := slices.Clone(widths), t.leastWidths()
	for ; tooWide > 0; tooWide-- {
		widest := -1
		for i, c := range t.Columns {
			if c.Align == Left && target[i] > least[i] && (widest < 0 || target[i] > target[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			break
		}
		target[widest]--
	}
	t.Rows = slices.Clone(t.Rows)
	for r, row := range t.Rows {
		t.Rows[r] = slices.Clone(row)
		for i := range row {
			if target[i] < widths[i] {
				t.Rows[r][i].Text = strings.Join(Wrap(row[i].Text, target[i]-padding), "\n")
			}
		}
	}
	return t
}

// leastWidths returns the widths to which columns of words may be wrapped.
func (t Table) leastWidths() []int {
	least := make([]int, len(t.Columns))
	ends := func(r rune) bool { return strings.ContainsRune(" \n"+separators, r) }
	for i := range t.Columns {
		least[i] = minWrapped
		for _, row := range t.Rows {
			for word := range strings.FieldsFuncSeq(row[i].Text, ends) {
				if w := twwidth.Width(word) + 1; w <= maxWord { // with its separator
					least[i] = max(least[i], w)
				}
			}
		}
		least[i] += padding
	}
	return least
}

// separators end the values of a list.
const separators = "|,=/"

// Wrap returns a text as lines of at most a width, 0 = no limit. It breaks only words that are longer than a line, if
// possible between the values of a list.
func Wrap(text string, width int) (lines []string) {
	if width <= 0 || twwidth.Width(text) <= width {
		return []string{text}
	}
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && twwidth.Width(line)+1+twwidth.Width(word) > width {
			lines, line = append(lines, line), ""
		}
		for twwidth.Width(word) > width {
			begin := ""
			for _, r := range word {
				if begin != "" && twwidth.Width(begin+string(r)) > width {
					break
				}
				begin += string(r)
			}
			if i := strings.LastIndexAny(begin, separators); i > 0 { // a list of values
				begin = begin[:i+1]
			}
			lines, word = append(lines, begin), word[len(begin):]
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
