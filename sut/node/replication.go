package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/postgres"
	"github.com/stagebench/stagebench/sut/sqlite"
	"github.com/stagebench/stagebench/sut/store"
)

// databases are those that a web node uses to begin with: the primary is named
// first.
func (b birth) databases() (sut.Databases, error) {
	peers := b.config.Wiring.Uses[sut.DB]
	if len(peers) == 0 {
		return sut.Databases{}, fmt.Errorf("role %s uses a %s node, but is told of none", b.config.Role, sut.DB)
	}
	return sut.Databases{Epoch: b.config.Wiring.Epoch, Primary: peers[0], Replicas: peers[1:]}, nil
}

// databasesHandler tells a store of other databases.
func databasesHandler(records *store.Store) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var next sut.Databases
		err := decodeStrictly(r.Body, &next)
		if err == nil {
			err = checkPeers(append([]sut.Peer{next.Primary}, next.Replicas...))
		}
		if err != nil {
			sendJSON(w, http.StatusBadRequest, map[string]string{"error": err.Error(), "hint": `send {"epoch": 2, "primary": {"node": "db-2", "address": "127.0.0.1:5432"}}`})
			return
		}
		switch err := records.SetDatabases(r.Context(), next); {
		case errors.Is(err, store.ErrOldEpoch):
			sendJSON(w, http.StatusConflict, map[string]string{"error": err.Error()})
		case err != nil:
			sendJSON(w, http.StatusInternalServerError, map[string]string{"error": err.Error()})
		default:
			w.WriteHeader(http.StatusNoContent)
		}
	})
}

// replicated is a database that has copies.
type replicated interface {
	// ReplicationStatus says how its copy stands.
	ReplicationStatus(ctx context.Context) (sut.ReplicationStatus, error)
	// Become makes it what it is told; an error that wraps conflict means that it
	// must not, and changes nothing.
	Become(ctx context.Context, next sut.Replication) error
	// LostChanges says what the copy that it had as a primary held and is gone.
	LostChanges(ctx context.Context) (sut.Lost, error)
}

// embedded is the embedded database as what is replicated.
type embedded struct{ *sqlite.Server }

// ReplicationStatus implements replicated; the embedded database always knows.
func (e embedded) ReplicationStatus(context.Context) (sut.ReplicationStatus, error) {
	return e.Server.ReplicationStatus(), nil
}

// sqliteReplication is what the embedded database is told of its copies, nil when
// it has none.
func (b birth) sqliteReplication() *sqlite.Replication {
	if b.config.Replication == nil {
		return nil
	}
	s := ladder.DBOf(b.config.Knobs)
	return &sqlite.Replication{
		Node: b.config.Node, State: *b.config.Replication, SyncCopies: s.SyncCopies(),
		SyncTimeout: s.SyncTimeout,
		Lag:         s.ReplicaLag,
	}
}

// postgresReplication is the same for the native one.
func (b birth) postgresReplication() *postgres.Replication {
	if b.config.Replication == nil {
		return nil
	}
	s := ladder.DBOf(b.config.Knobs)
	return &postgres.Replication{
		Node: b.config.Node, State: *b.config.Replication, SyncCopies: s.SyncCopies(), Lag: s.ReplicaLag,
	}
}

// databaseAdmin is the admin side of a database.
func (b birth) databaseAdmin(db replicated, conflict error) http.Handler {
	if b.config.Replication == nil {
		return b.admin()
	}
	mux := http.NewServeMux()
	mux.Handle("/", b.admin())
	mux.Handle(sut.ReplicationPath, replicationHandler(db, conflict))
	mux.Handle(sut.LostPath, b.lostHandler(db))
	return mux
}

// replicationHandler is the admin side of a database that has copies.
func replicationHandler(db replicated, conflict error) http.Handler {
	mux := http.NewServeMux()
	show := func(w http.ResponseWriter, r *http.Request) {
		status, err := db.ReplicationStatus(r.Context())
		if err != nil {
			sendJSON(w, http.StatusServiceUnavailable, map[string]string{"error": err.Error()})
			return
		}
		sendJSON(w, http.StatusOK, status)
	}
	mux.HandleFunc("GET "+sut.ReplicationPath, show)
	mux.HandleFunc("PUT "+sut.ReplicationPath, func(w http.ResponseWriter, r *http.Request) {
		var next sut.Replication
		err := decodeStrictly(r.Body, &next)
		if err == nil {
			err = checkReplication(&next)
		}
		if err != nil {
			sendJSON(w, http.StatusBadRequest, map[string]string{"error": err.Error(), "hint": `send {"epoch": 2} to promote, and {"epoch": 2, "primary": {"node": "db-2", "address": "127.0.0.1:5432"}} to follow`})
			return
		}
		switch err := db.Become(r.Context(), next); {
		case errors.Is(err, conflict):
			sendJSON(w, http.StatusConflict, map[string]string{"error": err.Error()})
		case err != nil:
			sendJSON(w, http.StatusInternalServerError, map[string]string{"error": err.Error()})
		default:
			show(w, r)
		}
	})
	return mux
}

// checkReplication says what is wrong with what a database is told of its copies.
func checkReplication(r *sut.Replication) error {
	switch {
	case r == nil:
		return nil
	case r.Epoch < 1:
		return fmt.Errorf("replication: epoch %d: want 1 or more", r.Epoch)
	case r.Primary != nil && r.Several:
		return errors.New("replication: one of several primaries follows nobody: it has origins")
	case r.Primary != nil:
		return checkPeers([]sut.Peer{*r.Primary})
	}
	return checkPeers(r.Origins)
}

// decodeStrictly reads one JSON document, bounded, of known fields only.
func decodeStrictly(body io.Reader, into any) error {
	decoder := json.NewDecoder(io.LimitReader(body, 1<<20))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something behind the JSON document")
	}
	return nil
}
