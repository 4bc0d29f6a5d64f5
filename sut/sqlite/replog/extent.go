package replog

import "zombiezen.com/go/sqlite"

// Limits bound a log. When the log exceeds a limit by an eighth, the oldest entries are deleted. The last entry always
// stays. Entries that a node still needs stay until the log has grown to retainFactor times its limits.
type Limits struct {
	Entries int64
	Bytes   int64 // size of all changesets
}

// retainFactor is how far a log may exceed its limits while a node fetches a snapshot. Without it the entries after the
// snapshot could be gone before the snapshot has arrived. Under many writes the node would never catch up.
const retainFactor = 8

// Extent is the range and size of a table of entries.
type Extent struct {
	First, Last int64 // positions; 0 = the table is empty
	Bytes       int64 // size of all changesets
}

// Measure reads the extent of a table.
func Measure(conn *sqlite.Conn, table string) (x Extent, err error) {
	const extent = "select coalesce(min(position), 0), coalesce(max(position), 0), coalesce(sum(length(changes)), 0) from "
	err = Run(conn, extent+table, nil, func(row *sqlite.Stmt) {
		x = Extent{First: row.ColumnInt64(0), Last: row.ColumnInt64(1), Bytes: row.ColumnInt64(2)}
	})
	return x, err
}

// Add accounts for an inserted entry. If the table is too large, it deletes the oldest entries, but none after the
// position retain. It reports whether it deleted entries.
func (x *Extent) Add(conn *sqlite.Conn, table string, e *Entry, limits Limits, retain int64) (pruned bool, err error) {
	if x.First == 0 {
		x.First = e.Position
	}
	x.Last = e.Position
	x.Bytes += int64(len(e.Changes))
	if x.Last-x.First+1 <= limits.Entries+limits.Entries/8 && x.Bytes <= limits.Bytes+limits.Bytes/8 {
		return false, nil
	}
	newest := x.Last - 1
	if x.Last-x.First < retainFactor*limits.Entries && x.Bytes < retainFactor*limits.Bytes {
		newest = min(newest, retain)
	}
	before := x.First
	for upTo := x.Last - limits.Entries; ; upTo = x.First - 1 + max(1, (x.Last-x.First)/8) {
		if upTo = min(upTo, newest); upTo >= x.First {
			// Only the sizes of the deleted entries are read. This code runs while a client waits for its commit.
			size, err := Number(conn, "select sum(length(changes)) from "+table+" where position <= ?", upTo)
			if err == nil {
				err = Exec(conn, "delete from "+table+" where position <= ?", upTo)
			}
			if err != nil {
				return false, err
			}
			x.First, x.Bytes = upTo+1, x.Bytes-size
		}
		if x.Bytes <= limits.Bytes || upTo >= newest {
			return x.First != before, nil
		}
	}
}
