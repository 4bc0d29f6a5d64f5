package sqlite

import (
	"errors"

	"github.com/jeroenrinzema/psql-wire/codes"
	psqlerr "github.com/jeroenrinzema/psql-wire/errors"
	"zombiezen.com/go/sqlite"
)

// fault makes an error that the client gets under that SQLSTATE.
func fault(code codes.Code, text string) error {
	return psqlerr.WithCode(errors.New(text), code)
}

// Errors that several places return.
func errCancelled() error {
	return fault(codes.QueryCanceled, "canceling statement due to user request")
}

func errAborted() error {
	return fault(codes.InFailedSQLTransaction, "current transaction is aborted, commands ignored until end of transaction block")
}

// coded gives an error of SQLite the SQLSTATE that PostgreSQL has for it.
// https://www.sqlite.org/rescode.html
// https://www.postgresql.org/docs/15/errcodes-appendix.html
func coded(err error) error {
	if err == nil || psqlerr.GetCode(err) != codes.Uncategorized {
		return err
	}
	return psqlerr.WithCode(err, state(sqlite.ErrCode(err)))
}

func state(result sqlite.ResultCode) codes.Code {
	switch result {
	case sqlite.ResultConstraintUnique, sqlite.ResultConstraintPrimaryKey, sqlite.ResultConstraintRowID:
		return codes.UniqueViolation
	case sqlite.ResultConstraintNotNull:
		return codes.NotNullViolation
	case sqlite.ResultConstraintForeignKey:
		return codes.ForeignKeyViolation
	case sqlite.ResultConstraintCheck:
		return codes.CheckViolation
	case sqlite.ResultBusySnapshot:
		return codes.SerializationFailure
	}
	switch result.ToPrimary() {
	case sqlite.ResultConstraint:
		return codes.IntegrityConstraintViolation
	case sqlite.ResultBusy, sqlite.ResultLocked:
		return codes.LockNotAvailable
	case sqlite.ResultInterrupt:
		return codes.QueryCanceled
	case sqlite.ResultReadOnly:
		return codes.ReadOnlySQLTransaction
	case sqlite.ResultFull:
		return codes.DiskFull
	case sqlite.ResultNoMem:
		return codes.OutOfMemory
	case sqlite.ResultIOErr, sqlite.ResultCantOpen:
		return codes.Io
	case sqlite.ResultCorrupt, sqlite.ResultNotADB:
		return codes.DataCorrupted
	case sqlite.ResultTooBig:
		return codes.ProgramLimitExceeded
	case sqlite.ResultMismatch:
		return codes.DatatypeMismatch
	}
	return codes.Internal
}
