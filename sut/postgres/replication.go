package postgres

import (
	"errors"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// ErrConflict is what a server answers that is told something its epochs forbid:
// an epoch lower than one that it has known, or anything when it is a primary. It
// has changed nothing.
var ErrConflict = errors.New("conflict")

// walKept bounds the log that a primary keeps for replicas that are away. One
// that is away for longer fetches its copy anew, which then costs less.
const walKept = 64 << 20

// backupName is what a server calls itself while it fetches a whole copy.
const backupName = "stagebench-backup"

// linkTimeout is after how long of silence a primary and a replica give each
// other up. PostgreSQL's own minute would hide the death of a host for as long.
const linkTimeout = 2 * time.Second

// Replication makes a server one of several copies of a database: one primary
// and its replicas, by physical streaming replication.
//
// Commits are acknowledged by the primary alone, or with SyncCopies after that
// many replicas have them on disk. With too few replicas such a commit waits for
// ever; its client has to give up. It must do so by ending its connection or its
// wait: a cancel request, which pgx sends after the deadline of a context, makes
// the server end the wait with success and a mere warning. It is harmless there,
// as pgx has given the connection up before it cancels, and nobody reads the
// answer. The write then has taken effect at the primary without having been
// acknowledged. A client must therefore not be configured to read on after its
// cancel request (pgconn.CancelRequestContextWatcherHandler), and a cancel by
// anybody else (pg_cancel_backend) acknowledges what no replica has. A
// statement_timeout does not reach that wait.
//
// Of several replicas the one to promote is that with the highest position, asked
// for when none of them is connected any more. Those that hold more than the
// promoted one have to fetch the whole anew.
type Replication struct {
	// Node is the name that the server has as a replica: 1 to 63 letters, digits,
	// '-', '_' and '.'.
	Node string
	// SyncCopies is how many replicas must hold a write before it is acknowledged;
	// 0 = none.
	SyncCopies int
	// Lag is how long after its commit at the primary a replica applies a change,
	// on purpose; 0 = at once.
	Lag time.Duration
	// State is the epoch, and whom the server follows: nobody as a primary.
	State sut.Replication
}

// nodeName is what a name needs no quotes for, wherever it appears.
var nodeName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,63}$`)

// validate says what is wrong.
func (r Replication) validate() error {
	switch {
	case !nodeName.MatchString(r.Node):
		return fmt.Errorf("replication: name %q: want 1 to 63 letters, digits, '-', '_' and '.'", r.Node)
	case r.SyncCopies < 0:
		return fmt.Errorf("replication: %d synchronous copies", r.SyncCopies)
	case r.Lag < 0:
		return fmt.Errorf("replication: lag %v", r.Lag)
	}
	return validateState(r.State)
}

// validateState says what is wrong with a document that a server is told.
func validateState(state sut.Replication) error {
	if state.Epoch < 1 {
		return fmt.Errorf("replication: epoch %d: want 1 or more", state.Epoch)
	}
	if state.Primary == nil {
		return nil
	}
	host, port, err := net.SplitHostPort(state.Primary.Address)
	if err != nil {
		return fmt.Errorf("replication: address of the primary: %w", err)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 || net.ParseIP(host) == nil {
		return fmt.Errorf("replication: address of the primary %q: want IP:port", state.Primary.Address)
	}
	return nil
}

// settings is the part of postgresql.conf about copies. A replica has those of
// a primary, too, for the day on which it becomes one.
func (r Replication) settings(section func(comment string), set func(name string, value any)) {
	milliseconds := func(d time.Duration) string { return fmt.Sprintf("%dms", d.Milliseconds()) }
	section("Replication, as a primary.")
	set("wal_level", "replica")
	set("max_wal_senders", 24) // 8 replicas, some of which fetch a copy or connect anew, too
	set("max_replication_slots", 0)
	set("wal_keep_size", fmt.Sprintf("%dMB", walKept>>20))
	set("wal_sender_timeout", milliseconds(linkTimeout))
	names := ""
	if r.SyncCopies > 0 {
		names = fmt.Sprintf("ANY %d (*)", r.SyncCopies)
	}
	set("synchronous_standby_names", names)

	section("Replication, as a replica.")
	set("hot_standby", "on")
	set("wal_receiver_timeout", milliseconds(linkTimeout))
	set("wal_receiver_status_interval", "1s")
	set("wal_retrieve_retry_interval", "200ms")
	// Reads of ours are short. What a long one still sees the primary keeps, for
	// as long as the link lives; without one the changes win after this time.
	set("hot_standby_feedback", "on")
	set("max_standby_streaming_delay", "2s")
	set("recovery_target_timeline", "latest")
	set("recovery_min_apply_delay", milliseconds(r.Lag))
	if r.State.Primary != nil {
		set("primary_conninfo", conninfo(*r.State.Primary, r.Node))
	}
}

// conninfo is how a server's own programs connect to a primary. A commit of
// theirs never waits for replicas: it would wait for the one that it is to make.
func conninfo(primary sut.Peer, name string) string {
	host, port, _ := net.SplitHostPort(primary.Address) // validated
	return fmt.Sprintf("host=%s port=%s user=%s dbname=replication application_name=%s connect_timeout=2 tcp_user_timeout=%d "+
		"sslmode=disable gssencmode=disable options='-c synchronous_commit=local'",
		host, port, User, name, linkTimeout.Milliseconds())
}

// peerURL is how a client of a peer connects.
func peerURL(peer sut.Peer) string {
	return fmt.Sprintf("postgres://%s@%s/%s?sslmode=disable", User, peer.Address, Database)
}
