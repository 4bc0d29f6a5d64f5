package postgres

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/sut"
)

func TestPositions(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{
		"0/16B3748": 0x16B3748, "A/0": 0xA00000000,
		"7FFFFFFF/FFFFFFFF": math.MaxInt64,
	} {
		got, err := parsePosition(text)
		if err != nil || got != want {
			t.Errorf("parsePosition(%q) = %d, %v, want %d", text, got, err, want)
		}
		if back := formatPosition(got); back != text {
			t.Errorf("formatPosition(%d) = %q, want %q", got, back, text)
		}
	}
	for _, text := range []string{"", "16B3748", "0/", "/0", "0/123456789", "x/0", "0/0/0"} {
		if got, err := parsePosition(text); err == nil {
			t.Errorf("parsePosition(%q) = %d", text, got)
		}
	}
}

func TestParseControl(t *testing.T) {
	t.Parallel()
	text := func(state, recovered string) string {
		return "pg_control version number:            1300\n" +
			"Database system identifier:           7321\n" +
			"Database cluster state:               " + state + "\n" +
			"pg_control last modified:             Tue Nov  1 10:00:00 2022\n" +
			"Latest checkpoint location:           0/30000A8\n" +
			"Latest checkpoint's REDO location:    0/3000070\n" +
			"Minimum recovery ending location:     " + recovered + "\n"
	}
	for name, test := range map[string]struct {
		text string
		want control
	}{
		"shut down": {text("shut down", "0/0"), control{system: "7321", clean: true, checkpoint: 0x30000A8}},
		"killed":    {text("in production", "0/0"), control{system: "7321", checkpoint: 0x30000A8}},
		"replica, shut down": {
			text("shut down in recovery", "0/3000120"),
			control{system: "7321", checkpoint: 0x30000A8, recovered: 0x3000120},
		},
		"replica, killed": {
			text("in archive recovery", "0/3000120"),
			control{system: "7321", checkpoint: 0x30000A8, recovered: 0x3000120},
		},
	} {
		got, err := parseControl(test.text)
		if err != nil || got != test.want {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, test.want)
		}
	}
	for _, bad := range []string{"", "Database system identifier: 7\n", text("shut down", "nowhere")} {
		if got, err := parseControl(bad); err == nil {
			t.Errorf("parseControl(%q) = %+v", bad, got)
		}
	}
}

func TestLostReason(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]struct {
		reason   string
		diverged bool
	}{
		"FATAL:  could not receive data from WAL stream: ERROR:  requested WAL segment 000000010000000000000003 has " +
			"already been removed": {"too far behind", false},
		"LOG:  new timeline 2 forked off current database system timeline 1 before current recovery " +
			"point 0/5000000": {"diverged", true},
		"FATAL:  could not start WAL streaming: ERROR:  requested starting point 0/5000000 on timeline 1 is not in this " +
			"server's history": {"diverged", true},
		"FATAL:  could not start WAL streaming: ERROR:  requested starting point 0/5000000 is ahead of the WAL flush " +
			"position of this server 0/4000000": {"diverged", true},
		"FATAL:  highest timeline 1 of the primary is behind recovery timeline 2":         {"diverged", true},
		"FATAL:  database system identifier differs between the primary and standby":      {"diverged", true},
		"ERROR:  requested WAL segment 000000010000000000000003 has already been removed": {}, // a line of the primary's log
		"FATAL:  could not connect to the primary server: connection to server at \"127.0.0.1\", port 5433 failed: " +
			"Connection refused": {},
		"LOG:  started streaming WAL from primary at 0/3000000 on timeline 1": {},
	} {
		reason, diverged := lostReason(line)
		if !strings.Contains(reason, want.reason) || (reason == "") != (want.reason == "") || diverged != want.diverged {
			t.Errorf("lostReason(%q) = %q, %v, want one with %q, %v", line, reason, diverged, want.reason, want.diverged)
		}
	}
}

func TestContains(t *testing.T) {
	t.Parallel()
	primary := marker{Epoch: 3, From: 2, Fork: 100}
	for name, test := range map[string]struct {
		epoch, position int64
		want            bool
	}{
		"the same epoch":           {3, 500, true},
		"before the promotion":     {2, 99, true},
		"exactly at the promotion": {2, 100, true},
		"after the promotion":      {2, 101, false},
		"missed two promotions":    {1, 50, false},
		"unknown higher epoch":     {4, 50, false},
	} {
		if got := primary.contains(test.epoch, test.position); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestHeartbeats simulates a primary that writes heartbeats and a replica that applies them
// with a delay. The replica reads the heartbeat at the times that nextRead returns.
func TestHeartbeats(t *testing.T) {
	t.Parallel()
	begin := time.Unix(1_000_000, 0)
	for _, delay := range []time.Duration{0, 3 * time.Millisecond, 200 * time.Millisecond, 5 * time.Second} {
		var h heartbeats
		if got := h.lag(begin); got != -1 {
			t.Errorf("lag before the first heartbeat: %d, want -1", got)
		}
		now, reads := begin.Add(delay+time.Hour), 0
		end := now.Add(10 * time.Second)
		for ; now.Before(end); now = now.Add(h.nextRead(now)) {
			// The newest heartbeat that has arrived.
			h.observe(now, begin.Add(now.Add(-delay).Sub(begin).Truncate(heartbeatInterval)))
			reads++
		}
		if got := time.Duration(h.lag(now)); got < delay || got > delay+10*time.Millisecond {
			t.Errorf("lag of %v measured as %v", delay, got)
		}
		if reads > 200 {
			t.Errorf("%d reads in 10 s at a lag of %v, want at most 200", reads, delay)
		}
		// No more heartbeats arrive.
		last := h.last
		for stalled := now.Add(5 * time.Second); now.Before(stalled); now = now.Add(h.nextRead(now)) {
			h.observe(now, last)
		}
		if got := time.Duration(h.lag(now)); got < delay+3*time.Second {
			t.Errorf("lag of %v, then 5 s without a heartbeat, measured as %v", delay, got)
		}
	}
}

func TestReplicationSettings(t *testing.T) {
	t.Parallel()
	state := sut.Replication{Epoch: 1, Primary: &sut.Peer{Node: "db-1", Address: "127.0.0.2:5433"}}
	read := func(r *Replication, state sut.Replication) map[string]string {
		have := map[string]string{}
		for line := range strings.Lines(Config{Replication: r}.settings(state)) {
			if name, value, found := strings.Cut(strings.TrimSpace(line), " = "); found {
				have[name] = value
			}
		}
		return have
	}
	copies := &Replication{Node: "db-2", SyncCopies: 2, Lag: 1500 * time.Millisecond, State: state}
	have := read(copies, state)
	for name, value := range map[string]string{
		"synchronous_standby_names": `'ANY 2 (*)'`, "recovery_min_apply_delay": `'1500ms'`, "wal_keep_size": `'64MB'`,
		"wal_sender_timeout": `'2000ms'`,
		"primary_conninfo": `'host=127.0.0.2 port=5433 user=stagebench_node dbname=replication application_name=db-2 ` +
			`connect_timeout=2 tcp_user_timeout=2000 ` +
			`sslmode=disable gssencmode=disable options=''-c synchronous_commit=local'''`,
	} {
		if diff := cmp.Diff(value, have[name]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	copies.Members = []string{"db-1", "db-3"}
	if got, want := read(copies, state)["synchronous_standby_names"], `'ANY 2 ("db-1", "db-3")'`; got != want {
		t.Errorf("with members: synchronous_standby_names = %s, want %s", got, want)
	}
	if value, found := read(copies, sut.Replication{Epoch: 2})["primary_conninfo"]; found {
		t.Errorf("a primary has primary_conninfo %s", value)
	}
	if value, found := read(nil, sut.Replication{})["synchronous_standby_names"]; found {
		t.Errorf("a server without replication has synchronous_standby_names %s", value)
	}
}
