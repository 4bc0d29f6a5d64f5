package wire

import "strings"

// serverVersion is the PostgreSQL version that the node reports to clients.
const serverVersion = "15.0"

// parse returns the statement of the catalogue with this text, or one of the statements that drivers and connection
// poolers send by themselves.
func (c Catalogue) parse(text string) (*Command, error) {
	if found := c[text]; found != nil {
		return found, nil
	}
	text = strip(text)
	words := strings.Fields(strings.ToLower(text))
	if len(words) == 0 {
		return control("", nil), nil
	}
	all := strings.Join(words, " ")
	switch words[0] {
	case "begin", "start":
		if words[0] == "begin" || strings.HasPrefix(all, "start transaction") {
			readOnly := strings.Contains(all, "read only")
			return control("BEGIN", func(c *conn) error { return c.begin(readOnly) }), nil
		}
	case "commit", "end":
		return control(commit, func(c *conn) error { return c.end(true) }), nil
	case "rollback", "abort":
		if len(words) == 1 || len(words) == 2 && (words[1] == "work" || words[1] == "transaction") {
			return control(rollback, func(c *conn) error { return c.end(false) }), nil
		}
		return nil, Errorf(FeatureNotSupported, "savepoints are not supported")
	case "savepoint", "release":
		return nil, Errorf(FeatureNotSupported, "savepoints are not supported")
	case "set":
		return set(words[1:])
	case "show":
		return show(strings.Join(words[1:], "_"))
	case "discard", "deallocate":
		return deallocate(words), nil
	}
	return nil, Errorf(SyntaxError, "statement is not in the catalogue of this node: %.80s", text)
}

// The statements that are allowed in a failed transaction.
const (
	commit   = "COMMIT"
	rollback = "ROLLBACK"
)

// control returns a statement that this package answers without the database. act may be nil.
func control(tag string, act func(*conn) error) *Command {
	if act == nil {
		act = func(*conn) error { return nil }
	}
	return &Command{tag: tag, act: act}
}

// strip removes leading comments, surrounding space and final semicolons.
func strip(text string) string {
	text = strings.TrimSpace(text)
	for strings.HasPrefix(text, "--") {
		_, text, _ = strings.Cut(text, "\n")
		text = strings.TrimSpace(text)
	}
	return strings.TrimRight(text, "; \t\r\n")
}

// set accepts settings that have no effect on this node. It refuses all others, because the node would ignore them.
func set(words []string) (*Command, error) {
	if len(words) > 0 && (words[0] == "session" || words[0] == "local") {
		words = words[1:]
	}
	if len(words) == 0 {
		return nil, Errorf(SyntaxError, "SET has no parameter name")
	}
	name, _, _ := strings.Cut(words[0], "=")
	switch name {
	case "application_name", "client_encoding", "client_min_messages", "datestyle", "extra_float_digits",
		"intervalstyle", "names", "search_path", "standard_conforming_strings", "time", "timezone":
		return control("SET", nil), nil
	}
	return nil, Errorf(FeatureNotSupported, "parameter %q cannot be changed", name)
}

// show answers SHOW for the settings that drivers read.
func show(name string) (*Command, error) {
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
		return nil, Errorf(UndefinedObject, "unrecognized configuration parameter %q", name)
	}
	s := control("SHOW", nil)
	s.value, s.Columns = value, []Column{{Name: name, Type: Text}}
	return s, s.describe()
}

// deallocate answers DEALLOCATE and DISCARD.
func deallocate(words []string) *Command {
	command, name := strings.ToUpper(words[0]), words[len(words)-1]
	all := name == "all" || command == "DISCARD"
	if all {
		command += " ALL"
	}
	return control(command, func(c *conn) error {
		switch {
		case command == "DISCARD ALL" && c.status != idle:
			return Errorf(ActiveTransaction, "DISCARD ALL cannot run inside a transaction block")
		case all:
			clear(c.statements)
		default:
			delete(c.statements, name)
		}
		return nil
	})
}
