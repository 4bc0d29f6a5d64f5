package nginx

import (
	"bufio"
	"flag"
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

// edge is a configuration with two origins.
func edge() Config {
	return Config{
		EdgeConfig: sut.EdgeConfig{
			Node: "edge-1", MaxBytes: 64 << 20,
			Origins: []sut.Peer{{Node: "lb-1", Address: "127.0.0.1:81"}, {Node: "lb-2", Address: "[::1]:82"}},
		},
		Install: Install{Path: "/nonexistent", Version: "1.22.1"}, Dir: "/nonexistent",
		Listen: net.IPv4(127, 0, 0, 1), Port: 8080,
	}
}

func TestConfiguration(t *testing.T) {
	t.Parallel()
	plain, full := edge(), edge()
	full.Site, full.TTL, full.Admit, full.Procs = "photos.example:8080", 10*time.Minute, sut.AdmitSecondHit, 2
	for name, c := range map[string]Config{"plain": plain, "full": full} {
		c = c.defaults()
		if err := c.validate(); err != nil {
			t.Fatal(err)
		}
		got := c.render(c.Origins, name == "full", 1000)
		path := filepath.Join("testdata", name+".conf")
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

func TestConfigurationIsRefused(t *testing.T) {
	t.Parallel()
	injected := []sut.Peer{{Node: "lb-1", Address: "127.0.0.1:81;}"}}
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no install":  {func(c *Config) { c.Install = Install{} }, "no nginx installation"},
		"no dir":      {func(c *Config) { c.Dir = "" }, "no directory"},
		"no address":  {func(c *Config) { c.Listen = nil }, "no address"},
		"port 0":      {func(c *Config) { c.Port = 0 }, "port 0"},
		"procs":       {func(c *Config) { c.Procs = -1 }, "procs -1"},
		"connections": {func(c *Config) { c.MaxConnections = -1 }, "-1 connections"},
		"drain":       {func(c *Config) { c.Drain = 1 }, "drain 1ns"},
		"ttl":         {func(c *Config) { c.TTL = time.Millisecond }, "whole seconds"},
		"injection":   {func(c *Config) { c.Origins = injected }, "want IP:port"},
		"site":        {func(c *Config) { c.Site = "a;b" }, "want a host"},
	} {
		c := edge()
		test.change(&c)
		if err := New(c).Prepare(t.Context()); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want one about %q", name, err, test.want)
		}
	}
}

func TestConnectionsWithinTheFileLimit(t *testing.T) {
	t.Parallel()
	for files, want := range map[uint64]int{math.MaxInt64: 10_000, 1 << 20: 10_000, 4096: 1998, 1024: 462, 100: 8} {
		if got := connectionsWithin(files, 10_000); got != want {
			t.Errorf("connections within %d files: %d, want %d", files, got, want)
		}
	}
}

func TestParseVersion(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"nginx version: nginx/1.22.1\n":           "1.22.1",
		"nginx version: nginx/1.29.0 (Ubuntu)\n":  "1.29.0",
		"HAProxy version 2.6.12-1+deb12u4 2026\n": "",
	} {
		if got := installed().Version.FindStringSubmatch(text); (got == nil) != (want == "") || got != nil && got[1] != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestParseEntry(t *testing.T) {
	t.Parallel()
	const head = "\x05\x00binary\x00\nKEY: a.example/img/1?v=2\nHTTP/1.1 200 OK\r\n" +
		"Cache-Groups: \"photo-1\", \"a\\\"b\";p=\"x\"\r\n" +
		"cache-groups: \"user-3\"\r\n\r\nCache-Groups: \"body\""
	e, err := parseEntry([]byte(head))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		purge sut.Purge
		want  bool
	}{
		{sut.Purge{URLs: []string{"/img/1?v=2"}}, true},
		{sut.Purge{URLs: []string{"/img/1"}}, false},
		{sut.Purge{Groups: []string{"photo-1"}}, true},
		{sut.Purge{Groups: []string{`a"b`}}, true},
		{sut.Purge{Groups: []string{"user-3"}}, true},
		{sut.Purge{Groups: []string{"user-33", "photo", "body"}}, false},
	} {
		if got := e.matches(test.purge); got != test.want {
			t.Errorf("%+v removes %+v: %t, want %t", test.purge, e, got, test.want)
		}
	}
	for _, text := range []string{"", "\nKEY: endless", "HTTP/1.1 200 OK\r\n\r\n"} {
		if _, err := parseEntry([]byte(text)); err == nil {
			t.Errorf("%q is an entry", text)
		}
	}
}

func FuzzEntry(f *testing.F) {
	f.Add([]byte("\nKEY: /a\nHTTP/1.1 200 OK\r\nCache-Groups: \"a\"\r\n\r\n"))
	f.Fuzz(func(t *testing.T, head []byte) {
		e, err := parseEntry(head)
		if err == nil && e.matches(sut.Purge{}) {
			t.Error("an empty purge removes an entry")
		}
	})
}

func TestLogLines(t *testing.T) {
	t.Parallel()
	s := New(edge())
	for line, want := range map[string]bool{
		fetchPrefix + " MISS 127.0.0.1:81|300|100":                       true,
		fetchPrefix + " EXPIRED 127.0.0.1:81, 127.0.0.1:82|0, 300|-, 50": true,
		"2026/01/01 00:00:00 [error] 1#1: no live upstreams":             false,
	} {
		if got := s.HandleLogLine(line); got != want {
			t.Errorf("%q is about a request: %t, want %t", line, got, want)
		}
	}
	if fetched, bytes := s.fetches.fetched.Load(), s.fetches.bytes.Load(); fetched != 3 || bytes != 150 {
		t.Errorf("%d requests with %d bytes, want 3 with 150", fetched, bytes)
	}
}

func TestParseStatus(t *testing.T) {
	t.Parallel()
	const page = "Active connections: 1 \nserver accepts handled requests\n 11 12 13 \nReading: 0 Writing: 1 Waiting: 0 \n"
	got, err := parseStatus(bufio.NewScanner(strings.NewReader(page)))
	if err != nil || got != 13 {
		t.Errorf("%d, %v, want 13", got, err)
	}
	for _, text := range []string{"", "a\nb\nc d\n", "a\nb\n1 2 x\n"} {
		if _, err := parseStatus(bufio.NewScanner(strings.NewReader(text))); err == nil {
			t.Errorf("%q is a status page", text)
		}
	}
}
