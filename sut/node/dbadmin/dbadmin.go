// Package dbadmin has the operator endpoints of a replicated database: its replication
// role, and the changes that it lost in a failover.
//
// It works with any engine. All handlers may be called concurrently.
package dbadmin

import (
	"context"
	"errors"
	"net/http"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/node/process"
)

// Database is a replicated database.
type Database interface {
	// ReplicationStatus returns the state of its replication.
	ReplicationStatus(ctx context.Context) (sut.ReplicationStatus, error)
	// ChangeRole changes its replication role.
	ChangeRole(ctx context.Context, next sut.Replication) error
	// LostChanges returns the changes of an old copy that the primary never received.
	LostChanges(ctx context.Context, name string) (sut.Lost, error)
	// DropCopy removes an old copy. It does nothing if there is no copy with this name.
	DropCopy(name string) error
}

// Add adds the endpoints sut.ReplicationPath and sut.LostPath to mux. An error of ChangeRole
// that wraps conflict means that the role is not allowed and that nothing changed. secret is that of the system.
func Add(mux *http.ServeMux, db Database, conflict error, secret sut.Secret) {
	addReplication(mux, db, conflict)
	addLost(mux, &lostAdmin{db: db, secret: secret})
}

func addReplication(mux *http.ServeMux, db Database, conflict error) {
	show := func(w http.ResponseWriter, r *http.Request) {
		status, err := db.ReplicationStatus(r.Context())
		if err != nil {
			process.SendError(w, http.StatusServiceUnavailable, err, "")
			return
		}
		process.SendJSON(w, http.StatusOK, status)
	}
	mux.HandleFunc("GET "+sut.ReplicationPath, show)
	mux.HandleFunc("PUT "+sut.ReplicationPath, func(w http.ResponseWriter, r *http.Request) {
		var next sut.Replication
		err := process.DecodeStrictly(r.Body, &next)
		if err == nil {
			err = process.CheckReplication(next)
		}
		if err != nil {
			process.SendError(w, http.StatusBadRequest, err, `send {"epoch": 2} to promote, and `+
				`{"epoch": 2, "primary": {"node": "db-2", "address": "127.0.0.1:5432"}} to follow`)
			return
		}
		switch err := db.ChangeRole(r.Context(), next); {
		case errors.Is(err, conflict):
			process.SendError(w, http.StatusConflict, err, "")
		case err != nil:
			process.SendError(w, http.StatusInternalServerError, err, "")
		default:
			show(w, r)
		}
	})
}
