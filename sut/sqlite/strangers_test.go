package sqlite_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/sqlite"
	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

// TestReplicationStrangers: a connection that is not from a replica of this node gets no data and does no harm.
func TestReplicationStrangers(t *testing.T) {
	t.Parallel()
	primary := startNode(t, newTemplate(t), "db-1", nil, nil)
	alone := withNotes(t, sqlite.Config{})
	message := func(kind replog.Kind, body string) []byte {
		var b bytes.Buffer
		b.Write(replog.StartupPacket(""))
		if err := replog.Write(&b, kind, []byte(body)); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	const hello = `{"node":"x","to":"db-1","epoch":1,"position":0,"schema":"other"}`
	empty := message(replog.KindHello, strings.Replace(hello, "other", replog.NoSchema(), 1))
	misdirected := message(replog.KindHello, `{"node":"x","to":"db-9","epoch":99}`)
	for name, c := range map[string]struct {
		address string
		sent    []byte
		want    string // part of the answer
	}{
		"no replication":      {alone.Addr().String(), message(replog.KindHello, hello), ""},
		"no Hello":            {primary.address, message(replog.KindAck, hello), ""},
		"no document":         {primary.address, message(replog.KindHello, "{"), ""},
		"too long":            {primary.address, append(replog.StartupPacket(""), 'H', 0xff, 0xff, 0xff, 0xff), ""},
		"another schema":      {primary.address, message(replog.KindHello, hello), "schema differs"},
		"wrong node":          {primary.address, misdirected, "this is node db-1"},
		"disconnected":        {primary.address, replog.StartupPacket(""), ""},
		"an entry of its own": {primary.address, append(empty, "E\x00\x00\x00\x00"...), `"snapshot":true`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			link, err := net.Dial("tcp", c.address)
			if err != nil {
				t.Fatal(err)
			}
			defer link.Close()
			if err := link.SetDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			if _, err := link.Write(c.sent); err != nil {
				t.Fatal(err)
			}
			if err := link.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			got, _ := io.ReadAll(link) // a reset ends the answer, too
			if !strings.Contains(string(got), c.want) {
				t.Errorf("the answer is %.200q, want %q in it", got, c.want)
			}
		})
	}
	t.Cleanup(func() {
		if s := primary.ReplicationStatus(); !s.Primary || s.Problem != "" {
			t.Errorf("afterwards the primary reports %+v", s)
		}
	})
}

// Nobody replicates from a primary, fences it or counts as a copy without its secret and a name that it knows, and
// nobody acknowledges what was not sent.
func TestOnlyMembersReplicate(t *testing.T) {
	t.Parallel()
	const secret = "of-the-system"
	var members atomic.Pointer[[]string]
	members.Store(&[]string{"db-2"})
	primary := startNode(t, newTemplate(t), "db-1", nil, func(c *sqlite.Config) {
		c.Secret, c.Replication.SyncCopies, c.Replication.SyncTimeout = secret, 1, time.Hour
		c.Replication.Member = func(node string) bool { return slices.Contains(*members.Load(), node) }
	})
	// greet returns a connection and the kind of the answer to a hello, 0 if there was none.
	greet := func(secret sut.Secret, node string, epoch int64) (*replog.Link, replog.Kind) {
		t.Helper()
		hello := replog.Hello{Node: node, To: "db-1", Epoch: epoch, Schema: replog.NoSchema()}
		link, err := replog.Dial(t.Context(), primary.address, secret, replog.KindHello, hello)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = link.Close() })
		kind, _, _ := replog.Read(link, 1<<20)
		return link, kind
	}
	for name, c := range map[string]struct {
		secret sut.Secret
		node   string
		want   replog.Kind
	}{
		"no secret":         {"", "db-2", 0}, // the error of the SQL protocol, or a reset
		"another secret":    {"of-another-one", "db-2", 0},
		"a name of nobody":  {secret, "db-3", replog.KindRefusal},
		"an empty name":     {secret, "", replog.KindRefusal},
		"the primary's own": {secret, "db-1", replog.KindRefusal},
	} {
		if _, kind := greet(c.secret, c.node, 99); kind != c.want && (c.want != 0 || kind != 'E') {
			t.Errorf("%s: the answer is %q, want %q", name, kind, c.want)
		}
		if s := primary.ReplicationStatus(); !s.Primary || s.Epoch != 1 || len(s.Followers) != 0 {
			t.Fatalf("%s: afterwards the primary reports %+v", name, s)
		}
	}

	link, kind := greet(secret, "db-2", 1)
	if kind != replog.KindWelcome {
		t.Fatalf("a member got %q", kind)
	}
	primary.await(t, "the member is a follower", func(s sut.ReplicationStatus) bool { return len(s.Followers) == 1 })
	out := bufio.NewWriter(link)
	if err := errors.Join(replog.WriteNumbers(out, replog.KindAck, 1<<40), out.Flush()); err != nil {
		t.Fatal(err)
	}
	primary.await(t, "the liar is cut off", func(s sut.ReplicationStatus) bool { return len(s.Followers) == 0 })

	link, _ = greet(secret, "db-2", 1)
	s := primary.await(t, "the member is a follower", func(s sut.ReplicationStatus) bool { return len(s.Followers) == 1 })
	members.Store(&[]string{})
	out = bufio.NewWriter(link)
	if err := errors.Join(replog.WriteNumbers(out, replog.KindAck, s.Position), out.Flush()); err != nil {
		t.Fatal(err)
	}
	primary.await(t, "the former member is cut off", func(s sut.ReplicationStatus) bool { return len(s.Followers) == 0 })
}

func TestBadReplication(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]sqlite.Replication{
		"no epoch":     {Node: "db-1"},
		"no name":      {State: sut.Replication{Epoch: 1}},
		"negative lag": {Node: "db-1", State: sut.Replication{Epoch: 1}, Lag: -1},
	} {
		cfg := sqlite.Config{Listener: listen(t), Dir: t.TempDir(), Statements: notes(), Replication: &r}
		if _, err := sqlite.New(cfg); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	alone := withNotes(t, sqlite.Config{})
	if err := alone.ChangeRole(t.Context(), sut.Replication{Epoch: 2}); !errors.Is(err, sqlite.ErrRefused) {
		t.Errorf("a node without replication accepted a role: %v", err)
	}
	if s := alone.ReplicationStatus(); !s.Primary || !s.Serves {
		t.Errorf("a node without replication reports %+v", s)
	}
}
