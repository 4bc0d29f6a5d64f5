package export

import (
	"encoding/xml"
	"io"
	"strconv"
	"strings"
)

// The elements of JUnit XML, as Ant writes them and Jenkins and GitLab read them.
type (
	junitReport struct {
		XMLName xml.Name `xml:"testsuites"`
		junitCounts
		Suites []junitSuite `xml:"testsuite"`
	}
	junitCounts struct {
		Name     string `xml:"name,attr"`
		Tests    int    `xml:"tests,attr"`
		Failures int    `xml:"failures,attr"`
		Errors   int    `xml:"errors,attr"`
		Time     string `xml:"time,attr"`
		seconds  float64
	}
	junitSuite struct {
		junitCounts
		Skipped int         `xml:"skipped,attr"` // not in testsuites, says the schema of Jenkins
		Cases   []junitCase `xml:"testcase"`
	}
	junitCase struct {
		Class   string       `xml:"classname,attr"`
		Name    string       `xml:"name,attr"`
		Time    string       `xml:"time,attr"`
		Skipped *junitReason `xml:"skipped"`
		Error   *junitReason `xml:"error"`
		Failure *junitReason `xml:"failure"`
		Output  string       `xml:"system-out,omitempty"`
	}
	junitReason struct {
		Message string `xml:"message,attr"`
		Type    string `xml:"type,attr,omitempty"`
		Text    string `xml:",chardata"`
	}
)

// JUnit writes verdicts as JUnit XML, with one testsuite for each suite in the order of the checks. An invalid check is
// an error, and an inconclusive one is skipped: JUnit has no other word for it, so the exit status of the command must
// show it, too.
func JUnit(w io.Writer, checks ...Check) error {
	if len(checks) == 0 {
		return ErrNothing
	}
	report := junitReport{junitCounts: junitCounts{Name: "stagebench"}}
	places := map[string]int{}
	for _, c := range checks {
		place, known := places[c.Suite]
		if !known {
			place = len(report.Suites)
			places[c.Suite] = place
			report.Suites = append(report.Suites, junitSuite{junitCounts: junitCounts{Name: plain(c.Suite)}})
		}
		suite := &report.Suites[place]
		suite.Cases = append(suite.Cases, junitCaseOf(c))
		if c.Outcome == Inconclusive {
			suite.Skipped++
		}
		suite.count(c)
		report.count(c)
	}
	for i := range report.Suites {
		report.Suites[i].Time = seconds(report.Suites[i].seconds)
	}
	report.Time = seconds(report.seconds)
	text, err := xml.MarshalIndent(report, "", "  ")
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, xml.Header+string(text)+"\n")
	return err
}

func junitCaseOf(c Check) junitCase {
	out := junitCase{
		Class: strings.ReplaceAll(plain(c.Suite), "/", "."), Name: plain(c.Name), Time: seconds(c.Seconds),
	}
	reason := &junitReason{Message: plain(c.Message), Type: string(c.Outcome), Text: plain(c.Text)}
	switch c.Outcome {
	case Passed:
		out.Output = strings.TrimSpace(reason.Message + "\n" + reason.Text)
	case Failed:
		out.Failure = reason
	case Inconclusive:
		reason.Type = "" // skipped has none
		out.Skipped = reason
	default:
		out.Error = reason
	}
	return out
}

func (n *junitCounts) count(c Check) {
	n.Tests++
	n.seconds += c.Seconds
	switch c.Outcome {
	case Passed:
	case Failed:
		n.Failures++
	case Inconclusive: // counted by the suite
	default:
		n.Errors++
	}
}

func seconds(s float64) string { return strconv.FormatFloat(s, 'f', 3, 64) }

// plain returns the text without the characters that XML 1.0 forbids: causes come from the system under test.
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' && r != '\n' || r == 0x7f || r == 0xfffe || r == 0xffff {
			return -1
		}
		return r
	}, strings.ToValidUTF8(text, ""))
}
