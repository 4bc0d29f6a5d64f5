package main

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/driver"
)

// anonymous is the reads of a workload that need no session, sent without one.
type anonymous struct{ all workloads.Workload }

func (anonymous) Name() string { return "anonymous" }
func (anonymous) Users() int   { return 0 }

// Op returns the first matching op of the n-th window of 64 ops.
func (a anonymous) Op(n uint64) workloads.Op {
	const window = 64 // about half of the ops match, so every window has one
	for i := range uint64(window) {
		op := a.all.Op(n*window + i)
		if !op.Write && op.Class != "me" {
			op.Index, op.User = n, -1
			return op
		}
	}
	panic("every op of the window needs a session")
}

// with returns the knobs of the engines, overridden by those of the test.
func with(engine, own sut.Knobs) sut.Knobs {
	all := sut.Knobs{}
	maps.Copy(all, engine)
	maps.Copy(all, own)
	return all
}

// smallUnit is a size of a unit in cores with which four web hosts fit on the machine.
const smallUnit = 0.2

// The web tier grows from two hosts to four and shrinks back under load, and no
// request fails.
func TestScaleUnderLoad(t *testing.T) {
	t.Parallel()
	for name, knobs := range engines() {
		for _, layer := range []string{"l7", "l4"} {
			t.Run(name+"/"+layer, func(t *testing.T) {
				t.Parallel()
				own := sut.Knobs{"web.hosts": "2", "lb.sticky": "false", "lb.layer": layer}
				r := bringUpSized(t, sut.LB, with(knobs, own), smallUnit)
				// A layer-4 connection stays on its host until the client renews it.
				r.connect(t, anonymous{shipped(t, "read-heavy")},
					driver.ClientConfig{Connections: 32, ConnectionLife: 500 * time.Millisecond})
				step := r.load(t, 40, 6*time.Second, 500*time.Millisecond, func() { r.scale(t, 4, 2) })
				t.Logf("ledger %+v causes %v", step.Ledger, step.Causes)
				for _, e := range step.Events {
					t.Logf("%v %s", time.Duration(e.AtNS).Round(time.Millisecond), e.Text)
				}
				if failed(step) > 0 {
					t.Errorf("%d of %d requests failed, want none", failed(step), step.Ledger.Scheduled)
				}
				if nodes := r.webNodes(); !slices.Equal(nodes, []string{"web-1", "web-2"}) {
					t.Errorf("web nodes %v, want web-1 and web-2, as at the start", nodes)
				}
			})
		}
	}
}

// scale sets the number of web hosts to each of these numbers in turn. After each change it
// waits until all added hosts have served requests.
func (r *rig) scale(t *testing.T, hosts ...int) {
	for _, n := range hosts {
		if _, err := r.Scale(t.Context(), "web", n); err != nil {
			t.Error(err)
			return
		}
		if n <= 2 {
			continue
		}
		for range 50 { // enough requests to show up in the step
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

// One of two balancers is killed. Requests in flight on it may fail. After that, its clients
// use the other balancer.
func TestABalancerIsKilled(t *testing.T) {
	t.Parallel()
	const connections = 32
	for name, knobs := range engines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := bringUpSized(t, sut.LB, with(knobs, sut.Knobs{"lb.hosts": "2"}), roomy)
			r.connect(t, shipped(t, "read-heavy"), driver.ClientConfig{Connections: connections})
			step, killed := r.kill(t, "lb-1", 100, 5*time.Second, time.Second)
			// Half of the connections go to the dead balancer. The client may send one op on
			// each of them before it notices that the connection is closed.
			inFlight := r.inFlight(killed)
			allowed := inFlight + connections/2
			lost := step.Ledger.SessionLost
			t.Logf("%d failed, %d in flight, %d sessions lost; causes %v", failed(step), inFlight, lost, step.Causes)
			if failed(step) > allowed {
				t.Errorf("%d requests failed, want at most %d", failed(step), allowed)
			}
			if lost > 0 {
				t.Errorf("%d sessions were lost, want none: sessions are on the web hosts", lost)
			}
			for _, o := range r.failures() {
				if o.Sent > killed.over+int64(3*time.Second) {
					t.Errorf("a request failed that was sent at %v, more than 3 s after the kill at %v: %s",
						time.Duration(o.Sent), time.Duration(killed.over), o.Error)
				}
			}
		})
	}
}

// An address hash keeps a user on the web host that has the session in its memory, if the user keeps its address. There
// is no cookie affinity. Clients without an address for each user lose sessions.
func TestAddressHashKeepsSessions(t *testing.T) {
	t.Parallel()
	for name, knobs := range engines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			own := sut.Knobs{"lb.policy": "ip_hash", "lb.sticky": "false"}
			r := bringUpSized(t, sut.LB, with(knobs, own), roomy)
			for _, perUser := range []bool{true, false} {
				r.connect(t, shipped(t, "session-heavy"), driver.ClientConfig{
					Connections: 32, SourcePerUser: perUser, ConnectionLife: time.Second,
				})
				for range 2 {
					step := r.load(t, 6, 3*time.Second, 0, nil) // 60 requests/s
					lost, l := step.Ledger.SessionLost, step.Ledger
					t.Logf("one address for each user: %v, ledger %+v, journeys %+v, %d connections",
						perUser, l, *step.Journeys, step.Client.Connections)
					if perUser && lost > 0 || !perUser && lost == 0 {
						t.Errorf("%d sessions were lost, with one address for each user: %v", lost, perUser)
					}
					if failed(step) > 0 {
						t.Errorf("%d of %d requests failed: %v", failed(step), l.Scheduled, step.Causes)
					}
				}
			}
		})
	}
}

// The balancer routes by path, header and cookie. A request that matches several routes goes
// to the first one.
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
					t.Errorf("%s: ledger %+v causes %v, want all requests served by %s",
						op.Path, step.Ledger, step.Causes, want)
				}
			}
		})
	}
}

// repeated is a workload that repeats one op.
type repeated workloads.Op

func (repeated) Name() string { return "repeated" }
func (repeated) Users() int   { return 0 }
func (r repeated) Op(n uint64) workloads.Op {
	op := workloads.Op(r)
	op.Index = n
	return op
}

// One of three blob hosts is killed. Every photo has two copies, so all images can still be
// read.
func TestABlobHostIsKilled(t *testing.T) {
	t.Parallel()
	r := bringUpSized(t, sut.LB, sut.Knobs{"blob.hosts": "3", "blob.copies": "2", "web.hosts": "2"}, smallUnit)
	image := workloads.Op{Class: "image", Method: "GET", User: -1}
	r.connect(t, images(image), driver.ClientConfig{Connections: 16})
	step := r.load(t, 60, 4*time.Second, time.Second, func() {
		if err := r.Kill("blob-2"); err != nil {
			t.Error(err)
		}
	})
	t.Logf("ledger %+v causes %v events %v", step.Ledger, step.Causes, step.Events)
	// A web host retries on another blob host, so only requests that run out of time fail.
	// With one copy, a third of the 60 images/s would fail.
	if failed(step) > 3 {
		t.Errorf("%d of %d images failed, want at most 3: there are two copies", failed(step), step.Ledger.Scheduled)
	}
}

// images is a workload that reads the seeded images in turn.
type images workloads.Op

func (images) Name() string { return "images" }
func (images) Users() int   { return 0 }
func (i images) Op(n uint64) workloads.Op {
	op := workloads.Op(i)
	op.Index, op.Path = n, thumbPath(int(1+n%3000))
	return op
}
