package sqlite

import (
	"zombiezen.com/go/sqlite"

	"github.com/stagebench/stagebench/sut/sqlite/wire"
)

func errCancelled() error {
	return wire.NewError(wire.QueryCanceled, "canceling statement due to user request")
}

// coded gives an error of SQLite the SQLSTATE that PostgreSQL has for it.
// https://www.sqlite.org/rescode.html
// https://www.postgresql.org/docs/15/errcodes-appendix.html
func coded(err error) error {
	return wire.WithState(err, state(sqlite.ErrCode(err)))
}

func state(result sqlite.ResultCode) string {
	switch result {
	case sqlite.ResultConstraintUnique, sqlite.ResultConstraintPrimaryKey, sqlite.ResultConstraintRowID:
		return wire.UniqueViolation
	case sqlite.ResultConstraintNotNull:
		return wire.NotNullViolation
	case sqlite.ResultConstraintForeignKey:
		return wire.ForeignKeyViolation
	case sqlite.ResultConstraintCheck:
		return wire.CheckViolation
	case sqlite.ResultBusySnapshot:
		return wire.SerializationFailure
	}
	switch result.ToPrimary() {
	case sqlite.ResultConstraint:
		return wire.IntegrityViolation
	case sqlite.ResultBusy, sqlite.ResultLocked:
		return wire.LockNotAvailable
	case sqlite.ResultInterrupt:
		return wire.QueryCanceled
	case sqlite.ResultReadOnly:
		return wire.ReadOnlyTransaction
	case sqlite.ResultFull:
		return wire.DiskFull
	case sqlite.ResultNoMem:
		return wire.OutOfMemory
	case sqlite.ResultIOErr, sqlite.ResultCantOpen:
		return wire.IOError
	case sqlite.ResultCorrupt, sqlite.ResultNotADB:
		return wire.DataCorrupted
	case sqlite.ResultTooBig:
		return wire.LimitExceeded
	case sqlite.ResultMismatch:
		return wire.DatatypeMismatch
	}
	return wire.InternalError
}
