package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/imaging"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/driver"
)

// uploaders is a workload of that many users, who upload pictures in turn.
type uploaders struct {
	members
	pictures [][]byte
}

// newUploaders returns users who upload small pictures, all of them different.
func newUploaders() uploaders {
	u := uploaders{members: 16}
	for seed := range uint64(16) {
		u.pictures = append(u.pictures, imaging.Sample(seed, 96, 64))
	}
	return u
}

func (uploaders) Name() string { return "uploaders" }
func (u uploaders) Op(n uint64) workloads.Op {
	return workloads.Op{
		Index: n, Class: "upload", Method: http.MethodPost, Path: "/api/photos", User: int(n % uint64(u.members)),
		Header: map[string]string{"Content-Type": "image/jpeg"}, Body: u.pictures[n%uint64(len(u.pictures))], Write: true,
	}
}

// uploadRate is the rate of their uploads.
const uploadRate = 10.0

// bringUpQueue brings stage queue up without the tiers that jobs do not need. unit is the size of a unit in cores.
func bringUpQueue(t *testing.T, unit float64, engines, own sut.Knobs) *rig {
	t.Helper()
	lean := sut.Knobs{
		"cdn.edges": "0", "cache.hosts": "0", "db.replicas": "0", "web.hosts": "2", "session.store": "sql",
		"blob.hosts": "1", "queue.redeliver": "1",
	}
	r := bringUpSized(t, sut.Queued, with(with(engines, lean), own), unit)
	r.connect(t, newUploaders(), driver.ClientConfig{Connections: 32})
	return r
}

// down kills a node and keeps it down for some time. It returns when the node serves again.
func (r *rig) down(t *testing.T, node string, d time.Duration) {
	t.Helper()
	before := r.state(t, node).Restarts
	if err := r.KillFor(node, d); err != nil {
		t.Error(err)
	}
	eventually(t, node+" serves again", func() bool { return r.state(t, node).Restarts == before+1 })
}

// processed checks that no upload of the last step failed, and that each has become ready, once. It returns what
// became of them.
func (r *rig) processed(t *testing.T, step results.Step) results.Processing {
	t.Helper()
	for _, o := range r.failures() {
		t.Errorf("upload at %v: %s %s", time.Duration(o.Intended), o.Fate, o.Error)
	}
	p, err := r.stepper.AwaitProcessed(t.Context())
	if err != nil || p == nil {
		t.Fatalf("processing %+v, %v", p, err)
	}
	t.Logf("%+v; events %v", *p, step.Events)
	if p.Ready != p.Uploaded || p.Uploaded < step.Ledger.OK {
		t.Errorf("%d uploads of %d are ready, %d failed, %d are unfinished, %d missing", p.Ready, step.Ledger.OK, p.Failed,
			p.Unfinished, p.Missing)
	}
	for _, o := range r.outcomes {
		if o.Created == "" {
			continue
		}
		// Its record has changed once, so its job took effect once.
		if photo := r.photo(t, o.Created); photo.Version != 2 || photo.State != photos.StateReady {
			t.Errorf("%s: version %d, state %s, want 2 and ready", o.Created, photo.Version, photo.State)
		}
	}
	return *p
}

// photo reads the record of a photo.
func (r *rig) photo(t *testing.T, path string) (photo photos.Photo) {
	t.Helper()
	response, err := http.Get(r.Endpoints()[0] + path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }() // read only
	if err := json.NewDecoder(response.Body).Decode(&photo); err != nil {
		t.Fatalf("%s: %s, %v", path, response.Status, err)
	}
	return photo
}

// Without any worker, uploads go on, and nothing is lost: each photo is processed, once, when the workers are back. The
// backlog is what arrived meanwhile.
func TestWorkersAreKilled(t *testing.T) {
	t.Parallel()
	for name, knobs := range engines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := bringUpQueue(t, roomy, knobs, sut.Knobs{"queue.workers": "2"})
			step := r.loadWhile(t, uploadRate, time.Second, 3*time.Second, func() {
				if err := r.KillFor("worker-2", 4*time.Second); err != nil {
					t.Error(err)
				}
				r.down(t, "worker-1", 4*time.Second)
			})
			var from, to int64 // there were no workers in between
			for _, e := range step.Events {
				switch {
				case strings.HasSuffix(e.Text, "killed on request"):
					from = e.AtNS
				case from > 0 && to == 0 && strings.Contains(e.Text, ": serving on "):
					to = e.AtNS
				}
			}
			p := r.processed(t, step)
			arrived := int64(0)
			for _, o := range r.outcomes {
				if o.Created != "" && o.Done > from && o.Done < to {
					arrived++
				}
			}
			if p.MaxBacklog < arrived*9/10 || arrived < int64(3*uploadRate) {
				t.Errorf("a backlog of %d, want at least the %d that arrived without workers", p.MaxBacklog, arrived)
			}
			if p.DrainNS == nil {
				t.Error("the backlog was not drained")
			}
			if done := figure(t, &step, "jobs_done"); done > p.Uploaded {
				t.Errorf("%d jobs were done for %d uploads", done, p.Uploaded)
			}
		})
	}
}

// The broker is killed under uploads, while a worker dies, too. Every upload succeeds, and each is processed once,
// although deliveries repeat.
func TestTheBrokerIsKilled(t *testing.T) {
	t.Parallel()
	for name, knobs := range engines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := bringUpQueue(t, roomy, knobs, sut.Knobs{"queue.workers": "2"})
			step := r.loadWhile(t, uploadRate, time.Second, 4*time.Second, func() {
				if err := r.KillFor("worker-1", time.Second); err != nil {
					t.Error(err)
				}
				r.down(t, "broker-1", 0)
			})
			r.processed(t, step)
		})
	}
}

// While the broker is down, uploads succeed, and say that the queue does not answer. Their photos are found in the
// database and put into the queue when the broker is back.
func TestUploadsWithoutABroker(t *testing.T) {
	t.Parallel()
	for name, knobs := range engines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := bringUpQueue(t, roomy, knobs, nil)
			step := r.loadWhile(t, uploadRate, time.Second, time.Second, func() {
				if err := r.KillFor("broker-1", 4*time.Second); err != nil {
					t.Error(err)
				}
				response, err := r.upload(t, imaging.Sample(1, 64, 64))
				if err != nil || response.Header.Get("X-Degraded") != "queue" {
					t.Errorf("an upload without a broker: %+v, %v, want X-Degraded: queue", response, err)
				}
				eventually(t, "the broker serves again", func() bool { return r.state(t, "broker-1").Restarts == 1 })
			})
			r.processed(t, step)
			if swept := figure(t, &step, "jobs_put_failed"); swept == 0 {
				t.Error("no job could not be put")
			}
		})
	}
}

// upload uploads a picture as the seventh user.
func (r *rig) upload(t *testing.T, picture []byte) (*http.Response, error) {
	t.Helper()
	response, err := newUploads(t, r.Endpoints()[0]).client.Post(r.Endpoints()[0]+"/api/photos", "image/jpeg",
		strings.NewReader(string(picture)))
	if err == nil && response.StatusCode != http.StatusCreated {
		text, _ := io.ReadAll(response.Body)
		err = fmt.Errorf("%s: %s", response.Status, text)
	}
	return response, err
}

// A picture that cannot be processed fails alone: its record says so, it is a dead letter, and the queue is empty.
func TestAPoisonJobFailsAlone(t *testing.T) {
	t.Parallel()
	for name, knobs := range engines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := bringUpQueue(t, roomy, knobs, nil)
			good := imaging.Sample(1, 64, 64)
			// The header and the end are those of a picture, but most of its data is missing.
			poison := slices.Concat(good[:len(good)*3/4], good[len(good)-2:])
			response, err := r.upload(t, poison)
			if err != nil {
				t.Fatal(err)
			}
			path := response.Header.Get("Location")
			r.processed(t, r.load(t, uploadRate, 2*time.Second, 0, nil))
			eventually(t, "the photo has failed", func() bool { return r.photo(t, path).State == photos.StateFailed })
			letters := r.admin(t, http.MethodGet, "broker-1", "/dead-letters", nil)
			defer func() { _ = letters.Body.Close() }() // read only
			text, err := io.ReadAll(letters.Body)
			if err != nil || !strings.Contains(string(text), strings.TrimPrefix(path, "/api/photos/")) {
				t.Errorf("dead letters %s, %v, want that of %s", text, err, path)
			}
			step := r.load(t, uploadRate, time.Second, 0, nil)
			r.processed(t, step)
			if dead := figure(t, &step, "queue_dead_letters"); dead != 1 {
				t.Errorf("%d dead letters, want 1", dead)
			}
		})
	}
}

// Workers are added and removed under uploads. Nothing fails, and each photo is processed once.
func TestWorkersAreScaled(t *testing.T) {
	t.Parallel()
	for name, knobs := range engines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := bringUpQueue(t, 0.14, knobs, nil) // with three workers, the system fits into what the driver leaves
			r.scaleUnderLoad(t, "worker", 3, `^worker has 3 hosts after \S+\n$`)
			r.processed(t, results.Step{})
			r.scaleUnderLoad(t, "worker", 1, `^worker has 1 host after \S+\n$`)
			r.processed(t, results.Step{})
		})
	}
}

// Each of three brokers has every job: one of them dies, and uploads and processing go on.
func TestOneOfThreeBrokersIsKilled(t *testing.T) {
	t.Parallel()
	for name, knobs := range engines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := bringUpQueue(t, roomy, knobs, sut.Knobs{"queue.replicas": "3"})
			step := r.loadWhile(t, uploadRate, time.Second, 5*time.Second, func() {
				for _, node := range []string{"broker-1", "broker-3"} {
					r.down(t, node, time.Second)
				}
			})
			r.processed(t, step)
		})
	}
}

// figure returns the value of a figure that must be known.
func figure(t *testing.T, s *results.Step, name string) int64 {
	t.Helper()
	f := s.Figure(name)
	if f == nil || f.Value == nil {
		t.Fatalf("%s is unknown: %+v", name, f)
	}
	return *f.Value
}

// state returns the status of a node.
func (r *rig) state(t *testing.T, node string) targets.NodeStatus {
	t.Helper()
	for _, n := range r.Status() {
		if n.Node == node {
			return n
		}
	}
	t.Fatalf("there is no node %s", node)
	return targets.NodeStatus{}
}
