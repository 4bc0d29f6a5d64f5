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

// host is an upstream at a port of its own.
func host(number, port int, weight float64) sut.Peer {
	return sut.Peer{Node: fmt.Sprintf("web-%d", number), Address: fmt.Sprintf("127.0.0.1:%d", port), Weight: weight}
}

// TestMembershipCommands: what a running server is told, for one
// membership after the other.
func TestMembershipCommands(t *testing.T) {
	t.Parallel()
	first := []sut.Peer{host(1, 1, 0), host(2, 2, 0)}
	routes := func(to ...string) []sut.Route { return []sut.Route{{Path: "/img/*", To: to}, {To: []string{"web-1"}}} }
	type change struct {
		to   sut.Upstreams
		well string   // a place that is well already
		want []string // without "set server"
		left string   // places of hosts that left
	}
	join := func(server, port string) []string {
		return []string{server + " state drain", server + " addr 127.0.0.1 port " + port, server + " health down", server + " state ready"}
	}
	for name, test := range map[string]struct {
		cfg     sut.Balancing
		changes []change
	}{
		"a host comes, goes and comes back": {sut.Balancing{}, []change{
			{sut.Upstreams{Peers: append(first[:2:2], host(3, 3, 0))}, "", join("web/spare-1", "3"), ""},
			{sut.Upstreams{Peers: first}, "", []string{"web/spare-1 state maint"}, "spare-1"},
			{sut.Upstreams{Peers: first}, "", nil, "spare-1"},
			{sut.Upstreams{Peers: append(first[:2:2], host(3, 4, 0))}, "", join("web/spare-1", "4"), ""},
		}},
		"a host moves": {sut.Balancing{}, []change{
			{sut.Upstreams{Peers: []sut.Peer{first[0], host(2, 9, 0)}}, "web-2", join("web/web-2", "9"), ""},
		}},
		"connections of a host that left go on": {sut.Balancing{Layer: sut.Layer4}, []change{
			{sut.Upstreams{Peers: first[:1]}, "", []string{"web/web-2 state drain"}, "web-2"},
			{sut.Upstreams{Peers: first}, "", []string{"web/web-2 state ready"}, ""},
		}},
		"weights": {sut.Balancing{Policy: sut.PolicyWeightedRoundRobin}, []change{
			{sut.Upstreams{Peers: []sut.Peer{host(1, 1, 2.5), host(2, 2, 1)}}, "", []string{"web/web-1 weight 25"}, ""},
			// The heaviest is as heavy as the server allows.
			{sut.Upstreams{Peers: []sut.Peer{host(1, 1, 100), host(2, 2, 1)}}, "", []string{"web/web-1 weight 256", "web/web-2 weight 3"}, ""},
		}},
		"a route's only host is replaced by one that is well": {sut.Balancing{Upstreams: sut.Upstreams{Routes: routes("web-1")}}, []change{
			{sut.Upstreams{Peers: first, Routes: routes("web-2")}, "web-2", []string{"route-1/web-2 state ready", "route-1/web-1 state maint"}, ""},
		}},
		"all points of the circle": {sut.Balancing{Policy: sut.PolicyIPHash}, []change{
			{
				sut.Upstreams{Peers: append(first[:2:2], host(3, 3, 0))},
				"",
				append([]string{"web/spare-1 weight 16"}, join("web/spare-1", "3")...), "",
			},
		}},
	} {
		cfg := test.cfg
		cfg.Node, cfg.Peers = "lb-1", first
		p := newPlaces(cfg.Complete())
		for i, c := range test.changes {
			steps, left, err := p.change(c.to, map[string]bool{c.well: true})
			if err != nil {
				t.Errorf("%s: %d: %v", name, i, err)
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
				t.Errorf("%s: %d: (-want +got):\n%s", name, i, diff)
			}
			if got := strings.Join(left, " "); got != c.left {
				t.Errorf("%s: %d: hosts in %q left, want %q", name, i, got, c.left)
			}
		}
	}
}

// TestMembershipIsRepeated: what the server was not told is told the next
// time.
func TestMembershipIsRepeated(t *testing.T) {
	t.Parallel()
	p := newPlaces(sut.Balancing{Node: "lb-1", Upstreams: sut.Upstreams{Peers: []sut.Peer{host(1, 1, 0), host(2, 2, 0)}}}.Complete())
	for range 2 {
		steps, _, err := p.change(sut.Upstreams{Peers: []sut.Peer{host(1, 1, 0)}}, nil)
		if err != nil || len(steps) != 1 {
			t.Errorf("%d steps, %v, want 1", len(steps), err)
		}
	}
}

func TestMembershipIsRefused(t *testing.T) {
	t.Parallel()
	routes := []sut.Route{{Path: "/img/*", To: []string{"web-1"}}}
	cfg := sut.Balancing{Node: "lb-1", Upstreams: sut.Upstreams{Peers: []sut.Peer{host(1, 1, 0)}, Routes: routes}}.Complete()
	var crowd []sut.Peer
	for i := range spares + 2 {
		crowd = append(crowd, host(i+1, i+1, 0))
	}
	all := sut.Route{To: []string{"web-1"}}
	for name, test := range map[string]struct {
		m    sut.Upstreams
		want string // part of the error; "" for none
	}{
		"no hosts":         {sut.Upstreams{Routes: routes}, "no upstreams"},
		"other conditions": {sut.Upstreams{Peers: crowd[:1], Routes: []sut.Route{{Path: "/pictures/*", To: []string{"web-1"}}}}, "other conditions only when it is started"},
		"a route less":     {sut.Upstreams{Peers: crowd[:1]}, "other conditions only when it is started"},
		"a route more":     {sut.Upstreams{Peers: crowd[:1], Routes: append(routes[:1:1], sut.Route{Method: "PUT", To: []string{"web-1"}})}, "other conditions"},
		"the rest":         {sut.Upstreams{Peers: crowd[:1], Routes: append(routes[:1:1], all)}, ""},
		"full":             {sut.Upstreams{Peers: crowd[:spares+1], Routes: routes}, ""},
		"too many":         {sut.Upstreams{Peers: crowd, Routes: routes}, "17 new hosts: HAProxy has room for 16"},
	} {
		p := newPlaces(cfg)
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

// TestPrinted: a line of the server becomes one of ours.
func TestPrinted(t *testing.T) {
	t.Parallel()
	entry := func(status int, upstream, end string) string {
		return fmt.Sprintf(`{"request_id":"17","method":"GET","path":"\/a\"b","status":%d,"upstream":"%s","duration_ms":5,"end":"%s"}`, status, upstream, end)
	}
	line := func(level string, status int, upstream, cause string) string {
		return fmt.Sprintf(`{"level":"%s","msg":"request","request_id":"17","method":"GET","path":"/a\"b","status":%d,"upstream":"%s","duration_ns":5000000,"cause":"%s"}`,
			level, status, upstream, cause)
	}
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
		{entry(200, "web-1", "SD"), sut.LogFailed, true, line("WARN", 200, "web-1", "the host broke off or could not be reached")},
		{entry(503, "<NOSRV>", "SC"), sut.LogFailed, true, line("WARN", 503, "", "the host broke off or could not be reached")},
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
		h := New(Config{
			Balancing: sut.Balancing{Node: "lb-1", Upstreams: sut.Upstreams{Peers: []sut.Peer{host(1, 1, 0)}}, LogRequests: test.logged},
			Log:       slog.New(handler),
		})
		if _, _, err := h.places.change(sut.Upstreams{Peers: []sut.Peer{host(1, 1, 0), host(2, 2, 0)}}, nil); err != nil {
			t.Fatal(err)
		}
		if got := h.Printed(test.printed); got != test.want {
			t.Errorf("%s: %v, want %v", test.printed, got, test.want)
		}
		if got := strings.TrimSpace(log.String()); got != test.log {
			t.Errorf("%s, logging %s, became\n%s, want\n%s", test.printed, test.logged, got, test.log)
		}
	}
}

// TestQuestionIsGivenUp: a caller who gives up in the middle of what it says to
// the server is told that, and not that a connection is closed.
func TestQuestionIsGivenUp(t *testing.T) {
	t.Parallel()
	h := New(Config{Balancing: sut.Balancing{Node: "lb-1"}, Dir: t.TempDir()})
	listener, err := net.Listen("unix", filepath.Join(h.cfg.Dir, socketName))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ctx, giveUp := context.WithCancel(t.Context())
	defer giveUp()
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		_, _ = conn.Read(make([]byte, 1)) // and no more
		giveUp()
	}()
	if _, err := h.ask(ctx, strings.Repeat("more than a socket holds", 1<<20)); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that of the context", err)
	}
}

// TestStatisticsOfHosts: a host that joins is not counted as one that went
// down, and one that is ejected is.
func TestStatisticsOfHosts(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		joins uint64
		row   string // of the server, as JSON
		want  sut.UpstreamStatus
	}{
		{1, `{"status":"UP","chkdown":"1","hanafail":""}`, sut.UpstreamStatus{Up: true, WentUp: 1}},
		{1, `{"status":"DOWN","chkdown":"1","hanafail":"","check_status":"L4CON"}`, sut.UpstreamStatus{Cause: "health check: L4CON"}},
		{1, `{"status":"UP","chkdown":"2","hanafail":""}`, sut.UpstreamStatus{Up: true, WentUp: 2, WentDown: 1}},
		{0, `{"status":"DOWN","chkdown":"2","hanafail":"1","check_status":"HANA"}`, sut.UpstreamStatus{WentUp: 1, WentDown: 2, Ejections: 1, Ejected: true, Cause: "health check: HANA"}},
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
