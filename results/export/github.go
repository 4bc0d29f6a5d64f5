package export

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Limits of GitHub. It shows no further annotations of a step, and drops the whole summary of a step if it is longer.
const (
	maxAnnotations = 10 // of each level
	SummaryLimit   = 1 << 20
)

// Annotations writes a workflow command for each check that did not pass: an error if it failed or is invalid, and a
// warning if it is inconclusive. Ten of each level are shown, so the tenth says how many more there are.
func Annotations(w io.Writer, checks ...Check) error {
	byLevel := map[string][]Check{}
	for _, c := range checks {
		switch c.Outcome {
		case Passed:
		case Inconclusive:
			byLevel["warning"] = append(byLevel["warning"], c)
		default:
			byLevel["error"] = append(byLevel["error"], c)
		}
	}
	for _, level := range []string{"error", "warning"} {
		found := byLevel[level]
		if more := len(found) - maxAnnotations + 1; more > 1 {
			found = append(found[:maxAnnotations-1:maxAnnotations-1], Check{
				Suite: "stagebench", Message: fmt.Sprintf("%d more are in the summary of this step", more),
			})
		}
		for _, c := range found {
			title := strings.TrimSpace(c.Suite + " " + c.Name)
			message := strings.TrimSpace(string(c.Outcome) + ": " + cmp.Or(c.Message, "see the summary of this step"))
			if c.Outcome == "" {
				message = c.Message
			}
			if _, err := fmt.Fprintf(w, "::%s title=%s::%s\n", level, property(title), data(message)); err != nil {
				return err
			}
		}
	}
	return nil
}

// data escapes the message of a workflow command, and property the value of one of its properties.
func data(text string) string {
	return strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A").Replace(text)
}

func property(text string) string {
	return strings.NewReplacer(":", "%3A", ",", "%2C").Replace(data(text))
}

// StepSummary writes the Markdown of a step summary: the verdict, a table of the checks that did not pass, and then,
// folded, all checks and the details, which are Markdown. It writes at most limit bytes: SummaryLimit less what the
// summary of the step already has. A longer summary is cut, and says so. Nothing is written if not even that fits.
func StepSummary(w io.Writer, limit int, title string, checks []Check, details string) error {
	var bad []Check
	worst := Passed
	for _, c := range checks {
		if c.Outcome != Passed {
			bad = append(bad, c)
		}
		if severity(c.Outcome) > severity(worst) {
			worst = c.Outcome
		}
	}
	var text strings.Builder
	fmt.Fprintf(&text, "## %s: %s\n\n%d of %d checks passed\n\n", cell(title), worst, len(checks)-len(bad), len(checks))
	checkTable(&text, bad)
	const end = "\n</details>\n"
	text.WriteString("<details><summary>All checks</summary>\n\n")
	checkTable(&text, checks)
	fmt.Fprintf(&text, "%s\n", strings.TrimSpace(details))
	const cut = "\n\nThe summary was cut here, because GitHub shows at most 1 MiB.\n"
	all := text.String()
	if len(all)+len(end) > limit {
		room := limit - len(cut) - len(end)
		if room < 0 {
			return nil
		}
		all = all[:strings.LastIndexByte(all[:min(room, len(all))], '\n')+1] + cut
		if !strings.Contains(all, "<details>") {
			_, err := io.WriteString(w, all)
			return err
		}
	}
	_, err := io.WriteString(w, all+end)
	return err
}

// severity orders the outcomes, the worst last. A regression is worse than a measurement that cannot be trusted.
func severity(o Outcome) int {
	return slices.Index([]Outcome{Passed, Inconclusive, Invalid, Failed}, o)
}

func checkTable(text *strings.Builder, checks []Check) {
	if len(checks) == 0 {
		return
	}
	text.WriteString("| suite | check | outcome | why |\n|---|---|---|---|\n")
	for _, c := range checks {
		fmt.Fprintf(text, "| %s | %s | %s | %s |\n", cell(c.Suite), cell(c.Name), c.Outcome, cell(c.Message))
	}
	text.WriteString("\n")
}

// cell returns a text on one line, without the characters that end a cell or begin a tag.
func cell(text string) string {
	return strings.NewReplacer("|", `\|`, "<", "&lt;", "&", "&amp;", "\r", " ", "\n", " ").Replace(plain(text))
}
