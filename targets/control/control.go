// Package control lets other invocations act on a system that one invocation
// keeps up: over HTTP and JSON on a Unix socket that only the same user can
// reach.
//
// Every running system has a socket of its own in one directory; the name of
// the socket is the id of the system. The package starts and supervises
// nothing: the System behind Serve does. A socket whose owner has died is
// removed when it is found.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets"
)

// Info says what a running system is.
type Info struct {
	ID     string    `json:"id"`
	Stage  sut.Stage `json:"stage"`
	Data   sut.Data  `json:"data"`
	LogDir string    `json:"log_dir"` // where the nodes' logs are: NODE.log

	// Serve fills this in, as it is when somebody asks.
	Endpoints []string `json:"endpoints"` // base URLs for clients
}

// System is what is controlled.
type System interface {
	Observed
	Actor
	// Down takes it down and returns when it is gone.
	Down(ctx context.Context) error
}

// Observed is a system that can be looked at.
type Observed interface {
	Status() []targets.NodeStatus
	Usage() (targets.Usage, error)
	Events() []targets.Event
	Endpoints() []string
}

// Actor is a system that things can be done to, by host or node name.
type Actor interface {
	Kill(name string) error
	Pause(name string) error
	Resume(name string) error
	// Scale changes the number of hosts of a tier and returns when it is done. When
	// ctx ends before, the system is what it was.
	Scale(ctx context.Context, tier string, hosts int) (targets.Scaled, error)
	// Recover says what failovers have cost, and does it once more if replay is set.
	Recover(ctx context.Context, replay bool) (targets.Recovery, error)
}

// DefaultDir is where the sockets of this user's systems are.
func DefaultDir() string {
	if runtime := os.Getenv("XDG_RUNTIME_DIR"); runtime != "" {
		return filepath.Join(runtime, "stagebench")
	}
	return filepath.Join(os.TempDir(), "stagebench-"+strconv.Itoa(os.Getuid()))
}

const suffix = ".sock"

// Serve answers on the system's socket until ctx ends or the system was taken
// down through it. The system is not taken down when ctx ends: its owner does.
func Serve(ctx context.Context, dir string, info Info, system System) error {
	if err := errors.Join(os.MkdirAll(dir, 0o700), private(dir)); err != nil {
		return err
	}
	listener, err := listen(filepath.Join(dir, info.ID+suffix))
	if err != nil {
		return err
	}
	// The last one to go takes the directory with it: os.Remove spares one that
	// still holds a socket.
	defer func() { _ = os.Remove(dir) }()
	down := make(chan struct{})
	server := &http.Server{Handler: handler(info, system, down), ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case <-ctx.Done():
	case <-down:
	case err := <-served:
		return fmt.Errorf("control socket: %w", err)
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := server.Shutdown(last); err != nil {
		return errors.Join(err, server.Close())
	}
	return nil
}

// private makes sure that the directory is ours alone: whoever could put a socket
// there could take our commands.
func private(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("control directory: %w", err)
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || ok && int(owner.Uid) != os.Getuid() {
		return fmt.Errorf("control directory %s belongs to somebody else\nset XDG_RUNTIME_DIR to a directory of your own", dir)
	}
	return os.Chmod(dir, 0o700)
}

// listen makes the socket under another name first: between its making and the
// moment in which it can be connected to, List would take it for a dead one.
func listen(path string) (net.Listener, error) {
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path + ".new", Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("control socket: %w\nremove it if no stagebench uses it, or set XDG_RUNTIME_DIR to a shorter path", err)
	}
	listener.SetUnlinkOnClose(false)
	if err := os.Rename(path+".new", path); err != nil {
		return nil, errors.Join(fmt.Errorf("control socket: %w", err), listener.Close())
	}
	return socket{listener, path}, nil
}

// socket is a listener that takes its path with it.
type socket struct {
	net.Listener
	path string
}

// Close removes the path before the socket stops answering: never the other way
// round, or it could be a later system's.
func (s socket) Close() error { return errors.Join(os.Remove(s.path), s.Listener.Close()) }

// failure is the body of an answer that is not 200.
type failure struct {
	Error string `json:"error"`
}

func handler(info Info, system System, down chan<- struct{}) http.Handler {
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, value any, err error) {
		w.Header().Set("Content-Type", "application/json")
		if err != nil {
			w.WriteHeader(http.StatusConflict)
			value = failure{err.Error()}
		}
		_ = json.NewEncoder(w).Encode(value) // the client has gone; there is nobody to tell
	}
	mux.HandleFunc("GET /info", func(w http.ResponseWriter, _ *http.Request) {
		now := info
		now.Endpoints = system.Endpoints()
		answer(w, now, nil)
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { answer(w, system.Status(), nil) })
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, _ *http.Request) { answer(w, system.Events(), nil) })
	mux.HandleFunc("GET /usage", func(w http.ResponseWriter, _ *http.Request) {
		usage, err := system.Usage()
		answer(w, usage, err)
	})
	for verb, act := range map[string]func(string) error{"kill": system.Kill, "pause": system.Pause, "resume": system.Resume} {
		mux.HandleFunc("POST /"+verb+"/{name}", func(w http.ResponseWriter, r *http.Request) {
			answer(w, struct{}{}, act(r.PathValue("name")))
		})
	}
	mux.HandleFunc("POST /scale/{tier}/{hosts}", func(w http.ResponseWriter, r *http.Request) {
		var scaled targets.Scaled
		hosts, err := strconv.Atoi(r.PathValue("hosts"))
		if err == nil {
			scaled, err = system.Scale(r.Context(), r.PathValue("tier"), hosts)
		}
		answer(w, scaled, err)
	})
	for path, replay := range map[string]bool{"GET /recovery": false, "POST /recovery": true} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			recovery, err := system.Recover(r.Context(), replay)
			answer(w, recovery, err)
		})
	}
	var once sync.Once
	mux.HandleFunc("POST /down", func(w http.ResponseWriter, r *http.Request) {
		// Whoever asked may lose patience; a system half down helps nobody.
		answer(w, struct{}{}, system.Down(context.WithoutCancel(r.Context())))
		once.Do(func() { close(down) })
	})
	return mux
}

// List returns the ids of the systems that are up, and removes the sockets of
// those that have died.
func List(dir string) ([]string, error) {
	if err := private(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	found, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, path := range found {
		conn, err := net.DialTimeout("unix", path, time.Second)
		if errors.Is(err, syscall.ECONNREFUSED) { // nobody listens: its owner has died
			_ = os.Remove(path) // another invocation may have removed it already
			continue
		}
		if err != nil {
			continue // a moment of being busy does not make it dead
		}
		if err := conn.Close(); err != nil {
			return nil, err
		}
		ids = append(ids, strings.TrimSuffix(filepath.Base(path), suffix))
	}
	return ids, nil
}

// Client acts on one running system. It may be used by many goroutines.
type Client struct {
	http *http.Client
}

// Dial returns the client of a system that is up. Without an id there must be
// just one.
func Dial(dir, id string) (*Client, error) {
	ids, err := List(dir)
	if err != nil {
		return nil, err
	}
	switch {
	case id == "" && len(ids) == 1:
		id = ids[0]
	case id == "" && len(ids) > 1:
		return nil, fmt.Errorf("several systems are up: %s\nsay which one: --system %s", strings.Join(ids, ", "), ids[0])
	case len(ids) == 0:
		return nil, errors.New("no system is up\nbring one up first: stagebench up --stage lb")
	case !slices.Contains(ids, id):
		return nil, fmt.Errorf("no system %q is up\nthese are: %s", id, strings.Join(ids, ", "))
	}
	path := filepath.Join(dir, id+suffix)
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return &Client{http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}, nil
}

// Info says what the system is.
func (c *Client) Info(ctx context.Context) (Info, error) {
	var info Info
	return info, c.call(ctx, http.MethodGet, "/info", &info)
}

// Status returns its nodes.
func (c *Client) Status(ctx context.Context) ([]targets.NodeStatus, error) {
	var nodes []targets.NodeStatus
	return nodes, c.call(ctx, http.MethodGet, "/status", &nodes)
}

// Usage returns what its hosts and nodes have used.
func (c *Client) Usage(ctx context.Context) (targets.Usage, error) {
	var usage targets.Usage
	return usage, c.call(ctx, http.MethodGet, "/usage", &usage)
}

// Events returns what has happened to it.
func (c *Client) Events(ctx context.Context) ([]targets.Event, error) {
	var events []targets.Event
	return events, c.call(ctx, http.MethodGet, "/events", &events)
}

// Kill kills a host or a node.
func (c *Client) Kill(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodPost, "/kill/"+url.PathEscape(name), nil)
}

// Pause stops a host or a node.
func (c *Client) Pause(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodPost, "/pause/"+url.PathEscape(name), nil)
}

// Resume lets a paused host or node go on.
func (c *Client) Resume(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodPost, "/resume/"+url.PathEscape(name), nil)
}

// Scale changes the number of hosts of a tier and returns when it is done.
func (c *Client) Scale(ctx context.Context, tier string, hosts int) (targets.Scaled, error) {
	var scaled targets.Scaled
	return scaled, c.call(ctx, http.MethodPost, "/scale/"+url.PathEscape(tier)+"/"+strconv.Itoa(hosts), &scaled)
}

// Recover says what failovers have cost, and has it done once more if replay is
// set.
func (c *Client) Recover(ctx context.Context, replay bool) (targets.Recovery, error) {
	method := http.MethodGet
	if replay {
		method = http.MethodPost
	}
	var recovery targets.Recovery
	return recovery, c.call(ctx, method, "/recovery", &recovery)
}

// Down takes the system down and returns when it is gone.
func (c *Client) Down(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/down", nil)
}

func (c *Client) call(ctx context.Context, method, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://system"+path, nil)
	if err != nil {
		return err
	}
	response, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("talk to the running system: %w", err)
	}
	defer func() { _ = response.Body.Close() }() // read only
	if response.StatusCode != http.StatusOK {
		var f failure
		if err := json.NewDecoder(response.Body).Decode(&f); err != nil || f.Error == "" {
			return fmt.Errorf("the running system answered %s", response.Status)
		}
		return errors.New(f.Error)
	}
	if into == nil {
		_, err = io.Copy(io.Discard, response.Body)
		return err
	}
	return json.NewDecoder(response.Body).Decode(into)
}
