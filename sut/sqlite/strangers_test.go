package sqlite_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
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
		b.Write(replog.StartupPacket())
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
		"too long":            {primary.address, append(replog.StartupPacket(), 'H', 0xff, 0xff, 0xff, 0xff), ""},
		"another schema":      {primary.address, message(replog.KindHello, hello), "schema differs"},
		"wrong node":          {primary.address, misdirected, "this is node db-1"},
		"disconnected":        {primary.address, replog.StartupPacket(), ""},
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
