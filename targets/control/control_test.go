package control_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/internal/polltest"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/control"
)

// fake is a system that sends every call of an Actor method to a channel.
type fake struct{ done chan string }

func (f fake) Status() []targets.NodeStatus {
	return []targets.NodeStatus{{Node: "web-1", State: targets.Serving, Role: sut.Web}}
}

func (f fake) Usage() (targets.Usage, error) {
	return targets.Usage{Hosts: []targets.HostUsage{{Host: "web-1", CPUSeconds: 1.5}}}, nil
}
func (f fake) Events() []targets.Event { return []targets.Event{{Node: "web-1", Text: "killed"}} }
func (f fake) Kill(name string) error {
	if name != "web-1" {
		return errors.New("no host or node " + name)
	}
	f.done <- "kill " + name
	return nil
}
func (f fake) Pause(name string) error  { f.done <- "pause " + name; return nil }
func (f fake) Resume(name string) error { f.done <- "resume " + name; return nil }
func (f fake) Set(_ context.Context, knob, value string) (targets.Changed, error) {
	f.done <- "set " + knob + "=" + value
	return targets.Changed{Knob: knob, Value: value}, nil
}
func (f fake) Down(context.Context) error { f.done <- "down"; return nil }
func (f fake) Endpoints() []string        { return []string{"http://127.0.0.1:1"} }
func (f fake) Fallbacks() []string        { return []string{"http://127.0.0.1:2"} }
func (f fake) Purge(_ context.Context, p sut.Purge) ([]targets.Purged, error) {
	if len(p.URLs)+len(p.Groups) == 0 {
		return nil, errors.New("nothing to purge")
	}
	return []targets.Purged{{Node: p.URLs[0] + p.Groups[0]}}, nil
}

func (f fake) Recover(_ context.Context, replay bool) (targets.Recovery, error) {
	if replay {
		return targets.Recovery{Replayed: []targets.Replayed{
			{Node: "db-1", Epoch: 1, Replayed: sut.Replayed{Done: map[string]int{"like": 3}}},
		}}, nil
	}
	return targets.Recovery{Failovers: []targets.Failover{{Epoch: 2, From: "db-1", To: "db-2"}}}, nil
}

func (f fake) Scale(ctx context.Context, tier string, hosts int) (targets.Scaled, error) {
	if tier != "web" {
		return targets.Scaled{}, fmt.Errorf("scale %s: not possible", tier)
	}
	f.done <- fmt.Sprintf("scale %s %d", tier, hosts)
	if hosts == endless {
		<-ctx.Done()
		f.done <- "undone"
		return targets.Scaled{}, ctx.Err()
	}
	return targets.Scaled{Tier: tier, Hosts: hosts}, nil
}

// endless is a number of hosts for which the fake's Scale blocks until ctx ends.
const endless = 200

// patience is how long a test waits for an event.
const patience = 10 * time.Second

// serve serves a fake system until the test ends.
func serve(t *testing.T, dir, id string) (fake, <-chan error) {
	t.Helper()
	f := fake{done: make(chan string, 10)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- control.Serve(ctx, dir, control.Info{ID: id, Stage: sut.LB, LogDir: "/logs"}, f)
		close(ended)
	}()
	t.Cleanup(func() {
		cancel()
		for err := range ended {
			if err != nil {
				t.Error(err)
			}
		}
	})
	eventually(t, "the system is listed", func() bool {
		ids, err := control.List(dir)
		return err == nil && strings.Contains(strings.Join(ids, " "), id)
	})
	return f, ended
}

// eventually polls until a condition holds. It ends the test after patience.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	polltest.Eventually(t, patience, time.Millisecond, what, holds)
}

func TestPurge(t *testing.T) {
	dir := t.TempDir()
	serve(t, dir, "cdn-1")
	c, err := control.Dial(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	purged, err := c.Purge(t.Context(), sut.Purge{URLs: []string{"/a?b=1"}, Groups: []string{"c d"}})
	if err != nil || len(purged) != 1 || purged[0].Node != "/a?b=1c d" {
		t.Errorf("purged %+v, %v", purged, err)
	}
	if _, err := c.Purge(t.Context(), sut.Purge{}); err == nil || err.Error() != "nothing to purge" {
		t.Errorf("purge of nothing: %v", err)
	}
}

func TestASystemIsControlled(t *testing.T) {
	dir := t.TempDir()
	system, ended := serve(t, dir, "lb-1")
	c, err := control.Dial(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if info, err := c.Info(ctx); err != nil || info.Stage != sut.LB || info.LogDir != "/logs" ||
		info.Endpoints[0] != "http://127.0.0.1:1" || info.Fallbacks[0] != "http://127.0.0.1:2" {
		t.Errorf("info %+v, %v", info, err)
	}
	if nodes, err := c.Status(ctx); err != nil || len(nodes) != 1 || nodes[0].Node != "web-1" {
		t.Errorf("status %+v, %v", nodes, err)
	}
	if usage, err := c.Usage(ctx); err != nil || usage.Hosts[0].CPUSeconds != 1.5 {
		t.Errorf("usage %+v, %v", usage, err)
	}
	if events, err := c.Events(ctx); err != nil || events[0].Text != "killed" {
		t.Errorf("events %+v, %v", events, err)
	}
	for want, act := range map[string]func(context.Context, string) error{
		"kill web-1": c.Kill, "pause web-1": c.Pause, "resume web-1": c.Resume,
	} {
		if err := act(ctx, "web-1"); err != nil {
			t.Error(err)
		}
		if got := <-system.done; got != want {
			t.Errorf("the system got %q, want %q", got, want)
		}
	}
	if scaled, err := c.Scale(ctx, "web", 4); err != nil || scaled.Hosts != 4 {
		t.Errorf("scaled %+v, %v", scaled, err)
	}
	if got := <-system.done; got != "scale web 4" {
		t.Errorf("the system got %q, want scale web 4", got)
	}
	if _, err := c.Scale(ctx, "db", 4); err == nil || err.Error() != "scale db: not possible" {
		t.Errorf("scaling the database: %v", err)
	}
	r, err := c.Recover(ctx, false)
	if err != nil || len(r.Failovers) != 1 || r.Failovers[0].To != "db-2" || r.Replayed != nil {
		t.Errorf("recovery %+v, %v", r, err)
	}
	if r, err := c.Recover(ctx, true); err != nil || len(r.Replayed) != 1 || r.Replayed[0].Done["like"] != 3 {
		t.Errorf("replay %+v, %v", r, err)
	}
	if err := c.Kill(ctx, "web-9"); err == nil || !strings.Contains(err.Error(), "web-9") {
		t.Errorf("killing a host that does not exist: %v", err)
	}
	if err := c.Down(ctx); err != nil {
		t.Error(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Serve has not returned 10 s after Down")
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("%v is left in the control directory", left)
	}
}

// When the client of a Scale disconnects, the context of the system's Scale ends.
func TestScaleEndsWhenTheClientDisconnects(t *testing.T) {
	dir := t.TempDir()
	system, _ := serve(t, dir, "lb-1")
	c, err := control.Dial(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	failed := make(chan error, 1)
	go func() {
		_, err := c.Scale(ctx, "web", endless)
		failed <- err
	}()
	if got := <-system.done; got != "scale web 200" {
		t.Fatalf("the system got %q, want scale web 200", got)
	}
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("the client got %v", err)
	}
	select {
	case got := <-system.done:
		if got != "undone" {
			t.Errorf("the system got %q, want undone", got)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Scale still runs 10 s after its client disconnected")
	}
}

func TestDialChoosesTheSystem(t *testing.T) {
	dir := t.TempDir()
	if _, err := control.Dial(dir, ""); err == nil || !strings.Contains(err.Error(), "stagebench up") {
		t.Errorf("none is up: %v", err)
	}
	serve(t, dir, "one")
	serve(t, dir, "two")
	if _, err := control.Dial(dir, ""); err == nil || !strings.Contains(err.Error(), "--system one") {
		t.Errorf("two are up: %v", err)
	}
	if _, err := control.Dial(dir, "three"); err == nil || !strings.Contains(err.Error(), "one, two") {
		t.Errorf("another one is asked for: %v", err)
	}
	if _, err := control.Dial(dir, "two"); err != nil {
		t.Error(err)
	}
}

func TestSocketsOfDeadProcessesAreRemoved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sockets")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, age := range map[string]time.Duration{"killed.sock.new": time.Hour, "begun.sock.new": 0} {
		path, made := filepath.Join(dir, name), time.Now().Add(-age)
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chtimes(path, made, made)); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "dead.sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false) // as when its owner is killed
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	if ids, err := control.List(dir); err != nil || len(ids) != 0 {
		t.Errorf("%v, %v, want none", ids, err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
	left, err := os.ReadDir(dir) // of a process that is just about to listen
	if err != nil || len(left) != 1 || left[0].Name() != "begun.sock.new" {
		t.Errorf("%v, %v are left, want begun.sock.new", left, err)
	}
}
