package haproxy

import (
	"flag"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/sut"
)

var update = flag.Bool("update", false, "rewrite the golden configurations")

func TestConfiguration(t *testing.T) {
	t.Parallel()
	hosts := []sut.Peer{
		{Node: "web-1", Address: "127.0.0.2:8001", Weight: 2}, {Node: "web-2", Address: "[::1]:8002", Weight: 0.5},
	}
	routes := []sut.Route{
		{Method: "POST", Path: "/api/photos", To: []string{"web-1"}},
		{Path: "/img/*", Header: "X-Batch:1", Cookie: "beta", To: []string{"web-2", "web-1"}},
		{To: []string{"web-2"}},
	}
	for name, cfg := range map[string]sut.Balancing{
		"sticky": {Policy: sut.PolicyLeastConn, Sticky: true, HealthInterval: 1500 * time.Millisecond},
		"routes": {
			Policy: sut.PolicyWeightedRoundRobin, Sticky: true, EjectAfter: 5, LogRequests: sut.LogAll,
			Upstreams: sut.Upstreams{Routes: routes},
		},
		"layer4": {Policy: sut.PolicyIPHash, Layer: sut.Layer4, EjectAfter: 3},
	} {
		cfg.Node, cfg.Peers = "lb-1", hosts
		complete := Config{Balancing: cfg, Listen: net.IPv4(127, 0, 0, 1), Port: 8080, Procs: 2}.defaults()
		got := complete.render(1234, newSlots(complete.Balancing).reset())
		path := filepath.Join("testdata", name+".cfg")
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got); diff != "" {
			t.Errorf("%s, make golden rewrites it (-want +got):\n%s", path, diff)
		}
	}
}

func TestConnectionsWithinTheFileLimit(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		files uint64
		got   int
	}{
		{math.MaxUint64, 10_000},
		{1 << 20, 10_000},
		{4096, 1948},
		{1024, 412},
		{100, 1},
	} {
		if got := connectionsWithin(test.files, 10_000); got != test.got {
			t.Errorf("connections within %d files: %d, want %d", test.files, got, test.got)
		}
	}
}

func TestStatistics(t *testing.T) {
	t.Parallel()
	const header = "# pxname,svname,scur,stot,wredis,status,chkdown,check_status,last_chk," +
		"hrsp_1xx,hrsp_2xx,hrsp_3xx,hrsp_4xx,hrsp_5xx,hrsp_other,addr,\n"
	rows, err := parseStat(header +
		"public,FRONTEND,1,9,,OPEN,,,,0,5,1,2,3,4,,\n" +
		`web,web-1,1,5,0,UP,2,L7OK,"OK, and well",0,5,0,0,0,0,127.0.0.1:1,` + "\n" +
		"web,web-2,0,4,0,DOWN,3,L4CON,Connection refused,0,0,0,0,0,0,127.0.0.1:2,\n" +
		"web,web-3,0,0,0,DOWN 1/2,0,,,0,0,0,0,0,0,127.0.0.1:3,\n" +
		"web,BACKEND,1,9,7,UP,0,,,0,5,1,2,3,0,,\n\n")
	if err != nil {
		t.Fatal(err)
	}
	var peers []sut.Peer
	for i := range 3 {
		peers = append(peers, sut.Peer{Node: fmt.Sprintf("web-%d", i+1), Address: fmt.Sprintf("127.0.0.1:%d", i+1)})
	}
	hosts := newSlots(sut.Balancing{Upstreams: sut.Upstreams{Peers: peers}})
	var got sut.BalancerStatus
	if err := hosts.fill(&got, rows); err != nil {
		t.Fatal(err)
	}
	want := sut.BalancerStatus{
		Responses: map[string]uint64{"1xx": 0, "2xx": 5, "3xx": 1, "4xx": 2, "5xx": 3, "other": 4}, Redispatches: 7,
		Upstreams: []sut.UpstreamStatus{
			{Node: "web-1", Address: "127.0.0.1:1", Up: true, InFlight: 1, Requests: 5, WentUp: 2, WentDown: 2},
			{
				Node: "web-2", Address: "127.0.0.1:2", Requests: 4, WentUp: 2, WentDown: 3,
				Cause: "health check: L4CON Connection refused",
			},
			{Node: "web-3", Address: "127.0.0.1:3", Cause: "health check:"},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error("(-want +got):\n" + diff)
	}
	for text, want := range map[string]string{
		"":             "empty answer",
		header:         "no frontend",
		"# a,\n\"b,\n": "statistics",
		header + "public,FRONTEND,1,9,,OPEN,,,,x,5,1,2,3,4,,\n": "hrsp_1xx of FRONTEND",
	} {
		rows, err := parseStat(text)
		if err == nil {
			err = hosts.fill(new(sut.BalancerStatus), rows)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want one about %q", text, err, want)
		}
	}
}

func TestParseVersion(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/\nStatus: x\n": "2.6.12",
		"HAProxy version 3.2-dev1 2025/01/01":                                             "3.2",
		"HA-Proxy version 1.8.4-1 2018/02/08\n":                                           "1.8.4",
		"nginx version: nginx/1.22.1\n":                                                   "",
	} {
		if got := installed().Version.FindStringSubmatch(text); (got == nil) != (want == "") || got != nil && got[1] != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestConfigurationIsRefused(t *testing.T) {
	t.Parallel()
	good := Config{
		Balancing: sut.Balancing{Node: "lb-1", Upstreams: sut.Upstreams{
			Peers: []sut.Peer{{Node: "web-1", Address: "127.0.0.1:80"}},
		}},
		Install: Install{Path: "/nonexistent", Version: "2.6.12"}, Dir: "/nonexistent",
		Listen: net.IPv4(127, 0, 0, 1), Port: 8080,
	}
	injected := []sut.Peer{{Node: "web-1", Address: "127.0.0.1:80\nglobal"}}
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no install": {func(c *Config) { c.Install = Install{} }, "no HAProxy installation"},
		"no dir":     {func(c *Config) { c.Dir = "" }, "no directory"},
		"no address": {func(c *Config) { c.Listen = nil }, "no address"},
		"port 0":     {func(c *Config) { c.Port = 0 }, "port 0"},
		"procs":      {func(c *Config) { c.Procs = -1 }, "procs -1"},
		"drain":      {func(c *Config) { c.Drain = 1 }, "drain 1ns"},
		"algorithm":  {func(c *Config) { c.Policy = sut.PolicyLeastResponseTime }, "no such algorithm"},
		"injection":  {func(c *Config) { c.Peers = injected }, "want IP:port"},
	} {
		cfg := good
		test.change(&cfg)
		if err := New(cfg).Prepare(t.Context()); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want one about %q", name, err, test.want)
		}
	}
}
