package node

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/app"
	"github.com/stagebench/stagebench/sut/conns"
	"github.com/stagebench/stagebench/sut/imaging"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/session"
	"github.com/stagebench/stagebench/sut/store"
)

// dbConns is how many connections one host keeps to the database. Small
// hosts gain nothing from more: what waits for a connection here would wait for
// the database's CPU there.
const dbConns = 8

func (b birth) startWeb(ctx context.Context) (part, error) {
	number, err := hostNumber(b.config.Node)
	if err != nil {
		return part{}, err
	}
	bytes, err := b.blobs()
	if err != nil {
		return part{}, err
	}
	records, err := b.openStore(ctx, false)
	if err != nil {
		return part{}, err
	}
	front, closeCache, err := b.cached(records)
	if err != nil {
		return part{}, err
	}
	sessions, err := b.placeSessions()
	if err != nil {
		return part{}, err
	}
	bound, err := conns.New(ladder.WebOf(b.config.Knobs).MaxConns, b.registry)
	if err != nil {
		return part{}, err
	}
	service, err := app.New(app.Config{
		Node: b.config.Node, Store: front, Blobs: bytes, Sessions: sessions.sessions(), Process: imaging.Process,
		IDs: photos.NewIDSource(number, time.Now), Log: b.log, Registry: b.registry, Now: time.Now,
		Service: b.config.Service, Full: conns.Refused, LogRequests: ladder.LogsOf(b.config.Knobs).Requests,
	})
	if err != nil {
		return part{}, err
	}
	listener, admin, err := b.listenBoth()
	if err != nil {
		return part{}, err
	}
	h := newHTTPServer()
	h.serve(admin, b.operators(service, sessions, records))
	h.serveBounded(listener, b.public(service, sessions), bound)
	return part{
		ready: sut.Ready{Node: b.config.Node, Address: listener.Addr().String(), Admin: admin.Addr().String()},
		died:  h.died,
		stop: func(ctx context.Context) error {
			service.Drain()
			err := h.stop(ctx)
			closeCache()
			records.Close()
			bytes.Close()
			sessions.close()
			return err
		},
	}, nil
}

// openStore opens the records of the databases that the node uses.
func (b birth) openStore(ctx context.Context, readPrimary bool) (*store.Store, error) {
	databases, err := b.databases()
	if err != nil {
		return nil, err
	}
	records, err := store.Open(store.Config{
		Databases: databases, ReadPrimary: readPrimary || ladder.DBOf(b.config.Knobs).ReadPreference == ladder.ReadPrimary, MaxConns: dbConns,
		Name: b.config.Node, Registry: b.registry,
	})
	if err != nil {
		return nil, err
	}
	if err := records.Warm(ctx); err != nil {
		// It serves what needs no database, and warms up under way.
		b.log.Warn("the database is not there yet", "error", err.Error())
	}
	return records, nil
}

// public is what clients see: the service, and on a host that holds sessions what
// other web hosts ask about them.
func (b birth) public(service *app.App, sessions placement) http.Handler {
	public := http.Handler(service)
	if ladder.WebOf(b.config.Knobs).Gzip {
		public = compressed(public)
	}
	if sessions.memory == nil {
		return public
	}
	// Not through the service: what a host of another service asks is no request
	// of a user, and is answered also when this host is full.
	about := session.Handler(sessions.memory)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == session.Path {
			about.ServeHTTP(w, r)
			return
		}
		public.ServeHTTP(w, r)
	})
}

// webStatus is what a web host says of itself at /status of its admin address.
type webStatus struct {
	Node     string      `json:"node"`
	Service  sut.Service `json:"service,omitempty"` // empty = everything
	Draining bool        `json:"draining"`
	MaxConns int         `json:"max_conns"`
	// Sessions is how many this host holds; a host for uploads holds none.
	Sessions int `json:"sessions"`
	// Peers is the hosts that a host for uploads asks for sessions.
	Peers []sut.Peer `json:"peers,omitempty"`
}

// operators is the admin side of a web host: what the service shows to them,
// /status, PUT of the databases to use, and on a host for uploads PUT of a
// membership, which says whom to ask for sessions.
func (b birth) operators(service *app.App, sessions placement, records *store.Store) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", service.Operations())
	mux.Handle("PUT "+sut.DatabasesPath, databasesHandler(records))
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		status := webStatus{Node: b.config.Node, Service: b.config.Service, Draining: service.Draining(), MaxConns: ladder.WebOf(b.config.Knobs).MaxConns}
		if sessions.remote != nil {
			status.Peers = sessions.remote.Peers()
		} else {
			status.Sessions = sessions.memory.Len()
		}
		sendJSON(w, http.StatusOK, status)
	})
	if sessions.remote != nil {
		mux.HandleFunc("PUT "+sut.MembershipPath, func(w http.ResponseWriter, r *http.Request) {
			m, err := decodeMembership(r.Body)
			if err != nil {
				sendJSON(w, http.StatusBadRequest, map[string]string{"error": err.Error(), "hint": `send {"upstreams": [{"node": "web-2", "address": "127.0.0.1:8080"}]}`})
				return
			}
			sessions.remote.SetPeers(m.Upstreams)
			w.WriteHeader(http.StatusNoContent)
		})
	}
	return mux
}

// placement is where the sessions are that a web host knows of: one of the two.
type placement struct {
	memory *session.Memory // in this host
	remote *session.Remote // in the hosts for reads
}

// placeSessions places sessions in this host's memory; a host that has uploads
// only asks the others for theirs.
func (b birth) placeSessions() (placement, error) {
	if b.config.Service == sut.Uploads {
		return placement{remote: session.NewRemote(b.config.Wiring.Uses[sut.Web], app.RequestID)}, nil
	}
	memory, err := session.NewMemory(session.MemoryConfig{Host: b.config.Node, Registry: b.registry})
	return placement{memory: memory}, err
}

// sessions is the placement as the service sees it.
func (p placement) sessions() app.Sessions {
	if p.remote != nil {
		return p.remote
	}
	return p.memory
}

func (p placement) close() {
	if p.remote != nil {
		p.remote.Close()
	}
}

// decodeMembership reads a membership strictly.
func decodeMembership(body io.Reader) (m sut.Membership, err error) {
	if err := decodeStrictly(body, &m); err != nil {
		return m, fmt.Errorf("membership: %w", err)
	}
	return m, checkPeers(m.Upstreams)
}

// hostNumber is the part of an id that tells the hosts apart: the number at the
// end of the node's name.
func hostNumber(node string) (uint16, error) {
	number, err := strconv.ParseUint(node[strings.LastIndexByte(node, '-')+1:], 10, 16)
	if err != nil {
		return 0, fmt.Errorf("web node %q has no number at the end of its name, which its ids are made from", node)
	}
	return uint16(number), nil
}
