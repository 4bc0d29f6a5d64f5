package replog

import "zombiezen.com/go/sqlite"

// Limits bound what a log keeps. When one is exceeded by an eighth the oldest entries go; the last one always stays.
// What somebody needs stays until the log has grown to leeway times its limits.
type Limits struct {
	Entries int64
	Bytes   int64 // of changes
}

// leeway is how much larger than its limits a log may grow for a node that is fetching a snapshot: under many writes
// it would never catch up, if what follows the snapshot were gone when it has it.
const leeway = 8

// Extent is what a table of entries holds.
type Extent struct {
	First, Last int64 // positions; 0 = there is none
	Bytes       int64 // of changes
}

// Measure returns the extent of a table.
func Measure(conn *sqlite.Conn, table string) (x Extent, err error) {
	const extent = "select coalesce(min(position), 0), coalesce(max(position), 0), coalesce(sum(length(changes)), 0) from "
	err = Run(conn, extent+table, nil, func(row *sqlite.Stmt) {
		x = Extent{First: row.ColumnInt64(0), Last: row.ColumnInt64(1), Bytes: row.ColumnInt64(2)}
	})
	return x, err
}

// Add takes in an entry that was inserted, and now and then deletes the oldest ones, but none after need. It reports
// whether it did.
func (x *Extent) Add(conn *sqlite.Conn, table string, e *Entry, limits Limits, need int64) (pruned bool, err error) {
	if x.First == 0 {
		x.First = e.Position
	}
	x.Last = e.Position
	x.Bytes += int64(len(e.Changes))
	if x.Last-x.First+1 <= limits.Entries+limits.Entries/8 && x.Bytes <= limits.Bytes+limits.Bytes/8 {
		return false, nil
	}
	most := x.Last - 1
	if x.Last-x.First < leeway*limits.Entries && x.Bytes < leeway*limits.Bytes {
		most = min(most, need)
	}
	before := x.First
	for upTo := x.Last - limits.Entries; ; upTo = x.First - 1 + max(1, (x.Last-x.First)/8) {
		if upTo = min(upTo, most); upTo >= x.First {
			// Sizes are asked only of entries that go, for this happens between a client and its commit.
			size, err := Number(conn, "select sum(length(changes)) from "+table+" where position <= ?", upTo)
			if err == nil {
				err = Exec(conn, "delete from "+table+" where position <= ?", upTo)
			}
			if err != nil {
				return false, err
			}
			x.First, x.Bytes = upTo+1, x.Bytes-size
		}
		if x.Bytes <= limits.Bytes || upTo >= most {
			return x.First != before, nil
		}
	}
}
