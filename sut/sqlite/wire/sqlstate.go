package wire

import (
	"errors"
	"fmt"
)

// The SQLSTATEs that clients get.
// https://www.postgresql.org/docs/15/errcodes-appendix.html
const (
	ProtocolViolation         = "08P01"
	ConnectionDoesNotExist    = "08003"
	FeatureNotSupported       = "0A000"
	CharacterNotInRepertoire  = "22021"
	InvalidParameterValue     = "22023"
	InvalidTextRepresentation = "22P02"
	InvalidBinary             = "22P03"
	IntegrityViolation        = "23000"
	NotNullViolation          = "23502"
	ForeignKeyViolation       = "23503"
	UniqueViolation           = "23505"
	CheckViolation            = "23514"
	ActiveTransaction         = "25001"
	ReadOnlyTransaction       = "25006"
	InvalidPassword           = "28P01"
	FailedTransaction         = "25P02"
	IdleInTransaction         = "25P03"
	UndefinedStatement        = "26000"
	InvalidCursorName         = "34000"
	SerializationFailure      = "40001"
	SyntaxError               = "42601"
	UndefinedObject           = "42704"
	DatatypeMismatch          = "42804"
	InvalidDefinition         = "42P14"
	DiskFull                  = "53100"
	OutOfMemory               = "53200"
	TooManyConnections        = "53300"
	LimitExceeded             = "54000"
	WrongState                = "55000"
	LockNotAvailable          = "55P03"
	QueryCanceled             = "57014"
	AdminShutdown             = "57P01"
	CannotConnectNow          = "57P03"
	IOError                   = "58030"
	InternalError             = "XX000"
	DataCorrupted             = "XX001"
)

// State returns the SQLSTATE of an error, InternalError if it has none.
func State(err error) string {
	if e := (*Error)(nil); errors.As(err, &e) {
		return e.State
	}
	return InternalError
}

// Error is an error with the SQLSTATE that the client gets.
type Error struct {
	State string
	error
	fatal bool // ends the connection
}

// Errorf returns an error with a SQLSTATE.
func Errorf(state, format string, args ...any) error {
	return &Error{State: state, error: fmt.Errorf(format, args...)}
}

// WithState adds a SQLSTATE to an error that has none. It returns nil for nil.
func WithState(err error, state string) error {
	if err == nil || errors.As(err, new(*Error)) {
		return err
	}
	return &Error{State: state, error: err}
}

// Unwrap returns the error without its SQLSTATE.
func (e *Error) Unwrap() error { return e.error }

// fatal returns an error that ends the connection.
func fatal(state, format string, args ...any) error {
	return &Error{State: state, error: fmt.Errorf(format, args...), fatal: true}
}
