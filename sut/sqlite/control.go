package sqlite

import (
	"fmt"
	"strings"

	"github.com/jeroenrinzema/psql-wire/codes"
)

// parseControl understands the statements that need no catalogue: those that
// clients, poolers and drivers send on their own account.
func parseControl(text string) (*statement, error) {
	text = strip(text)
	words := strings.Fields(strings.ToLower(text))
	if len(words) == 0 {
		return controlling("", nil), nil
	}
	all := strings.Join(words, " ")
	switch words[0] {
	case "begin", "start":
		if words[0] == "begin" || strings.HasPrefix(all, "start transaction") {
			readOnly := strings.Contains(all, "read only")
			return controlling("BEGIN", func(s *session) error { return s.begin(readOnly) }), nil
		}
	case "commit", "end":
		return controlling(commit, (*session).commit), nil
	case "rollback", "abort":
		if len(words) == 1 || len(words) == 2 && (words[1] == "work" || words[1] == "transaction") {
			return controlling(rollback, (*session).rollback), nil
		}
		return nil, fault(codes.FeatureNotSupported, "this node has no savepoints")
	case "savepoint", "release":
		return nil, fault(codes.FeatureNotSupported, "this node has no savepoints")
	case "set":
		return set(words[1:])
	case "show":
		return show(strings.Join(words[1:], "_"))
	case "discard", "deallocate":
		return forget(words), nil
	}
	return nil, fault(codes.Syntax, fmt.Sprintf("statement is not in the catalogue of this node: %.80s", text))
}

// The statements that are allowed in a transaction that has failed.
const (
	commit   = "COMMIT"
	rollback = "ROLLBACK"
)

// controlling returns a statement that does something to the session.
func controlling(command string, act func(*session) error) *statement {
	if act == nil {
		act = func(*session) error { return nil }
	}
	return (&statement{kind: control, command: command, act: act}).ready()
}

// strip takes leading comments, space and final semicolons away.
func strip(text string) string {
	text = strings.TrimSpace(text)
	for strings.HasPrefix(text, "--") {
		_, text, _ = strings.Cut(text, "\n")
		text = strings.TrimSpace(text)
	}
	return strings.TrimRight(text, "; \t\r\n")
}

// set accepts settings that change nothing here and refuses all others: a
// client must not believe in a time-out that nobody keeps.
func set(words []string) (*statement, error) {
	if len(words) > 0 && (words[0] == "session" || words[0] == "local") {
		words = words[1:]
	}
	if len(words) == 0 {
		return nil, fault(codes.Syntax, "set what?")
	}
	name, _, _ := strings.Cut(words[0], "=")
	switch name {
	case "application_name", "client_encoding", "client_min_messages", "datestyle", "extra_float_digits",
		"intervalstyle", "names", "search_path", "standard_conforming_strings", "time", "timezone":
		return controlling("SET", nil), nil
	}
	return nil, fault(codes.FeatureNotSupported, fmt.Sprintf("this node cannot change %q", name))
}

// show answers the settings that clients look at.
func show(name string) (*statement, error) {
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
	s := &statement{kind: control, command: "SHOW", value: value, act: func(*session) error { return nil }}
	s.Columns = []Column{{Name: name, Type: Text}}
	return s.ready(), nil
}

// forget drops prepared statements, one or all of them.
func forget(words []string) *statement {
	command, name := strings.ToUpper(words[0]), words[len(words)-1]
	all := name == "all" || command == "DISCARD"
	if all {
		command += " ALL"
	}
	return controlling(command, func(s *session) error {
		switch {
		case command == "DISCARD ALL" && s.status != idle:
			return fault(codes.ActiveSQLTransaction, "DISCARD ALL cannot run inside a transaction block")
		case all:
			clear(s.names)
		default:
			delete(s.names, name)
		}
		return nil
	})
}
