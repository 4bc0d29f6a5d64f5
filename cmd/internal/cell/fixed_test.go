package cell

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/driver/vegeta"
	"github.com/stagebench/stagebench/workloads/pace"
)

// posts is a workload of uploads.
type posts struct{}

func (posts) Name() string { return "posts" }
func (posts) Users() int   { return 0 }
func (posts) Op(n uint64) workloads.Op {
	return workloads.Op{Index: n, Class: "upload", Method: http.MethodPost, Path: "/api/photos", User: -1, Write: true}
}

// Photos are read until their processing has ended. Its time comes from the record, not from when it was read.
func TestAwaitProcessed(t *testing.T) {
	t.Parallel()
	const processing = 250 * time.Millisecond
	var uploads, reads atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/photos", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "/api/photos/"+strconv.FormatInt(uploads.Add(1), 10))
		w.WriteHeader(http.StatusCreated)
	})
	mux.HandleFunc("GET /api/photos/{id}", func(w http.ResponseWriter, r *http.Request) {
		switch id := r.PathValue("id"); {
		case id == "1": // it is lost
			w.WriteHeader(http.StatusNotFound)
		case reads.Add(1)%2 == 1:
			fmt.Fprint(w, `{"state":"processing","done_us":0}`)
		case id == "2":
			fmt.Fprintf(w, `{"state":"failed","done_us":%d}`, time.Now().UnixMicro())
		default:
			fmt.Fprintf(w, `{"state":"ready","done_us":%d}`, time.Now().Add(processing).UnixMicro())
		}
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	clients := newClients(t, server.URL)
	schedule, err := pace.Constant(50)
	if err != nil {
		t.Fatal(err)
	}
	s := &Stepper{
		Driver: vegeta.Driver{}, Clients: clients, Workload: posts{}, SLO: results.DefaultSLO(), Timeout: time.Second,
		Drain: time.Second, Progress: silent{}, ClientCores: 1, Patience: 2 * time.Second,
	}
	step, err := s.Step(t.Context(), "fixed", 50, schedule, 200*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.AwaitProcessed(t.Context())
	if err != nil || p == nil {
		t.Fatalf("%+v, %v", p, err)
	}
	if p.Uploaded != step.Ledger.OK || p.Missing != 1 || p.Failed != 1 || p.Ready != p.Uploaded-2 {
		t.Errorf("%+v of %d uploads", p, step.Ledger.OK)
	}
	if p.DoneNS.Count != p.Uploaded || p.DoneNS.Max != nil {
		t.Errorf("%+v: want a count with the lost photo, which is infinitely slow", p.DoneNS)
	}
}
