package replog

import "zombiezen.com/go/sqlite"

// Fork is the last position of a log whose entry is of that epoch or an earlier
// one: up to there it is the same as any other log of that epoch that was left
// behind. It is 0 where a later epoch began with an empty log. whole is false when
// the log has been pruned beyond it, so that nobody knows.
func Fork(conn *sqlite.Conn, epoch int64) (fork int64, whole bool, err error) {
	oldest := int64(0)
	err = Run(conn, `select coalesce(max(case when epoch <= ? then position end), 0), coalesce(min(position), 0) from replication_log`, []any{epoch}, func(row *sqlite.Stmt) {
		fork, oldest = row.ColumnInt64(0), row.ColumnInt64(1)
	})
	return fork, fork > 0 || oldest <= 1, err
}
