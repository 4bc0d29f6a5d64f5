// Package control lets one invocation of stagebench control a system that another
// invocation runs. It uses HTTP and JSON on a Unix socket that only the same user can
// open.
//
// All sockets are in one directory. Each running system has its own socket, named for the
// system's id. The package starts and supervises nothing; the System behind Serve does.
// List removes the socket of a process that has died.
package control

import (
	"bytes"
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
	"github.com/stagebench/stagebench/targets/proc"
)

// Info describes a running system.
type Info struct {
	ID     string    `json:"id"`
	Stage  sut.Stage `json:"stage"`
	Data   sut.Data  `json:"data"`
	LogDir string    `json:"log_dir"` // directory of the nodes' logs: NODE.log

	// Endpoints are the base URLs for clients, and Fallbacks those for clients that cannot connect to any endpoint.
	// Serve sets them at each request.
	Endpoints []string `json:"endpoints"`
	Fallbacks []string `json:"fallbacks,omitempty"`
}

// System is a system that can be controlled.
type System interface {
	Observed
	Actor
	// Down stops the system and returns when all its processes are gone.
	Down(ctx context.Context) error
}

// Observed is the read-only part of a System.
type Observed interface {
	Status() []targets.NodeStatus
	Usage() (targets.Usage, error)
	Events() []targets.Event
	Endpoints() []string
	Fallbacks() []string
}

// Actor is the part of a System that changes it. A name is the name of a host or a node.
type Actor interface {
	Kill(name string) error
	Pause(name string) error
	Resume(name string) error
	// Scale changes the number of hosts of a tier and returns when all are ready. If ctx
	// ends before, the system is unchanged.
	Scale(ctx context.Context, tier string, hosts int) (targets.Scaled, error)
	// Set changes a knob and returns when the change is complete.
	Set(ctx context.Context, knob, value string) (targets.Changed, error)
	// Purge removes entries of all edges.
	Purge(ctx context.Context, p sut.Purge) ([]targets.Purged, error)
	// Recover reports the failovers and the writes that they lost. If replay is true, it
	// replays the lost writes.
	Recover(ctx context.Context, replay bool) (targets.Recovery, error)
}

// DefaultDir returns the directory of the sockets of this user's systems.
func DefaultDir() string {
	if runtime := os.Getenv("XDG_RUNTIME_DIR"); runtime != "" {
		return filepath.Join(runtime, "stagebench")
	}
	return filepath.Join(os.TempDir(), "stagebench-"+strconv.Itoa(os.Getuid()))
}

const suffix = ".sock"

// anotherDir is what a user can do about a control directory of another user.
const anotherDir = "set XDG_RUNTIME_DIR to a directory of your own"

// Serve answers requests on the system's socket until ctx ends or a client has called
// Down. When ctx ends, Serve does not stop the system; the caller does.
func Serve(ctx context.Context, dir string, info Info, system System) error {
	if err := proc.PrivateDir(dir); err != nil {
		return fmt.Errorf("control directory: %w\n%s", err, anotherDir)
	}
	listener, err := listen(filepath.Join(dir, info.ID+suffix))
	if err != nil {
		return err
	}
	// os.Remove removes the directory only if it is empty: no other system has a socket.
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

// listen creates the socket under a temporary name and renames it once it accepts
// connections. Without that, List could remove the new socket because nothing listens yet.
func listen(path string) (net.Listener, error) {
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path + ".new", Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("control socket: %w\n"+
			"remove it if no stagebench uses it, or set XDG_RUNTIME_DIR to a shorter path", err)
	}
	listener.SetUnlinkOnClose(false)
	if err := os.Rename(path+".new", path); err != nil {
		return nil, errors.Join(fmt.Errorf("control socket: %w", err), listener.Close())
	}
	return socket{listener, path}, nil
}

// socket is a listener that removes its path when it closes.
type socket struct {
	net.Listener
	path string
}

// Close removes the path first and then closes the listener. In the other order it could
// remove the socket of a later system with the same path.
func (s socket) Close() error { return errors.Join(os.Remove(s.path), s.Listener.Close()) }

// failure is the body of a response whose status is not 200.
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
		_ = json.NewEncoder(w).Encode(value) // fails only if the client has disconnected
	}
	mux.HandleFunc("GET /info", func(w http.ResponseWriter, _ *http.Request) {
		now := info
		now.Endpoints, now.Fallbacks = system.Endpoints(), system.Fallbacks()
		answer(w, now, nil)
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { answer(w, system.Status(), nil) })
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, _ *http.Request) { answer(w, system.Events(), nil) })
	mux.HandleFunc("GET /usage", func(w http.ResponseWriter, _ *http.Request) {
		usage, err := system.Usage()
		answer(w, usage, err)
	})
	verbs := map[string]func(string) error{"kill": system.Kill, "pause": system.Pause, "resume": system.Resume}
	for verb, act := range verbs {
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
	mux.HandleFunc("POST /set/{knob}/{value}", func(w http.ResponseWriter, r *http.Request) {
		changed, err := system.Set(r.Context(), r.PathValue("knob"), r.PathValue("value"))
		answer(w, changed, err)
	})
	mux.HandleFunc("POST /purge", func(w http.ResponseWriter, r *http.Request) {
		var p sut.Purge
		var purged []targets.Purged
		err := json.NewDecoder(r.Body).Decode(&p)
		if err == nil {
			purged, err = system.Purge(r.Context(), p)
		}
		answer(w, purged, err)
	})
	for path, replay := range map[string]bool{"GET /recovery": false, "POST /recovery": true} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			recovery, err := system.Recover(r.Context(), replay)
			answer(w, recovery, err)
		})
	}
	var once sync.Once
	mux.HandleFunc("POST /down", func(w http.ResponseWriter, r *http.Request) {
		// Finish even if the client disconnects: a half-stopped system would stay behind.
		answer(w, struct{}{}, system.Down(context.WithoutCancel(r.Context())))
		once.Do(func() { close(down) })
	})
	return mux
}

// List returns the ids of the running systems. It removes the sockets of processes that
// have died, and the directory if none is left.
func List(dir string) ([]string, error) {
	// Another user who could create a socket there would receive our commands.
	if err := proc.MakePrivate(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("control directory: %w\n%s", err, anotherDir)
	}
	found, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil {
		return nil, err
	}
	unfinished, err := filepath.Glob(filepath.Join(dir, "*"+suffix+".new")) // of processes that died in listen
	if err != nil {
		return nil, err
	}
	for _, path := range unfinished {
		if info, err := os.Stat(path); err == nil && time.Since(info.ModTime()) > time.Minute {
			_ = os.Remove(path)
		}
	}
	var ids []string
	for _, path := range found {
		conn, err := net.DialTimeout("unix", path, time.Second)
		if errors.Is(err, syscall.ECONNREFUSED) { // the process that listened has died
			_ = os.Remove(path) // another invocation may have removed it already
			_ = os.Remove(dir)  // only if it is empty
			continue
		}
		if err != nil {
			continue // the process may be busy: keep its socket
		}
		if err := conn.Close(); err != nil {
			return nil, err
		}
		ids = append(ids, strings.TrimSuffix(filepath.Base(path), suffix))
	}
	return ids, nil
}

// Client controls one running system. It may be used concurrently.
type Client struct {
	http *http.Client
}

// Dial returns a client of the running system with this id. If id is empty, exactly one
// system must be running.
func Dial(dir, id string) (*Client, error) {
	ids, err := List(dir)
	if err != nil {
		return nil, err
	}
	switch {
	case id == "" && len(ids) == 1:
		id = ids[0]
	case id == "" && len(ids) > 1:
		return nil, fmt.Errorf("several systems are up: %s\nchoose one, for example: --system %s",
			strings.Join(ids, ", "), ids[0])
	case len(ids) == 0:
		return nil, errors.New("no system is up\nstart one first: stagebench up --stage lb")
	case !slices.Contains(ids, id):
		return nil, fmt.Errorf("no system %q is up\nthese systems are up: %s", id, strings.Join(ids, ", "))
	}
	path := filepath.Join(dir, id+suffix)
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return &Client{http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}, nil
}

// Info describes the system.
func (c *Client) Info(ctx context.Context) (Info, error) {
	var info Info
	return info, c.call(ctx, http.MethodGet, "/info", nil, &info)
}

// Status returns the status of every node.
func (c *Client) Status(ctx context.Context) ([]targets.NodeStatus, error) {
	var nodes []targets.NodeStatus
	return nodes, c.call(ctx, http.MethodGet, "/status", nil, &nodes)
}

// Usage returns what the hosts and nodes have used.
func (c *Client) Usage(ctx context.Context) (targets.Usage, error) {
	var usage targets.Usage
	return usage, c.call(ctx, http.MethodGet, "/usage", nil, &usage)
}

// Events returns the events so far.
func (c *Client) Events(ctx context.Context) ([]targets.Event, error) {
	var events []targets.Event
	return events, c.call(ctx, http.MethodGet, "/events", nil, &events)
}

// Kill kills all processes of a host or a node.
func (c *Client) Kill(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodPost, "/kill/"+url.PathEscape(name), nil, nil)
}

// Pause pauses a host or a node.
func (c *Client) Pause(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodPost, "/pause/"+url.PathEscape(name), nil, nil)
}

// Resume continues a paused host or node.
func (c *Client) Resume(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodPost, "/resume/"+url.PathEscape(name), nil, nil)
}

// Scale changes the number of hosts of a tier and returns when all are ready.
func (c *Client) Scale(ctx context.Context, tier string, hosts int) (targets.Scaled, error) {
	var scaled targets.Scaled
	return scaled, c.call(ctx, http.MethodPost, "/scale/"+url.PathEscape(tier)+"/"+strconv.Itoa(hosts), nil, &scaled)
}

// Set changes a knob and returns when the change is complete.
func (c *Client) Set(ctx context.Context, knob, value string) (targets.Changed, error) {
	var changed targets.Changed
	return changed, c.call(ctx, http.MethodPost, "/set/"+url.PathEscape(knob)+"/"+url.PathEscape(value), nil, &changed)
}

// Purge removes entries of all edges.
func (c *Client) Purge(ctx context.Context, p sut.Purge) ([]targets.Purged, error) {
	var purged []targets.Purged
	return purged, c.call(ctx, http.MethodPost, "/purge", p, &purged)
}

// Recover reports the failovers and the writes that they lost. If replay is true, it
// replays the lost writes.
func (c *Client) Recover(ctx context.Context, replay bool) (targets.Recovery, error) {
	method := http.MethodGet
	if replay {
		method = http.MethodPost
	}
	var recovery targets.Recovery
	return recovery, c.call(ctx, method, "/recovery", nil, &recovery)
}

// Down stops the system and returns when all its processes are gone.
func (c *Client) Down(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/down", nil, nil)
}

// call sends a request, with a JSON document unless it is nil, and decodes the answer.
func (c *Client) call(ctx context.Context, method, path string, document, into any) error {
	var body io.Reader
	if document != nil {
		text, err := json.Marshal(document)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://system"+path, body)
	if err != nil {
		return err
	}
	response, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("call the running system: %w", err)
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
