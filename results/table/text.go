package table

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/olekukonko/tablewriter"
	"github.com/olekukonko/tablewriter/renderer"
	"github.com/olekukonko/tablewriter/tw"
)

// renderText writes title, grid, notes and legend for a terminal.
func renderText(w io.Writer, t Table, s Style) error {
	var out bytes.Buffer
	if t.Title != "" {
		for _, line := range Wrap(oneLine(t.Title), s.Width) {
			fmt.Fprintln(&out, s.title(line))
		}
	}
	t, notes := numberNotes(t, oneLine)
	for i, part := range t.fit(s.Width) {
		if i > 0 {
			fmt.Fprintln(&out)
		}
		if err := grid(&out, s.colored(part), renderer.NewBlueprint(tw.Rendition{
			Borders: tw.BorderNone,
			Symbols: tw.NewSymbols(tw.StyleLight),
			Settings: tw.Settings{
				Separators: tw.Separators{BetweenColumns: tw.Off},
				Lines:      tw.Lines{ShowHeaderLine: tw.On},
			},
		})); err != nil {
			return err
		}
	}
	for _, line := range slices.Concat(notes, t.Notes, t.Legend) {
		for i, part := range Wrap(oneLine(line), s.Width-indent) {
			fmt.Fprintf(&out, "%*s%s\n", 1+min(i, 1)*(indent-1), "", part)
		}
	}
	for line := range bytes.Lines(out.Bytes()) {
		// The grid pads the last column with spaces.
		if _, err := fmt.Fprintf(w, "%s\n", bytes.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

// indent is the indentation of the second and later lines of notes and legends.
const indent = 4

// renderMarkdown writes title, grid, legend and notes as Markdown with a GitHub table.
func renderMarkdown(w io.Writer, t Table) error {
	var out bytes.Buffer
	if t.Title != "" {
		fmt.Fprintf(&out, "### %s\n\n", markdownLine(t.Title))
	}
	t, notes := numberNotes(t, markdownLine)
	for i, c := range t.Columns {
		t.Columns[i].Name = c.heading() // a Markdown header is one line
	}
	if err := grid(&out, t, renderer.NewMarkdown()); err != nil {
		return err
	}
	lines := slices.Concat(notes, t.Notes, t.Legend)
	if len(t.Columns) > 0 && len(lines) > 0 {
		fmt.Fprintln(&out)
	}
	for _, line := range lines {
		fmt.Fprintf(&out, "- %s\n", markdownLine(line))
	}
	_, err := w.Write(out.Bytes())
	return err
}

// grid writes the header and the cells. It writes nothing for a table without columns.
func grid(w io.Writer, t Table, r tw.Renderer) error {
	if len(t.Columns) == 0 {
		return nil
	}
	aligns := make([]tw.Align, len(t.Columns))
	titles := make([]string, len(t.Columns))
	for i, c := range t.Columns {
		titles[i] = c.Name
		aligns[i] = tw.AlignLeft
		if c.Align == Right {
			aligns[i] = tw.AlignRight
		}
	}
	section := tw.CellConfig{
		Formatting: tw.CellFormatting{AutoFormat: tw.Off, AutoWrap: tw.WrapNone},
		Alignment:  tw.CellAlignment{PerColumn: aligns},
	}
	config := tablewriter.Config{Header: section, Row: section}
	writer := tablewriter.NewTable(w, tablewriter.WithRenderer(r), tablewriter.WithConfig(config))
	writer.Header(titles)
	for _, row := range t.Rows {
		texts := make([]string, len(row))
		for i, c := range row {
			texts[i] = c.Text
		}
		if err := writer.Append(texts); err != nil {
			return err
		}
	}
	return writer.Render()
}

// numberNotes cleans the texts of the cells and appends the numbers of their notes. It returns the
// numbered notes, each text once, in reading order of the cells. A note that all rows of a column have
// comes after them, without a number.
func numberNotes(t Table, clean func(string) string) (Table, []string) {
	var notes, ofAll []string
	marked := t
	marked.Rows = make([][]Cell, len(t.Rows))
	common := make([][]string, len(t.Columns))
	for i, c := range t.Columns {
		if len(t.Rows) < 2 {
			break
		}
		common[i] = t.commonNotes(i)
		for _, note := range common[i] {
			ofAll = append(ofAll, "all rows, "+c.heading()+": "+note)
		}
	}
	for r, row := range t.Rows {
		marked.Rows[r] = slices.Clone(row)
		for i, c := range row {
			var marks []int
			for _, note := range c.Notes {
				if slices.Contains(common[i], note) {
					continue
				}
				number := slices.Index(notes, note) + 1
				if number == 0 {
					notes = append(notes, note)
					number = len(notes)
				}
				marks = append(marks, number)
			}
			marked.Rows[r][i].Text = withMarks(clean(c.Text), marks)
		}
	}
	for i := range notes {
		notes[i] = fmt.Sprintf("[%d] %s", i+1, notes[i])
	}
	return marked, append(notes, ofAll...)
}

// withMarks appends the numbers to the text: " [1,2]".
func withMarks(text string, numbers []int) string {
	if len(numbers) == 0 {
		return text
	}
	slices.Sort(numbers)
	var marks []string
	for _, n := range slices.Compact(numbers) {
		marks = append(marks, strconv.Itoa(n))
	}
	return strings.TrimSpace(text + " [" + strings.Join(marks, ",") + "]")
}

// oneLine returns the text as one line without control characters. Error causes
// come from the system under test and must not send commands to the terminal.
func oneLine(s string) string {
	s = strings.ReplaceAll(strings.TrimSpace(s), "\n", "; ")
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}

// markdownLine is oneLine with '|' and '<' escaped for Markdown.
func markdownLine(s string) string {
	return strings.NewReplacer("|", `\|`, "<", `\<`).Replace(oneLine(s))
}
