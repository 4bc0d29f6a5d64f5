// Package edge is the embedded edge of a content delivery network: a shared HTTP cache (RFC 9111) in front of the web
// tier.
//
// Package rules decides what may be stored and used. Package store keeps the responses. This package has the server,
// the client of the origins, and the fills: requests for the same key share one request to the origin as soon as its
// header says that the response may be stored. Responses that must not be stored never wait for each other
// (collapse.go).
//
// The order of calls is New, Serve in a goroutine, SetOrigins, Purge and Figures at any time, Shutdown. All methods
// may be called concurrently. Two edges in one process share no state.
//
// An edge never sends an unsafe request twice, never stores a body that broke off, and never uses a response that was
// requested before a purge of it. It does not compress, does not switch protocols (WebSocket), and does not merge or
// store partial responses.
package edge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/edge/rules"
	"github.com/stagebench/stagebench/sut/edge/store"
	"github.com/stagebench/stagebench/sut/swap"
)

// Config is the configuration of an Edge. The zero value of a field means its default, where one is given.
type Config struct {
	sut.EdgeConfig
	// Log receives failed requests, and origins that refuse connections. Default: no log.
	Log *slog.Logger
	// Bound limits the connections of clients; nil = no limit. Full reports whether a request came over a connection above
	// the limit. It gets 503, and the connection is closed.
	Bound Bound
	Full  func(context.Context) bool
}

// Bound limits the connections of a server, as conns.Bound does.
type Bound interface {
	Attach(server *http.Server)
	Listen(inner net.Listener) net.Listener
}

// Edge is the embedded edge. It implements sut.EdgeServer.
type Edge struct {
	cfg       Config
	store     *store.Store
	flights   flights
	unqueued  *unqueued
	origins   swap.Value[*origins]
	swapMu    sync.Mutex // one SetOrigins at a time
	current   *origins   // guarded by swapMu
	dial      dialFunc
	server    *http.Server
	ids       *sut.RequestIDs
	name      string   // the first member of Cache-Status
	via       string   // the member of Via
	identity  []string // the Transfer-Encoding "identity"; read only
	buffers   sync.Pool
	fills     sync.WaitGroup
	base      context.Context // of the fills
	stop      context.CancelFunc
	stopOnce  sync.Once
	requests  atomic.Int64
	hits      atomic.Int64
	fetched   atomic.Int64
	fetchedBy atomic.Int64 // bytes
}

var _ sut.EdgeServer = (*Edge)(nil)

// New makes an edge with an empty store.
func New(cfg Config) (*Edge, error) {
	cfg.EdgeConfig = cfg.Complete()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("edge: %w", err)
	}
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	unqueued := newUnqueued(cfg.MaxBytes)
	contents, err := store.New(store.Config{
		MaxBytes: cfg.MaxBytes - unqueued.bytes(), SecondHit: cfg.Admit == sut.AdmitSecondHit,
	})
	if err != nil {
		return nil, fmt.Errorf("edge: %w", err)
	}
	e := &Edge{
		cfg: cfg, store: contents, unqueued: unqueued, flights: flights{byKey: map[string][]*fill{}},
		dial: (&net.Dialer{Timeout: sut.ConnectTimeout}).DialContext, ids: sut.NewRequestIDs(),
		name: statusName(cfg.Node), via: "1.1 " + cfg.Node, identity: []string{"identity"},
	}
	e.base, e.stop = context.WithCancel(context.Background())
	e.current = e.newOrigins(cfg.Origins, nil)
	e.origins.Replace(e.current, func(*origins) {})
	quiet := slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug) // the standard library's lines are not JSON
	e.server = &http.Server{
		Handler: http.HandlerFunc(e.serve), ErrorLog: quiet,
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 5 * time.Minute,
		MaxHeaderBytes: sut.MaxHeaderBytes,
	}
	if cfg.Bound != nil {
		cfg.Bound.Attach(e.server)
	}
	return e, nil
}

// statusName returns a node's name as a member of Cache-Status: a token, or a string when it does not begin with a
// letter.
func statusName(node string) string {
	if c := node[0] | 0x20; 'a' <= c && c <= 'z' {
		return node
	}
	return `"` + node + `"`
}

// Serve serves clients on a listener. It returns nil after Shutdown, and an error when the listener fails. Call it
// once.
func (e *Edge) Serve(listener net.Listener) error {
	if e.cfg.Bound != nil {
		listener = e.cfg.Bound.Listen(listener)
	}
	if err := e.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Shutdown stops accepting clients and waits for the requests in flight. When ctx ends first, it closes the remaining
// ones and returns the error of ctx. It then ends the fills. No goroutine and no connection remains after it.
func (e *Edge) Shutdown(ctx context.Context) error {
	var err error
	e.stopOnce.Do(func() {
		if err = e.server.Shutdown(ctx); err != nil {
			err = errors.Join(err, e.server.Close())
		}
		e.stop()
		e.fills.Wait()
		e.flights.clear()
		e.swapMu.Lock()
		defer e.swapMu.Unlock()
		e.current.closeIdle(nil)
	})
	return err
}

// SetOrigins replaces the origins while the edge serves. It returns when all requests that began before have ended. If
// ctx ends first, it returns the error of ctx, and the requests continue. An error that wraps sut.ErrWiring means that
// nothing has changed.
func (e *Edge) SetOrigins(ctx context.Context, peers []sut.Peer) error {
	if err := sut.ValidateOrigins(peers); err != nil {
		return fmt.Errorf("%w: %w", sut.ErrWiring, err)
	}
	e.swapMu.Lock()
	next := e.newOrigins(peers, e.current)
	e.current = next
	wait := e.origins.Replace(next, func(before *origins) { before.closeIdle(next) })
	e.swapMu.Unlock()
	if err := wait(ctx); err != nil {
		return fmt.Errorf("edge: removed origins still have requests in flight: %w", err)
	}
	return nil
}

// Purge removes entries. A response that was requested before is not stored afterwards, and answers no later request.
// The error is always nil.
func (e *Edge) Purge(_ context.Context, p sut.Purge) error {
	var keys, groups []string
	for _, url := range p.URLs {
		if e.cfg.Site != "" {
			keys = append(keys, url)
		} else {
			groups = append(groups, urlGroup(url))
		}
	}
	for _, group := range p.Groups {
		groups = append(groups, namedGroup(group))
	}
	e.store.Purge(keys, groups)
	return nil
}

// The index of groups has several kinds of names. An edge of one site needs the second kind only. Another edge has
// keys of several hosts: a purge gives no host, but the header field Cache-Group-Invalidation holds for one host
// only.
func urlGroup(url string) string          { return "u" + url }
func namedGroup(group string) string      { return "g" + group }
func hostGroup(host, group string) string { return "h" + host + "\x00" + group }

// groupsOf returns the names under which purges find a response.
func (e *Edge) groupsOf(host, uri string, header http.Header) []string {
	named, _ := rules.Groups(header)
	var groups []string
	if e.cfg.Site == "" {
		groups = append(groups, urlGroup(uri))
	}
	for _, group := range named {
		groups = append(groups, namedGroup(group))
		if e.cfg.Site == "" {
			groups = append(groups, hostGroup(host, group))
		}
	}
	return groups
}

// authority returns the host of a request: the configured site, or the Host header.
func (e *Edge) authority(r *http.Request) string {
	if e.cfg.Site != "" {
		return e.cfg.Site
	}
	return strings.ToLower(r.Host)
}

// keyOf returns the key of a URL. A host contains no slash, and a URI begins with one.
func (e *Edge) keyOf(host, uri string) string {
	if e.cfg.Site != "" {
		return uri
	}
	return host + uri
}

// Figures returns the counters since the start, and the contents. The error is always nil.
func (e *Edge) Figures(context.Context) (sut.EdgeFigures, error) {
	contents := e.store.Contents()
	return sut.EdgeFigures{
		Requests: e.requests.Load(), Hits: e.hits.Load(),
		Fetched: e.fetched.Load(), FetchedBytes: e.fetchedBy.Load(),
		Stored: contents.Stored, Evicted: contents.Evicted, Purged: contents.Purged,
		Entries: contents.Entries, Bytes: contents.Bytes, MaxBytes: e.cfg.MaxBytes,
	}, nil
}
