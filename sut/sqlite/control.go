package sqlite

import (
	"fmt"
	"strings"

	wire "github.com/jeroenrinzema/psql-wire"
	"github.com/jeroenrinzema/psql-wire/codes"
)

// parseControl understands the statements that need no catalogue: those that
// clients, poolers and drivers send on their own account.
func parseControl(text string) (*statement, error) {
	text = strip(text)
	words := strings.Fields(strings.ToLower(text))
	if len(words) == 0 {
		return answer("", nil, func(_ *session, w wire.DataWriter) error { return w.Empty() }), nil
	}
	all := strings.Join(words, " ")
	switch words[0] {
	case "begin":
		return begin(all), nil
	case "start":
		if strings.HasPrefix(all, "start transaction") {
			return begin(all), nil
		}
	case "commit", "end":
		return answer("COMMIT", nil, func(s *session, w wire.DataWriter) error { return s.commit(w) }), nil
	case "rollback", "abort":
		if len(words) == 1 || len(words) == 2 && (words[1] == "work" || words[1] == "transaction") {
			return answer("ROLLBACK", nil, func(s *session, w wire.DataWriter) error { return s.rollback(w) }), nil
		}
		return nil, fault(codes.FeatureNotSupported, "this node has no savepoints")
	case "savepoint", "release":
		return nil, fault(codes.FeatureNotSupported, "this node has no savepoints")
	case "set":
		return set(words)
	case "show":
		return show(words)
	case "discard", "deallocate":
		return forget(words), nil
	case "select":
		if all == "select 1" {
			return answer("SELECT 1", []Column{{Name: "?column?", Type: Int}}, func(_ *session, w wire.DataWriter) error {
				return rowThenComplete(w, int64(1), "SELECT 1")
			}), nil
		}
	}
	return nil, fault(codes.Syntax, fmt.Sprintf("statement is not in the catalogue of this node: %.80s", text))
}

// strip takes leading comments, space and the final semicolon away.
func strip(text string) string {
	for {
		text = strings.TrimSpace(text)
		if !strings.HasPrefix(text, "--") {
			return strings.TrimSpace(strings.TrimRight(text, "; \t\r\n"))
		}
		_, text, _ = strings.Cut(text, "\n")
	}
}

// answer returns a statement that is run by a function of ours.
func answer(command string, columns []Column, run func(*session, wire.DataWriter) error) *statement {
	s := &statement{Statement: Statement{Columns: columns}, kind: control, command: command, run: run}
	s.extended, s.simple = s.prepared(false), s.prepared(true)
	return s
}

func begin(all string) *statement {
	readOnly := strings.Contains(all, "read only")
	return answer("BEGIN", nil, func(s *session, w wire.DataWriter) error { return s.begin(w, readOnly) })
}

// set accepts settings that change nothing here, and refuses all others: a
// client must not believe in a time-out that nobody keeps.
func set(words []string) (*statement, error) {
	words = words[1:]
	if len(words) > 0 && (words[0] == "session" || words[0] == "local") {
		words = words[1:]
	}
	if len(words) > 0 {
		name, _, _ := strings.Cut(words[0], "=")
		switch name {
		case "application_name", "client_encoding", "client_min_messages", "datestyle", "extra_float_digits",
			"intervalstyle", "search_path", "standard_conforming_strings", "time", "timezone", "names":
			return answer("SET", nil, complete("SET")), nil
		}
		return nil, fault(codes.FeatureNotSupported, fmt.Sprintf("this node cannot change %q", name))
	}
	return nil, fault(codes.Syntax, "set what?")
}

// show answers the settings that clients look at.
func show(words []string) (*statement, error) {
	name := strings.Join(words[1:], "_")
	value, found := map[string]string{
		"client_encoding":               "UTF8",
		"default_transaction_read_only": "off",
		"in_hot_standby":                "off",
		"server_encoding":               "UTF8",
		"server_version":                serverVersion,
		"standard_conforming_strings":   "on",
		"timezone":                      "UTC",
		"time_zone":                     "UTC",
		"transaction_isolation":         "serializable",
		"transaction_isolation_level":   "serializable",
		"transaction_read_only":         "off",
	}[name]
	if !found {
		return nil, fault(codes.UndefinedObject, fmt.Sprintf("unrecognized configuration parameter %q", name))
	}
	return answer("SHOW", []Column{{Name: name, Type: Text}}, func(_ *session, w wire.DataWriter) error {
		return rowThenComplete(w, value, "SHOW")
	}), nil
}

// forget drops prepared statements, one or all of them.
func forget(words []string) *statement {
	what := words[len(words)-1]
	command := strings.ToUpper(words[0])
	if what == "all" || command == "DISCARD" {
		command += " ALL"
	}
	return answer(command, nil, func(s *session, w wire.DataWriter) error {
		if command == "DISCARD ALL" && s.status != idle {
			return fault(codes.ActiveSQLTransaction, "DISCARD ALL cannot run inside a transaction block")
		}
		s.forget(what)
		return w.Complete(command)
	})
}

func complete(tag string) func(*session, wire.DataWriter) error {
	return func(_ *session, w wire.DataWriter) error { return w.Complete(tag) }
}

func rowThenComplete(w wire.DataWriter, value any, tag string) error {
	if err := w.Row([]any{value}); err != nil {
		return err
	}
	return w.Complete(tag)
}
