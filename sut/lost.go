package sut

import (
	"bytes"
	"encoding/json"
)

// LostPath is the path at a database node's admin address for the old copies that the node keeps. The query parameter
// "copy" is the name of one of them (ReplicationStatus.Kept):
//   - GET returns its Lost;
//   - DELETE removes it: its Lost was collected;
//   - POST takes a Replay and returns a Replayed.
const LostPath = "/replication/lost"

// MaxKept is the number of old copies that a node keeps. A further copy is not kept. Its Lost is
// unknown and says so. Copies wait for the node to serve the present data. When databases die every few seconds, dozens
// may wait. PostgreSQL needs 70 MiB for a copy of the small data set.
const MaxKept = 32

// NotKept is Lost.Partial of a copy that was not kept because of MaxKept.
const NotKept = "the old copy was not kept, because the losses of too many earlier copies were not collected yet"

// Lost is the acknowledged changes of one copy of a database that the present primary never received:
// those of a former primary, or those of a replica that was ahead of the promoted one. The node keeps
// the old copy until someone has collected its Lost.
type Lost struct {
	Node string `json:"node"`
	// Shard is the number of the shard that lost the changes, from 1; 0 = the database is not sharded. Who collects the
	// losses sets it.
	Shard int    `json:"shard,omitempty"`
	Copy  string `json:"copy"` // name of the old copy; never used again at this node
	// Epoch is the epoch of the old copy's last change.
	Epoch int64 `json:"epoch"`
	// Commits is the number of lost commits. A group commit counts once. Heartbeats
	// do not count.
	Commits int          `json:"commits"`
	Changes []LostChange `json:"changes"`
	// Unknown means that the number of lost changes is not known. Partial has the reason.
	Unknown bool `json:"unknown,omitempty"`
	// Unread means that the old copy could not be read now. It is kept, and a later request may succeed.
	Unread bool `json:"unread,omitempty"`
	// Replayed is true when all of these changes were already replayed.
	Replayed bool `json:"replayed"`
	// Partial explains, for people, which lost changes cannot be listed; empty = all are listed.
	Partial string `json:"partial,omitempty"`
}

// Same reports whether two values describe the loss of the same copy.
func (l Lost) Same(other Lost) bool { return l.Node == other.Node && l.Copy == other.Copy }

// LostChange is a lost change of one row.
type LostChange struct {
	// Commit identifies the commit among all commits of the database. Two copies of one commit,
	// on a primary and on a replica, have the same value.
	Commit string `json:"commit"`
	Table  string `json:"table"`
	Key    string `json:"key"` // primary key of the row; a slash separates the columns of a composite key
	Op     Change `json:"op"`
	AtUS   int64  `json:"at_us,omitempty"` // time of the commit in microseconds since the Unix epoch; 0 = not known
	// Old and New are the values by column. An update lists only changed columns.
	Old Values `json:"old,omitempty"`
	New Values `json:"new,omitempty"`
}

// Values are values of columns by name: int64, float64, string, bool or nil.
type Values map[string]any

// UnmarshalJSON reads integers as int64. A float64 cannot hold an id.
func (v *Values) UnmarshalJSON(text []byte) error {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var read map[string]any
	if err := decoder.Decode(&read); err != nil {
		return err
	}
	for column, value := range read {
		number, ok := value.(json.Number)
		if !ok {
			continue
		}
		if n, err := number.Int64(); err == nil {
			read[column] = n
		} else if read[column], err = number.Float64(); err != nil {
			return err
		}
	}
	*v = read
	return nil
}

// Change is the kind of change of a row.
type Change string

// The kinds of changes.
const (
	Inserted Change = "insert"
	Updated  Change = "update"
	Deleted  Change = "delete"
)

// Replay asks a database node to repeat lost changes.
type Replay struct {
	// Databases are all databases, as in Wiring.Uses: a row that was lost at one shard may belong to another one now.
	Databases []Peer       `json:"databases"`
	Changes   []LostChange `json:"changes"`
	PushBelow int          `json:"push_below,omitempty"` // as in store.Config
}

// Replayed is the result of a Replay. A second Replay finds records with an id and does not add them
// again, but it repeats likes. So the caller must send each change once.
type Replayed struct {
	Done           map[string]int `json:"done"`            // repeated operations of the store, by name
	AlreadyPresent int            `json:"already_present"` // changes that the primary already had
	Refused        []string       `json:"refused"`         // changes that could not be repeated, each with the reason
}

// Discarded counts what a multi-primary database discarded, because the later of two concurrent changes
// to a row won. All nodes count the same when they have all changes, so do not add their counts.
type Discarded struct {
	// Conflicts counts changes to a row that another primary had changed concurrently.
	Conflicts int64 `json:"conflicts,omitempty"`
	// Differences are by "table.column" of a number: what the discarded updates had added to it. Rows that
	// were also inserted or deleted concurrently are not counted.
	Differences map[string]int64 `json:"differences,omitempty"`
}
