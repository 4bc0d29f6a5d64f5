package main

import (
	"slices"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/driver"
)

// anonymous is what visitors without a session read: the other ops of a workload
// are left out.
type anonymous struct{ all workloads.Workload }

func (anonymous) Name() string { return "anonymous" }
func (anonymous) Users() int   { return 0 }

// Op returns the n-th visit: the first one that fits in a stretch of ops.
func (a anonymous) Op(n uint64) workloads.Op {
	const stretch = 64 // of which half fit: never none
	for i := range uint64(stretch) {
		op := a.all.Op(n*stretch + i)
		if !op.Write && op.Class != "me" {
			op.Index, op.User = n, -1
			return op
		}
	}
	panic("a stretch of read-heavy without a visit")
}

// with returns knobs of a test's own on top of those of the engines.
func with(engine, own sut.Knobs) sut.Knobs {
	all := sut.Knobs{}
	for _, knobs := range []sut.Knobs{engine, own} {
		for name, value := range knobs {
			all[name] = value
		}
	}
	return all
}

// growing is a unit of which the machine has enough for four web hosts.
const growing = 0.2

// The web tier grows from two hosts to four and shrinks back under load, and no
// request fails.
func TestScaleUnderLoad(t *testing.T) {
	t.Parallel()
	for name, knobs := range engines() {
		for _, layer := range []string{"l7", "l4"} {
			t.Run(name+"/"+layer, func(t *testing.T) {
				t.Parallel()
				r := bringUpSized(t, sut.LB, with(knobs, sut.Knobs{"web.hosts": "2", "lb.sticky": "false", "lb.layer": layer}), growing)
				// A connection of layer 4 stays on its host until its client renews it.
				r.connect(t, anonymous{shipped(t, "read-heavy")}, driver.ClientConfig{Connections: 32, ConnectionLife: 500 * time.Millisecond})
				step := r.load(t, 40, 6*time.Second, 500*time.Millisecond, func() { r.scale(t, 4, 2) })
				t.Logf("ledger %+v causes %v", step.Ledger, step.Causes)
				for _, e := range step.Events {
					t.Logf("%v %s", time.Duration(e.AtNS).Round(time.Millisecond), e.Text)
				}
				if failed(step) > 0 {
					t.Errorf("%d of %d requests failed, want none", failed(step), step.Ledger.Scheduled)
				}
				if nodes := r.webNodes(); !slices.Equal(nodes, []string{"web-1", "web-2"}) {
					t.Errorf("web nodes %v, want the two of the beginning", nodes)
				}
			})
		}
	}
}

// scale changes the number of web hosts, one number after the other, and waits
// in between until the last host that came has traffic.
func (r *rig) scale(t *testing.T, hosts ...int) {
	for _, n := range hosts {
		if _, err := r.Scale(t.Context(), "web", n); err != nil {
			t.Error(err)
			return
		}
		if n <= 2 {
			continue
		}
		for range 50 { // long enough for the new hosts to be part of what is measured
			for _, node := range r.webNodes()[2:] {
				r.servesAgain(t, node)
			}
		}
	}
}

func (r *rig) webNodes() []string {
	var names []string
	for _, n := range r.Status() {
		if n.Role == sut.Web {
			names = append(names, n.Node)
		}
	}
	return names
}

// One of two balancers is killed: what was in flight on it may fail, and from
// then on its clients use the other.
func TestABalancerIsKilled(t *testing.T) {
	t.Parallel()
	const connections = 32
	for name, knobs := range engines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := bringUpSized(t, sut.LB, with(knobs, sut.Knobs{"lb.hosts": "2"}), roomy)
			r.connect(t, shipped(t, "read-heavy"), driver.ClientConfig{Connections: connections})
			step, killed := r.kill(t, "lb-1", 100, 5*time.Second, time.Second)
			// Half of the connections are idle ones to the dead one, and an op may be
			// written to each of them before the client sees its end.
			inFlight := r.inFlight(killed)
			allowed := inFlight + connections/2
			t.Logf("%d failed, %d in flight, %d sessions lost; causes %v", failed(step), inFlight, step.Ledger.SessionLost, step.Causes)
			if failed(step) > allowed || step.Ledger.SessionLost > 0 {
				t.Errorf("%d failed requests and %d lost sessions: at most %d may fail, and sessions are on web hosts", failed(step), step.Ledger.SessionLost, allowed)
			}
			for _, o := range r.failures() {
				if o.Sent > killed.over+int64(3*time.Second) {
					t.Errorf("a request failed that was sent %v into the step, after the kill at %v: %s", time.Duration(o.Sent), time.Duration(killed.over), o.Error)
				}
			}
		})
	}
}

// A balancer that routes by path, header and cookie sends each where it belongs.
func TestRoutesOnTheCommandLine(t *testing.T) {
	t.Parallel()
	for name, knobs := range engines() {
		t.Run(name, func(t *testing.T) {
			r := bringUpSized(t, sut.LB, with(knobs, sut.Knobs{
				"lb.sticky": "false",
				"lb.routes": "path=/img/* -> web-3; header=X-Batch:1 -> web-2; cookie=beta -> web-1",
			}), roomy)
			get := func(path, header, value string) workloads.Op {
				op := workloads.Op{Class: "get", Method: "GET", Path: path, User: -1}
				if header != "" {
					op.Header = map[string]string{header: value}
				}
				return op
			}
			for want, op := range map[string]workloads.Op{
				"web-3": get(thumbPath(1), "X-Batch", "1"),
				"web-2": get(photoPath(1), "X-Batch", "1"),
				"web-1": get(photoPath(1), "Cookie", "a=b; beta=yes"),
			} {
				op.Check = &workloads.Check{Header: map[string]string{"X-Served-By": want}}
				r.connect(t, repeated(op), driver.ClientConfig{Connections: 4})
				if step := r.load(t, 50, time.Second, 0, nil); failed(step) > 0 {
					t.Errorf("%s: ledger %+v causes %v, want all served by %s", op.Path, step.Ledger, step.Causes, want)
				}
			}
		})
	}
}

// repeated is a workload of one op.
type repeated workloads.Op

func (repeated) Name() string { return "repeated" }
func (repeated) Users() int   { return 0 }
func (r repeated) Op(n uint64) workloads.Op {
	op := workloads.Op(r)
	op.Index = n
	return op
}

// One of three blob hosts is killed: with
// two copies of every photo, all images are still there.
func TestABlobHostIsKilled(t *testing.T) {
	t.Parallel()
	r := bringUpSized(t, sut.LB, sut.Knobs{"blob.hosts": "3", "blob.copies": "2", "web.hosts": "2"}, growing)
	image := workloads.Op{Class: "image", Method: "GET", User: -1}
	r.connect(t, images(image), driver.ClientConfig{Connections: 16})
	step := r.load(t, 60, 4*time.Second, time.Second, func() {
		if err := r.Kill("blob-2"); err != nil {
			t.Error(err)
		}
	})
	t.Logf("ledger %+v causes %v events %v", step.Ledger, step.Causes, step.Events)
	// What was in flight on it is asked elsewhere by the web host, as far as there is
	// time; of one copy a third would be away, of 60 images each second.
	if failed(step) > 3 {
		t.Errorf("%d of %d images failed, want next to none: there are two copies", failed(step), step.Ledger.Scheduled)
	}
}

// images asks for the seeded images in turn.
type images workloads.Op

func (images) Name() string { return "images" }
func (images) Users() int   { return 0 }
func (i images) Op(n uint64) workloads.Op {
	op := workloads.Op(i)
	op.Index, op.Path = n, thumbPath(int(1+n%3000))
	return op
}
