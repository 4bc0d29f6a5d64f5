package haproxy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/sut"
)

// host returns a host at a port.
func host(number, port int, weight float64) sut.Peer {
	return sut.Peer{Node: fmt.Sprintf("web-%d", number), Address: fmt.Sprintf("127.0.0.1:%d", port), Weight: weight}
}

// change is a change of the hosts and its expected effect.
type change struct {
	to      sut.Upstreams
	healthy string   // a slot that is up
	want    []string // without "set server"
	removed string   // slots of removed hosts
}

// Each change of the hosts gives these commands for the running server.
func TestChangeCommands(t *testing.T) {
	t.Parallel()
	first := []sut.Peer{host(1, 1, 0), host(2, 2, 0)}
	routes := func(to ...string) []sut.Route { return []sut.Route{{Path: "/img/*", To: to}, {To: []string{"web-1"}}} }
	join := func(slot, port string) []string {
		return []string{
			slot + " state drain", slot + " addr 127.0.0.1 port " + port, slot + " health down", slot + " state ready",
		}
	}
	routed := func(host string) sut.Upstreams { return sut.Upstreams{Peers: first, Routes: routes(host)} }
	weighted := func(first, second float64) sut.Upstreams {
		return sut.Upstreams{Peers: []sut.Peer{host(1, 1, first), host(2, 2, second)}}
	}
	for name, test := range map[string]struct {
		cfg     sut.Balancing
		changes []change
	}{
		"a host is added, removed and added again": {sut.Balancing{}, []change{
			{sut.Upstreams{Peers: append(first[:2:2], host(3, 3, 0))}, "", join("web/spare-1", "3"), ""},
			{sut.Upstreams{Peers: first}, "", []string{"web/spare-1 state maint"}, "spare-1"},
			{sut.Upstreams{Peers: first}, "", nil, "spare-1"},
			{sut.Upstreams{Peers: append(first[:2:2], host(3, 4, 0))}, "", join("web/spare-1", "4"), ""},
		}},
		"a host gets a new address": {sut.Balancing{}, []change{
			{sut.Upstreams{Peers: []sut.Peer{first[0], host(2, 9, 0)}}, "web-2", join("web/web-2", "9"), ""},
		}},
		"connections of a removed host stay open": {sut.Balancing{Layer: sut.Layer4}, []change{
			{sut.Upstreams{Peers: first[:1]}, "", []string{"web/web-2 state drain"}, "web-2"},
			{sut.Upstreams{Peers: first}, "", []string{"web/web-2 state ready"}, ""},
		}},
		"weights": {sut.Balancing{Policy: sut.PolicyWeightedRoundRobin}, []change{
			{weighted(2.5, 1), "", []string{"web/web-1 weight 25"}, ""},
			// The heaviest host gets HAProxy's maximum.
			{weighted(100, 1), "", []string{"web/web-1 weight 256", "web/web-2 weight 3"}, ""},
		}},
		"a route's only host is replaced by a host that is up": {sut.Balancing{Upstreams: routed("web-1")}, []change{
			{routed("web-2"), "web-2", []string{"route-1/web-2 state ready", "route-1/web-1 state maint"}, ""},
		}},
		"weight under ip_hash": {sut.Balancing{Policy: sut.PolicyIPHash}, []change{
			{
				sut.Upstreams{Peers: append(first[:2:2], host(3, 3, 0))},
				"",
				append([]string{"web/spare-1 weight 16"}, join("web/spare-1", "3")...), "",
			},
		}},
	} {
		cfg := test.cfg
		cfg.Node, cfg.Peers = "lb-1", first
		t.Run(name, func(t *testing.T) { checkChanges(t, newSlots(cfg.Complete()), test.changes) })
	}
}

// checkChanges makes changes one after the other.
func checkChanges(t *testing.T, p *slots, changes []change) {
	t.Helper()
	for i, c := range changes {
		steps, removed, err := p.change(c.to, map[string]bool{c.healthy: true})
		if err != nil {
			t.Errorf("change %d: %v", i, err)
			break
		}
		var got []string
		for _, s := range steps {
			for _, command := range s.commands {
				got = append(got, strings.TrimPrefix(command, "set server "))
			}
			p.done(s)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("change %d: (-want +got):\n%s", i, diff)
		}
		if got := strings.Join(removed, " "); got != c.removed {
			t.Errorf("change %d: slots %q of removed hosts, want %q", i, got, c.removed)
		}
	}
}

// A step that the server did not execute is repeated in the next change.
func TestStepsAreRepeated(t *testing.T) {
	t.Parallel()
	both := sut.Upstreams{Peers: []sut.Peer{host(1, 1, 0), host(2, 2, 0)}}
	p := newSlots(sut.Balancing{Node: "lb-1", Upstreams: both}.Complete())
	for range 2 {
		steps, _, err := p.change(sut.Upstreams{Peers: []sut.Peer{host(1, 1, 0)}}, nil)
		if err != nil || len(steps) != 1 {
			t.Errorf("%d steps, %v, want 1", len(steps), err)
		}
	}
}

func TestChangeIsRefused(t *testing.T) {
	t.Parallel()
	routes := []sut.Route{{Path: "/img/*", To: []string{"web-1"}}}
	one := []sut.Peer{host(1, 1, 0)}
	cfg := sut.Balancing{Node: "lb-1", Upstreams: sut.Upstreams{Peers: one, Routes: routes}}.Complete()
	var many []sut.Peer
	for i := range spares + 2 {
		many = append(many, host(i+1, i+1, 0))
	}
	other := []sut.Route{{Path: "/pictures/*", To: []string{"web-1"}}}
	added := append(routes[:1:1], sut.Route{Method: "PUT", To: []string{"web-1"}})
	addedRest := append(routes[:1:1], sut.Route{To: []string{"web-1"}})
	const conditions = "cannot change the conditions of its routes"
	for name, test := range map[string]struct {
		m    sut.Upstreams
		want string // part of the error; "" = no error
	}{
		"no hosts":                  {sut.Upstreams{Routes: routes}, "no upstreams"},
		"other conditions":          {sut.Upstreams{Peers: one, Routes: other}, conditions},
		"route removed":             {sut.Upstreams{Peers: one}, conditions},
		"route added":               {sut.Upstreams{Peers: one, Routes: added}, conditions},
		"route without a condition": {sut.Upstreams{Peers: one, Routes: addedRest}, ""},
		"as many hosts as slots":    {sut.Upstreams{Peers: many[:spares+1], Routes: routes}, ""},
		"one more host than slots":  {sut.Upstreams{Peers: many, Routes: routes}, "17 new hosts: HAProxy has 16 spare slots"},
	} {
		p := newSlots(cfg)
		_, _, err := p.change(test.m, nil)
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: error %v, want one about %q", name, err, test.want)
		case err != nil && len(p.members.Peers) != 1:
			t.Errorf("%s: the members changed", name)
		}
	}
}

// A line of the server about a request becomes a line of the node's log.
func TestPrinted(t *testing.T) {
	t.Parallel()
	entry := func(status int, upstream, end string) string {
		return fmt.Sprintf(`{"request_id":"17","method":"GET","path":"\/a\"b",`+
			`"status":%d,"upstream":"%s","duration_ms":5,"end":"%s"}`, status, upstream, end)
	}
	line := func(level string, status int, upstream, cause string) string {
		return fmt.Sprintf(`{"level":"%s","msg":"request","request_id":"17","method":"GET","path":"/a\"b",`+
			`"status":%d,"upstream":"%s","duration_ns":5000000,"cause":"%s"}`, level, status, upstream, cause)
	}
	const hostFailed = "the host closed the connection or could not be reached"
	for _, test := range []struct {
		printed, logged string
		want            bool
		log             string
	}{
		{entry(200, "web-1", "--"), sut.LogAll, true, line("INFO", 200, "web-1", "")},
		{entry(200, "web-1", "--"), sut.LogFailed, true, ""}, // a second host answered
		{entry(500, "spare-1", "--"), sut.LogFailed, true, line("WARN", 500, "web-2", "")},
		{entry(500, "web-1", "--"), sut.LogNone, true, ""},
		{entry(-1, "web-1", "CD"), sut.LogFailed, true, line("WARN", 499, "web-1", "the client left")},
		{entry(200, "web-1", "SD"), sut.LogFailed, true, line("WARN", 200, "web-1", hostFailed)},
		{entry(503, "<NOSRV>", "SC"), sut.LogFailed, true, line("WARN", 503, "", hostFailed)},
		{"[WARNING] (1) : Server web/web-1 is DOWN", sut.LogAll, false, ""},
		{`{"request_id":"17","method":`, sut.LogAll, false, ""}, // cut
	} {
		var log bytes.Buffer
		handler := slog.NewJSONHandler(&log, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}})
		both := []sut.Peer{host(1, 1, 0), host(2, 2, 0)}
		h := New(Config{
			Balancing: sut.Balancing{Node: "lb-1", Upstreams: sut.Upstreams{Peers: both[:1]}, LogRequests: test.logged},
			Log:       slog.New(handler),
		})
		if _, _, err := h.slots.change(sut.Upstreams{Peers: both}, nil); err != nil {
			t.Fatal(err)
		}
		if got := h.HandleLogLine(test.printed); got != test.want {
			t.Errorf("%s: %v, want %v", test.printed, got, test.want)
		}
		if got := strings.TrimSpace(log.String()); got != test.log {
			t.Errorf("%s with log.requests %s: logged\n%s, want\n%s", test.printed, test.logged, got, test.log)
		}
	}
}

// When the context ends during a command, the error is that of the context, not that of
// the closed connection.
func TestCommandIsCanceled(t *testing.T) {
	t.Parallel()
	h := New(Config{Balancing: sut.Balancing{Node: "lb-1"}, Dir: t.TempDir()})
	listener, err := net.Listen("unix", filepath.Join(h.cfg.Dir, socketName))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		_, _ = conn.Read(make([]byte, 1)) // and nothing more, so that the client's write blocks
		cancel()
	}()
	if _, err := h.ask(ctx, strings.Repeat("more than a socket holds", 1<<20)); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that of the context", err)
	}
}

// A host that is added is not counted as going down. A host that is ejected is.
func TestStatisticsOfHosts(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		joins uint64
		row   string // of the server, as JSON
		want  sut.UpstreamStatus
	}{
		{1, `{"status":"UP","chkdown":"1","hanafail":""}`, sut.UpstreamStatus{Up: true, WentUp: 1}},
		{
			1, `{"status":"DOWN","chkdown":"1","hanafail":"","check_status":"L4CON"}`,
			sut.UpstreamStatus{Cause: "health check: L4CON"},
		},
		{1, `{"status":"UP","chkdown":"2","hanafail":""}`, sut.UpstreamStatus{Up: true, WentUp: 2, WentDown: 1}},
		{
			0, `{"status":"DOWN","chkdown":"2","hanafail":"1","check_status":"HANA"}`,
			sut.UpstreamStatus{
				WentUp: 1, WentDown: 2, Ejections: 1, Ejected: true, Cause: "ejected after consecutive failed connections",
			},
		},
		{
			0, `{"status":"DOWN","chkdown":"1","hanafail":"0","check_status":"L7OK"}`,
			sut.UpstreamStatus{WentDown: 1, Ejected: true, Cause: "ejected after consecutive failed requests"},
		},
		{0, `{"status":"MAINT","chkdown":"2","hanafail":"1"}`, sut.UpstreamStatus{}},
	} {
		values := map[string]string{"scur": "0", "stot": "0"}
		if err := json.Unmarshal([]byte(test.row), &values); err != nil {
			t.Fatal(err)
		}
		var failed error
		var got sut.UpstreamStatus
		add(&got, statRow{values, &failed}, test.joins)
		if diff := cmp.Diff(test.want, got); diff != "" || failed != nil {
			t.Errorf("%s: %v (-want +got):\n%s", test.row, failed, diff)
		}
	}
}

// Only failures with no success between them make a streak. An answer that breaks off was counted as a success before.
func TestStreaks(t *testing.T) {
	t.Parallel()
	s := streaks{slots: map[string]streak{}}
	for i, step := range []struct {
		entry logEntry
		want  int
	}{
		{logEntry{Upstream: "web-1", Status: 500, End: "--", Successes: "7"}, 1},
		{logEntry{Upstream: "web-1", Status: 502, End: "SH", Successes: "7"}, 2},
		{logEntry{Upstream: "web-2", Status: 500, End: "--", Successes: "7"}, 1},
		{logEntry{Upstream: "web-1", Status: 504, End: "sH", Successes: "8"}, 1},
		{logEntry{Upstream: "web-2", Status: 200, End: "SD", Successes: "8"}, 2},
		{logEntry{Upstream: "<NOSRV>", Status: 503, End: "SC", Successes: "-"}, 0},
	} {
		if got := s.count(step.entry); got != step.want {
			t.Errorf("step %d: %d failures in a row, want %d", i, got, step.want)
		}
	}
	for _, test := range []struct {
		entry logEntry
		want  bool
	}{
		{logEntry{Status: 500, End: "--"}, true},
		{logEntry{Status: 200, End: "SD"}, true},
		{logEntry{Status: 503, End: "--"}, false},
		{logEntry{Status: 503, End: "SC"}, false},
		{logEntry{Status: 200, End: "CD"}, false},
		{logEntry{Status: 501, End: "--"}, false},
	} {
		if got := test.entry.hostFailed(); got != test.want {
			t.Errorf("%+v: the host failed: %v, want %v", test.entry, got, test.want)
		}
	}
}
