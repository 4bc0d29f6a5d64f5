package engine

import (
	"cmp"

	"zombiezen.com/go/sqlite"

	"github.com/stagebench/stagebench/sut/sqlite/wire"
)

func errCancelled() error {
	return wire.Errorf(wire.QueryCanceled, "canceling statement due to user request")
}

// coded adds the SQLSTATE that PostgreSQL uses for the same error.
//
// https://www.sqlite.org/rescode.html
// https://www.postgresql.org/docs/15/errcodes-appendix.html
func coded(err error) error {
	if err == nil {
		return nil
	}
	states := map[sqlite.ResultCode]string{
		sqlite.ResultConstraintUnique:     wire.UniqueViolation,
		sqlite.ResultConstraintPrimaryKey: wire.UniqueViolation,
		sqlite.ResultConstraintRowID:      wire.UniqueViolation,
		sqlite.ResultConstraintNotNull:    wire.NotNullViolation,
		sqlite.ResultConstraintForeignKey: wire.ForeignKeyViolation,
		sqlite.ResultConstraintCheck:      wire.CheckViolation,
		sqlite.ResultBusySnapshot:         wire.SerializationFailure,
		sqlite.ResultConstraint:           wire.IntegrityViolation,
		sqlite.ResultBusy:                 wire.LockNotAvailable,
		sqlite.ResultLocked:               wire.LockNotAvailable,
		sqlite.ResultInterrupt:            wire.QueryCanceled,
		sqlite.ResultReadOnly:             wire.ReadOnlyTransaction,
		sqlite.ResultFull:                 wire.DiskFull,
		sqlite.ResultNoMem:                wire.OutOfMemory,
		sqlite.ResultIOErr:                wire.IOError,
		sqlite.ResultCantOpen:             wire.IOError,
		sqlite.ResultCorrupt:              wire.DataCorrupted,
		sqlite.ResultNotADB:               wire.DataCorrupted,
		sqlite.ResultTooBig:               wire.LimitExceeded,
		sqlite.ResultMismatch:             wire.DatatypeMismatch,
	}
	code := sqlite.ErrCode(err)
	return wire.WithState(err, cmp.Or(states[code], states[code.ToPrimary()], wire.InternalError))
}
