// Package dbadmin is the operators' side of a database that has copies: whom it follows,
// and what it lost when another one took its place.
//
// It knows no engine. All handlers may be called concurrently.
package dbadmin

import (
	"context"
	"errors"
	"net/http"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/node/process"
)

// Database is a database that has copies.
type Database interface {
	// ReplicationStatus says how its copy stands.
	ReplicationStatus(ctx context.Context) (sut.ReplicationStatus, error)
	// Become makes it what it is told.
	Become(ctx context.Context, next sut.Replication) error
	// LostChanges says what the copy that it had as a primary held and is gone.
	LostChanges(ctx context.Context) (sut.Lost, error)
}

// Add adds what operators ask and tell a database: sut.ReplicationPath and sut.LostPath.
// An error of Become that wraps conflict means that it must not, and changes nothing. dir
// is the database's directory.
func Add(mux *http.ServeMux, db Database, conflict error, dir string) {
	addReplication(mux, db, conflict)
	addLost(mux, &keeper{db: db, dir: dir})
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
		switch err := db.Become(r.Context(), next); {
		case errors.Is(err, conflict):
			process.SendError(w, http.StatusConflict, err, "")
		case err != nil:
			process.SendError(w, http.StatusInternalServerError, err, "")
		default:
			show(w, r)
		}
	})
}
