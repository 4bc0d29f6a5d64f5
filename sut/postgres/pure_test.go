package postgres

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stagebench/stagebench/sut"
)

func TestParseVersion(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n": "15.18",
		"postgres (PostgreSQL) 18beta1\n":                        "18",
		"postgres (PostgreSQL) 9.6.24\n":                         "9.6.24",
		"postgres (EnterpriseDB)\n":                              "",
		"":                                                       "",
	} {
		if got := parseVersion(text); got != want {
			t.Errorf("parseVersion(%q) = %q, want %q", text, got, want)
		}
	}
}

func TestChooseInstall(t *testing.T) {
	t.Parallel()
	versions := map[string]string{
		"/path": "15.2", "/old": "13.9", "/15": "15.18", "/9": "9.6.24", "/17": "17.1",
		"/15.9": "15.9",
	}
	version := func(bin string) (string, error) {
		if v, found := versions[bin]; found {
			return v, nil
		}
		return "", errors.New("no such program")
	}
	for _, test := range []struct {
		name              string
		preferred, others []string
		want              string // directory, or a part of the error
	}{
		{name: "the one on PATH", preferred: []string{"/path"}, others: []string{"/17"}, want: "/path"},
		{name: "too old on PATH", preferred: []string{"/old"}, others: []string{"/15", "/17"}, want: "/17"},
		{name: "newest, by number", others: []string{"/9", "/15.9", "/15", "/old"}, want: "/15"},
		{name: "a broken one is ignored", preferred: []string{"/none"}, others: []string{"/gone", "/15"}, want: "/15"},
		{
			name: "only old ones", others: []string{"/9", "/old"},
			want: "found only version 13.9 in /old, want version 15 or newer\napt-get install postgresql",
		},
		{name: "none", want: "no server found on PATH or under /usr/lib/postgresql\napt-get install postgresql"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			install, err := chooseInstall(test.preferred, test.others, version)
			switch {
			case err != nil && !strings.Contains(err.Error(), test.want):
				t.Errorf("error %q, want %q", err, test.want)
			case err == nil && install.Bin != test.want:
				t.Errorf("chose %s, want %s", install.Bin, test.want)
			}
		})
	}
}

func TestParseLock(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		text string
		want lock
	}{
		"complete": {
			"4711\n/data\n1700000000\n5433\n\n127.0.0.1\n   123456        7\nready   \n",
			lock{pid: 4711, segment: 7, ready: true},
		},
		"incomplete": {"4711\n/data\n1700000000\n5433\n", lock{pid: 4711, segment: -1}},
		"no segment": {"4711\n/data\n1700000000\n5433\n\n127.0.0.1\n\nstarting\n", lock{pid: 4711, segment: -1}},
		"empty":      {"", lock{segment: -1}},
		"nonsense":   {"x\n\n\n\n\n\na b\n", lock{segment: -1}},
	} {
		if got := parseLock(test.text); got != test.want {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
	}
}

func TestInvalidConfig(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	good := Config{
		Install: Install{Bin: "/nonexistent/bin", Version: "15.18"}, Dir: filepath.Join(dir, "data"),
		Listen: net.IPv4(127, 0, 0, 1), Port: 5433, Secret: secret,
	}
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no install":     {func(c *Config) { c.Install = Install{} }, "no PostgreSQL installation"},
		"no secret":      {func(c *Config) { c.Secret = "" }, "no secret"},
		"no directory":   {func(c *Config) { c.Dir = "" }, "no data directory"},
		"port 0":         {func(c *Config) { c.Port = 0 }, "port 0"},
		"port too large": {func(c *Config) { c.Port = 65536 }, "port 65536"},
		"any address":    {func(c *Config) { c.Listen = net.IPv4zero }, "0.0.0.0 is not a loopback address"},
		"no address":     {func(c *Config) { c.Listen = nil }, "not a loopback address"},
		"negative procs": {func(c *Config) { c.Procs = -1 }, "procs -1"},
		"no node name": {
			func(c *Config) { c.Replication = &Replication{State: sut.Replication{Epoch: 1}} },
			"want 1 to 63 letters",
		},
		"no epoch": {func(c *Config) { c.Replication = &Replication{Node: "db-1"} }, "epoch 0"},
		"negative copies": {
			func(c *Config) { c.Replication = &Replication{Node: "db-1", SyncCopies: -1} },
			"-1 synchronous",
		},
		"negative lag": {func(c *Config) { c.Replication = &Replication{Node: "db-1", Lag: -1} }, "lag -1ns"},
		"no primary port": {func(c *Config) {
			c.Replication = &Replication{Node: "db-2", State: sut.Replication{Epoch: 1, Primary: &sut.Peer{Address: "db-1"}}}
		}, "address of the primary"},
		"primary by name": {func(c *Config) {
			c.Replication = &Replication{
				Node:  "db-2",
				State: sut.Replication{Epoch: 1, Primary: &sut.Peer{Address: "db-1:5433"}},
			}
		}, "want IP:port"},
	} {
		cfg := good
		test.change(&cfg)
		err := New(cfg).Prepare(context.Background())
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want one about %q", name, err, test.want)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("an invalid configuration left files: %v, %v", entries, err)
	}
}

func TestDirectoryWithOtherFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "thesis.tex"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	server := New(Config{
		Install: Install{Bin: "/nonexistent/bin", Version: "15.18"}, Dir: dir,
		Listen: net.IPv4(127, 0, 0, 1), Port: 5433, Secret: secret,
	})
	err := server.Prepare(t.Context())
	if err == nil || !strings.Contains(err.Error(), "holds thesis.tex and no PG_VERSION") {
		t.Errorf("error %v", err)
	}
}

func TestMakeReachable(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root gives directories to another user")
	}
	root, err := user.LookupId("0")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	other := &owner{name: "other", uid: 54321, gid: 54321}

	deep := filepath.Join(t.TempDir(), "a", "b")
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := other.makeReachable(deep, log); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{deep, filepath.Dir(deep)} {
		info, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o701 {
			t.Errorf("%s has mode %o, want 701", dir, info.Mode().Perm())
		}
	}

	home, err := os.Stat(root.HomeDir)
	if err != nil {
		t.Skip(err)
	}
	if home.Mode().Perm()&0o001 != 0 {
		t.Skipf("all users have access to %s", root.HomeDir)
	}
	err = other.makeReachable(root.HomeDir, log)
	if err == nil || !strings.Contains(err.Error(), "has no access to "+root.HomeDir+"\nchoose a directory outside") {
		t.Errorf("error %v", err)
	}
	if after, err := os.Stat(root.HomeDir); err != nil || after.Mode() != home.Mode() {
		t.Errorf("the mode of a directory outside the temporary one is now %v, %v", after.Mode(), err)
	}
}

func TestSearchBit(t *testing.T) {
	t.Parallel()
	o := &owner{uid: 100, gid: 200}
	for want, stat := range map[os.FileMode]syscall.Stat_t{
		0o100: {Uid: 100, Gid: 200},
		0o010: {Uid: 1, Gid: 200},
		0o001: {Uid: 1, Gid: 2},
	} {
		if got := o.searchBit(&stat); got != want {
			t.Errorf("searchBit(%d:%d) = %o, want %o", stat.Uid, stat.Gid, got, want)
		}
	}
}

func TestQuote(t *testing.T) {
	t.Parallel()
	if got, want := quote(`a'b\c`), `'a''b\\c'`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// The histories part at the end of the part that they share. The same timeline number may mean two histories.
func TestForkOf(t *testing.T) {
	const open = math.MaxInt64
	first := func(end int64) span { return span{1, 0, end} }
	for name, c := range map[string]struct {
		old, now []span
		epochs   map[int]int64
		epoch    int64
		want     int64
	}{
		"an old primary": {[]span{first(open)}, []span{first(90), {2, 90, open}}, map[int]int64{2: 2}, 1, 90},
		"the primary of a later epoch": {
			[]span{first(90), {2, 90, open}},
			[]span{first(90), {2, 90, 120}, {3, 120, open}},
			map[int]int64{2: 2, 3: 3},
			2, 120,
		},
		"it was promoted independently": {
			[]span{first(90), {2, 90, open}}, []span{first(90), {2, 90, open}}, map[int]int64{2: 3}, 2, 90,
		},
		"its successor had less": {
			[]span{first(90), {2, 90, open}}, []span{first(80), {2, 80, open}}, map[int]int64{2: 3}, 2, 80,
		},
		"it holds nothing of its own": {[]span{first(open)}, []span{first(open)}, nil, 1, open},
	} {
		if got := forkOf(c.old, c.now, c.epochs, c.epoch); got != c.want {
			t.Errorf("%s: fork at %d, want %d", name, got, c.want)
		}
	}
}
