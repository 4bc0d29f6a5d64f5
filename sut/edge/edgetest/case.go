package edgetest

import (
	"fmt"
	"strings"
)

// Severity says how a case is judged.
type Severity string

// Severities, as in the public suite.
const (
	Required Severity = "required" // a requirement of its specification
	Optimal  Severity = "optimal"  // what a good cache does; its absence costs requests to the origin
	Check    Severity = "check"    // a question without a right answer: it is counted, and it never fails
)

// Want is what a client must get in a step.
type Want int

// What a client gets. A response is stored if the origin sent it in an earlier step.
const (
	Any       Want = iota
	Hit            // a stored response; no request reaches the origin
	Miss           // the response to the one request that reaches the origin
	Validated      // a stored body; one conditional request reaches the origin, which answers 304
	Stale          // a stored response; a request may reach the origin
	Failed         // an error of the edge or a broken connection, and nothing stored
)

func (w Want) String() string {
	return [...]string{"any response", "a hit", "a miss", "a validated hit", "a stale hit", "a failure"}[w]
}

// Answer is what the origin sends to a request.
type Answer struct {
	Status int      // 0 = 200
	Fields []string // "Name: value"; a value "@N" is the HTTP date N seconds after the case began
	Body   string   // "" = a text with the number of the response
	Whole  string   // with status 206: the body of the 200 to a request without Range
	Drop   bool     // close the connection without a response
}

// Step is one request of a client, with what must come of it.
type Step struct {
	Method string   // "" = GET
	At     string   // appended to the path of the case
	Send   []string // fields of the request, in the form of Answer.Fields
	Body   string
	// Answer is the answer of the origin from this step on; nil = as before.
	Answer *Answer

	Want   Want
	Status int // of the client's response; 0 = not checked
	// Fields are fields of the client's response: "Name: value", "Name" for any value, "!Name" for a field that must
	// be absent, "Name>N" for a number above N, "Name~PATTERN" for a match of a regular expression.
	Fields []string
	Text   string // body of the client's response; "" = not checked
	// Forwarded are fields of the last request that reached the origin, in the form of Fields.
	Forwarded []string

	Wait   int  // wait before the step until that many lifetimes of one second are over
	Settle bool // wait after the step for a request that the edge sends in the background
}

// Case is one rule of HTTP caches.
type Case struct {
	// ID is the id of the test in the public suite http-tests/cache-tests, if it has one for this rule.
	ID       string
	Group    string
	Severity Severity
	Section  string // of the specification, such as "RFC 9111, 4.2.1"
	// Needs is the id of a case without which this one says nothing; "" = none. If that case fails, this one is not
	// judged.
	Needs string
	// Prefix is the begin of the path; "" = a path without rules of its own.
	Prefix string
	Steps  []Step
}

// rule is the row of most tables: the origin sends a response with some fields, and then the same request comes again.
type rule struct {
	id       string
	severity Severity
	want     Want
	fields   string // separated by "|"
}

// cases turns rows into cases. All of them have the same section, and need the same case.
func cases(group, section, needs string, rules []rule) []Case {
	var all []Case
	for _, r := range rules {
		c := Case{ID: r.id, Group: group, Severity: r.severity, Section: section, Steps: []Step{
			{Answer: answer(r.fields), Want: Miss}, {Want: r.want},
		}}
		if r.want != Hit && r.id != needs {
			c.Needs = needs
		}
		all = append(all, c)
	}
	return all
}

// in sets the group and the section of cases that do not have them.
func in(group, section string, list ...Case) []Case {
	for i := range list {
		list[i].Group = group
		if list[i].Section == "" {
			list[i].Section = section
		}
	}
	return list
}

// answer is an answer with fields that are separated by "|".
func answer(fields string) *Answer { return &Answer{Fields: split(fields)} }

// status is an answer with a status.
func status(code int, fields string) *Answer { return &Answer{Status: code, Fields: split(fields)} }

func split(fields string) []string {
	if fields == "" {
		return nil
	}
	return strings.Split(fields, "|")
}

// fresh is a lifetime that does not end during a test.
const fresh = "Cache-Control: max-age=3600"

// brief is a lifetime that ends before a step with Wait.
const brief = "Cache-Control: max-age=1"

// field parses "Name: value".
func field(line string) (name, value string) {
	name, value, found := strings.Cut(line, ":")
	if !found {
		panic(fmt.Sprintf("edgetest: %q is no field", line)) // a table of this package is wrong
	}
	return name, strings.TrimPrefix(value, " ")
}
