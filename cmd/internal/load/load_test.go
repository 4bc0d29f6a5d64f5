package load_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/cmd/internal/load"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/workloads"
)

func maker(service bool) load.Maker {
	return load.Maker{
		Data: sut.Data{Size: "small", Seed: 1}, Replay: load.Replay{Speed: 20, MaxGap: time.Second}, Service: service,
	}
}

// write creates a file in a new directory and returns its path.
func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A workload file with phases has its own times, and is no trace.
func TestPhases(t *testing.T) {
	path := write(t, "shop.yaml", `
phases: [{for: 10s, rate: 50}, {for: 1m, rate: 50, to: 0}]
ops: [{class: a, path: /a}]
`)
	l, err := maker(false).Make(path)
	if err != nil || l.Times == nil || l.Length != 70*time.Second || l.Trace != nil {
		t.Fatalf("%+v, %v, want 70 s", l, err)
	}
	if n := l.Times.Count(time.Hour); n < 1800 || n > 2200 {
		t.Errorf("%d ops, want about 2000", n)
	}
	path = write(t, "shop.yaml", `ops: [{class: a, path: /a}]`)
	if l, err := maker(false).Make(path); err != nil || l.Times != nil {
		t.Errorf("%+v, %v, want no times", l, err)
	}
}

// For the photo service, the paths and clients of a trace become photos and users. Any other
// target gets the paths unchanged. Every line is either mapped or counted as skipped.
func TestTrace(t *testing.T) {
	counts, _ := maker(true).Data.Counts()
	path := write(t, "site.jsonl", `{"time":10,"client":"a","path":"/x"}
{"time":13,"client":"b","method":"PURGE","path":"/y"}
{"time":12,"client":"b","path":"/z.png"}
broken
`)
	for service, want := range map[bool]struct {
		first   string
		mapped  int64
		skipped map[string]int64
	}{
		true: {
			fmt.Sprintf("/api/photos/%d", photos.PhotoID(1, counts)), 2,
			map[string]int64{"method PURGE has no counterpart": 1, "broken: not a JSON object": 1},
		},
		false: {"/x", 3, map[string]int64{"broken: not a JSON object": 1}},
	} {
		l, err := maker(service).Make("trace:" + path)
		if err != nil {
			t.Fatal(err)
		}
		if got := l.Workload.Op(0).Path; got != want.first {
			t.Errorf("service %t: first path %s, want %s", service, got, want.first)
		}
		if l.Trace.Mapped != want.mapped || l.Trace.Lines != 4 || l.Trace.OutOfOrder != 1 {
			t.Errorf("service %t: %+v, want %d of 4 lines mapped and one out of order", service, l.Trace, want.mapped)
		}
		if diff := cmp.Diff(want.skipped, l.Trace.Skipped); diff != "" {
			t.Errorf("service %t: skipped (-want +got)\n%s", service, diff)
		}
		if n := l.Times.Count(l.Length); n != uint64(want.mapped) || l.Length > 150*time.Millisecond {
			t.Errorf("service %t: %d ops within %v, want %d within 150 ms", service, n, l.Length, want.mapped)
		}
	}
}

// TestSharedLog maps an access log of 8,000 real requests to the photo service. The log is
// not part of the repository.
func TestSharedLog(t *testing.T) {
	path := filepath.Join("..", "..", "..", "..", "shared", "data", "access-log", "semicomplete-2015-05.log.gz")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		t.Skip("there is no access log at " + path)
	}
	l, err := maker(true).Make("trace:" + path)
	if err != nil {
		t.Fatal(err)
	}
	l.Trace.LengthNS = 0 // compared below
	want := &results.Trace{
		Lines: 8000, OutOfOrder: 7561, DuplicateTimes: 4513, Mapped: 8000, Skipped: map[string]int64{},
		Paths: 1365, Clients: 1423, SpanNS: int64(237_659 * time.Second),
	}
	if diff := cmp.Diff(want, l.Trace); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if _, ok := l.Workload.(workloads.Login); !ok || l.Workload.Users() != 1000 {
		t.Errorf("%d users, logins %t: want the 1000 seeded users for 1423 clients", l.Workload.Users(), ok)
	}
	if l.Length < 180*time.Second || l.Length > 190*time.Second {
		t.Errorf("length %v, want 180 to 190 s", l.Length)
	}
}

func TestNames(t *testing.T) {
	good := write(t, "shop.yaml", "ops: [{class: get, path: /}]")
	for name, want := range map[string]string{
		"read-heavy": "", good: "",
		"reads":                              "unknown workload",
		write(t, "bad.yaml", "ops: 1"):       "bad.yaml:1:6",
		"missing.yaml":                       "workload file: open missing.yaml",
		"trace:missing.log":                  "trace: open missing.log",
		"trace:" + write(t, "empty.log", ""): "it is empty",
	} {
		l, err := maker(true).Make(name)
		switch {
		case want == "" && (err != nil || l.Workload == nil || l.Times != nil):
			t.Errorf("%s: %v", name, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: error %v, want one with %q", name, err, want)
		}
	}
	for _, bad := range []load.Replay{{Speed: 0}, {Speed: 1, MaxGap: -1}} {
		if bad.Validate() == nil {
			t.Errorf("%+v: want an error", bad)
		}
	}
}

// The classes of a load include the classes of all ops, and the class of the login if there
// is one.
func TestClasses(t *testing.T) {
	log := write(t, "access.log", `{"time":1,"path":"/a.png"}`+"\n"+`{"time":2,"method":"PUT","path":"/b"}`)
	users := write(t, "users.yaml", "users: 1\nlogin: {path: /login}\nops: [{class: get, path: /}]")
	anonymous := write(t, "anonymous.yaml", "ops: [{class: get, weight: 1, path: /}, {class: put, weight: 2, path: /}]")
	for _, test := range []struct {
		service bool
		name    string
		want    []string
	}{
		{true, "slow-upload", []string{"feed", "photo", "image", "user", "me", "page", "upload", "login"}},
		{true, "upload-heavy", []string{"feed", "photo", "image", "user", "me", "like", "upload", "login"}},
		{true, "static-heavy", []string{"image", "asset", "page", "feed", "photo", "me", "login"}},
		{true, "session-heavy", []string{
			"feed", "photo", "image", "me", "user", "like", "comment", "follow", "logout", "login",
		}},
		{true, "celebrity", []string{"feed", "photo", "image", "me", "like", "comment", "upload", "follow", "login"}},
		{true, "trace:" + log, []string{"photo", "image", "like", "login"}},
		{false, "trace:" + log, []string{"get", "put"}},
		{false, users, []string{"get", "login"}},
		{false, anonymous, []string{"get", "put"}},
	} {
		l, err := maker(test.service).Make(test.name)
		if err != nil {
			t.Fatal(err)
		}
		classes := l.Classes()
		if diff := cmp.Diff(test.want, classes); diff != "" {
			t.Errorf("%s (-want +got)\n%s", test.name, diff)
		}
		for n := range uint64(1000) {
			if class := string(l.Workload.Op(n).Class); !slices.Contains(classes, class) {
				t.Fatalf("%s: op %d has class %s, which is not listed", test.name, n, class)
			}
		}
	}
}

// Secrets come from the environment. No error message contains a secret.
func TestIdentity(t *testing.T) {
	env := map[string]string{"BASIC": "user:secret", "TOKEN": "secret", "BAD": "secret"}
	getenv := func(name string) string { return env[name] }
	for _, test := range []struct {
		identity load.Identity
		want     map[string]string
		problem  string
	}{
		{
			load.Identity{Headers: []string{"x-a: b:c ", "Accept:text/html"}},
			map[string]string{"X-A": "b:c", "Accept": "text/html"},
			"",
		},
		{load.Identity{BasicEnv: "BASIC"}, map[string]string{"Authorization": "Basic dXNlcjpzZWNyZXQ="}, ""},
		{load.Identity{BearerEnv: "TOKEN"}, map[string]string{"Authorization": "Bearer secret"}, ""},
		{load.Identity{BearerEnv: "UNSET"}, nil, "--bearer-env UNSET: the variable is not set"},
		{load.Identity{BasicEnv: "BAD"}, nil, "--basic-env BAD"},
		{load.Identity{BasicEnv: "BASIC", BearerEnv: "TOKEN"}, nil, "more than one way"},
		{load.Identity{BearerEnv: "TOKEN", Headers: []string{"authorization: x"}}, nil, "more than one way"},
		{load.Identity{Headers: []string{"no colon"}}, nil, "want 'Name: value'"},
		{load.Identity{Headers: []string{"a: 1", "A: 2"}}, nil, "given twice"},
	} {
		got, err := test.identity.Header(getenv)
		switch {
		case test.problem == "":
			if diff := cmp.Diff(test.want, got); err != nil || diff != "" {
				t.Errorf("%+v: %v (-want +got)\n%s", test.identity, err, diff)
			}
		case err == nil || !strings.Contains(err.Error(), test.problem) || strings.Contains(err.Error(), "secret"):
			t.Errorf("%+v: error %v, want one with %q and without the secret", test.identity, err, test.problem)
		}
	}
	if config, err := (load.Identity{}).TLS(); config != nil || err != nil {
		t.Errorf("no TLS options: config %v, error %v, want neither", config, err)
	}
	for _, bad := range []load.Identity{{CA: "missing.pem"}, {CA: write(t, "ca.pem", "not a PEM file")}, {Cert: "a.pem"}} {
		if _, err := bad.TLS(); err == nil || !strings.Contains(err.Error(), "--tls-") {
			t.Errorf("%+v: error %v, want one that names the flag", bad, err)
		}
	}
}
