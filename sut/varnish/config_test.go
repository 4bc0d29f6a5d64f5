package varnish

import (
	"bufio"
	"flag"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/program"
)

var update = flag.Bool("update", false, "rewrite the golden configurations")

// edge is a configuration with two origins.
func edge() Config {
	return Config{
		EdgeConfig: sut.EdgeConfig{
			Node: "edge-1", MaxBytes: 64 << 20,
			Origins: []sut.Peer{{Node: "lb-1", Address: "127.0.0.1:81"}, {Node: "lb-2", Address: "[::1]:82"}},
		},
		Install: Install{Install: program.Install{Path: "/nonexistent", Version: "7.1.1"}}, Dir: "/nonexistent",
		Listen: net.IPv4(127, 0, 0, 1), Port: 8080,
	}
}

func TestConfiguration(t *testing.T) {
	t.Parallel()
	plain, full := edge(), edge()
	full.Site, full.TTL, full.Admit = "photos.example:8080", 10*time.Minute, sut.AdmitSecondHit
	for name, c := range map[string]Config{"plain": plain, "full": full} {
		s := New(c)
		if err := s.cfg.validate(); err != nil {
			t.Fatal(err)
		}
		got := "# " + strings.Join(s.Command().Args, "\n#   ") + "\n\n" + s.cfg.render(c.Origins)
		path := filepath.Join("testdata", name+".vcl")
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
	injected := []sut.Peer{{Node: "lb-1", Address: "127.0.0.1:81\";}"}}
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no install": {func(c *Config) { c.Install = Install{} }, "no Varnish installation"},
		"no dir":     {func(c *Config) { c.Dir = "" }, "no directory"},
		"no address": {func(c *Config) { c.Listen = nil }, "no address"},
		"port 0":     {func(c *Config) { c.Port = 0 }, "port 0"},
		"threads":    {func(c *Config) { c.MaxThreads = 1 }, "1 threads"},
		"drain":      {func(c *Config) { c.Drain = 1 }, "drain 1ns"},
		"injection":  {func(c *Config) { c.Origins = injected }, "want IP:port"},
		"site":       {func(c *Config) { c.Site = `a"b` }, "want a host"},
	} {
		c := edge()
		test.change(&c)
		if err := New(c).Prepare(t.Context()); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want one about %q", name, err, test.want)
		}
	}
}

func TestParseVersion(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"varnishd (varnish-7.1.1 revision 7cee1c581bead20e)\nCopyright (c)": "7.1.1",
		"nginx version: nginx/1.22.1\n":                                     "",
	} {
		if got := installed().Version.FindStringSubmatch(text); (got == nil) != (want == "") || got != nil && got[1] != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// The example is that of varnish-cli(7).
func TestResponse(t *testing.T) {
	t.Parallel()
	const want = "455ce847f0073c7ab3b1465f74507b75d3dc064c1e7de3b71e00de9092fdc89a"
	if got := response("ixslvvxrgkjptxmcgnnsdxsvdmvfympg", []byte("foo\n")); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestReadAnswer(t *testing.T) {
	t.Parallel()
	status, text, err := readAnswer(bufio.NewReader(strings.NewReader("107 5       \nhello\n")))
	if status != 107 || text != "hello" || err != nil {
		t.Errorf("%d %q %v, want 107 hello", status, text, err)
	}
	for _, wrong := range []string{"", "200\n", "x 5\nhello\n", "200 -1\n", "200 5\nhel", "200 99999999999\n"} {
		if _, _, err := readAnswer(bufio.NewReader(strings.NewReader(wrong))); err == nil {
			t.Errorf("%q is an answer", wrong)
		}
	}
}

func TestQuoted(t *testing.T) {
	t.Parallel()
	if got, want := quoted("/a b/\"\\\n\xff"), `"/a b/\042\134\012\377"`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestParseManagement(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"127.9.9.9 40521\n\x00\x00\x00": "127.9.9.9:40521",
		"/tmp/a b/secret\x00":           "",
		"vm\x00":                        "",
		"name 80\x00":                   "",
	} {
		if got, found := parseManagement([]byte(text)); got != want || found != (want != "") {
			t.Errorf("%q: %q %t, want %q", text, got, found, want)
		}
	}
}

// Patterns of Go and of Varnish have the same meaning here. The management interface takes one of two backslashes.
func TestGroupPattern(t *testing.T) {
	t.Parallel()
	matches := func(group, field string) bool {
		pattern := strings.ReplaceAll(groupPattern(group), `\\`, `\`)
		return regexp.MustCompile(pattern).MatchString(field)
	}
	for _, test := range []struct {
		group, field string
		want         bool
	}{
		{"user-3", `"photo-17", "user-3"`, true},
		{"user-3", `"user-3";a=1,"b"`, true},
		{"user-3", `"user-33"`, false},
		{"user-3", `"User-3"`, false},
		{"a.b", `"aXb"`, false},
		{`a"b\`, `"a\"b\\"`, true},
		{"b", `"a\"b\""`, false},
		{"a b", `"a b"`, true},
	} {
		if got := matches(test.group, test.field); got != test.want {
			t.Errorf("group %s is in %s: %t, want %t", test.group, test.field, got, test.want)
		}
	}
	if word := groupPattern("a b\"\n"); strings.ContainsAny(word, " \t\n\"") {
		t.Errorf("%s is more than one word", word)
	}
}

func TestFigures(t *testing.T) {
	t.Parallel()
	counters, err := parseCounters([]byte(`{"version": 1, "counters": {
		"MAIN.client_req": {"value": 20}, "MAIN.cache_miss": {"value": 3}, "MAIN.s_pass": {"value": 2},
		"MAIN.backend_req": {"value": 6}, "MAIN.n_lru_nuked": {"value": 7}, "MAIN.n_object": {"value": 8},
		"MAIN.bans_obj_killed": {"value": 1}, "MAIN.bans_lurker_obj_killed": {"value": 2},
		"SMA.s0.g_bytes": {"value": 9}, "VBE.boot.o0.beresp_bodybytes": {"value": 100},
		"VBE.boot.o1.beresp_bodybytes": {"value": 50}, "VBE.boot.o1.beresp_hdrbytes": {"value": 5}}}`))
	if err != nil {
		t.Fatal(err)
	}
	got, err := figures(counters)
	want := sut.EdgeFigures{
		Requests: 20, Hits: 15, Fetched: 6, FetchedBytes: 150, Stored: -1, Evicted: 7, Purged: 3, Entries: 8, Bytes: 9,
	}
	if err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	delete(counters, "MAIN.n_object")
	if _, err := figures(counters); err == nil || !strings.Contains(err.Error(), "MAIN.n_object") {
		t.Errorf("error %v, want one about the missing counter", err)
	}
	if _, err := parseCounters([]byte("{")); err == nil {
		t.Error("half a document is accepted")
	}
}
