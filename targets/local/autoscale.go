package local

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/autoscale"
	"github.com/stagebench/stagebench/targets/metrics"
)

const (
	// autoscalerName is the name of the autoscaler in events.
	autoscalerName = "autoscaler"
	// inFlightMetric is the metric of a web node that counts the requests that it serves now.
	inFlightMetric = "stagebench_http_requests_in_flight"
	// scrapes is how often a metric is read within one interval of the autoscaler. A host with
	// fewer than minScrapes answers has no metric: one moment says little about an interval.
	scrapes    = 10
	minScrapes = 2
)

// autoscaler decides the number of web hosts once per interval and changes it by Scale, one
// change at a time. An interval in which a web host or a balancer was started, killed, paused
// or frozen does not count, and the next one begins when all serve again. So neither the CPU
// time of a start nor the load that a dead host leaves to others is a reason.
type autoscaler struct {
	system  *System
	config  autoscale.Config
	history autoscale.History // only run uses it
	noted   string            // kind of the last decision, "" = by the metric alone; only run uses it
}

// scaleAutomatically starts the autoscaler, if the knobs want one. It ends with the life of the system.
func (s *System) scaleAutomatically() {
	topology := s.Topology()
	web := ladder.WebOf(topology.Knobs)
	config, on := autoscale.ConfigOf(web)
	if !on {
		return
	}
	for config.Max > web.Hosts && !s.admits(topology, config.Max) {
		config.Max--
	}
	a := &autoscaler{system: s, config: config}
	text := fmt.Sprintf("autoscaling is on: %d to %d hosts, a decision every %v", config.Min, config.Max, config.Interval)
	if config.Max < web.AutoscaleMax {
		text += fmt.Sprintf("; this machine has no room for %d", web.AutoscaleMax)
	}
	a.record(autoscale.Decision{Hosts: web.Hosts, Advice: web.Hosts, Wanted: web.Hosts, Reason: text})
	s.watching.Go(func() { a.run(s.life) })
}

// admits reports whether a number of web hosts is possible on this machine.
func (s *System) admits(t sut.Topology, hosts int) bool {
	next, _, err := ladder.Scale(t, string(sut.Web), hosts)
	return err == nil && (s.opts.Admit == nil || s.opts.Admit(next) == nil)
}

// run decides until ctx ends.
func (a *autoscaler) run(ctx context.Context) {
	for {
		samples, disturbed := a.observe(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case disturbed != "":
			a.hold(disturbed)
			if a.system.await(ctx, func() bool { return a.system.disturbance() == "" }) != nil {
				return
			}
		default:
			a.decide(ctx, samples)
		}
	}
}

// decide makes one decision and carries it out.
func (a *autoscaler) decide(ctx context.Context, samples []autoscale.Sample) {
	var d autoscale.Decision
	d, a.history = autoscale.Decide(a.config, samples, a.history, time.Now())
	a.note(d)
	if !d.Changes() {
		return
	}
	_, err := a.system.Scale(ctx, string(sut.Web), d.Wanted)
	switch {
	case ctx.Err() != nil:
	case errors.Is(err, errChanging):
		a.hold("another change is in progress")
	case err != nil:
		text, _, _ := strings.Cut(err.Error(), "\n")
		a.note(autoscale.Hold(d.Hosts, "this error remains: "+text))
	default:
		a.history = a.history.Changed(d.Hosts, d.Wanted, time.Now())
	}
}

func (a *autoscaler) hold(why string) {
	a.note(autoscale.Hold(ladder.WebOf(a.system.Topology().Knobs).Hosts, why))
}

// note makes a decision an event if it changes the number of hosts, or if its kind differs from that of the decision
// before it.
func (a *autoscaler) note(d autoscale.Decision) {
	kind := string(d.Limit)
	switch {
	case d.Changes():
		kind = "change"
	case d.Limit == autoscale.ByState:
		kind = d.Reason
	case d.Limit == autoscale.ByTolerance: // also the advice is the present number
		kind = string(autoscale.ByMetric)
	}
	if kind == a.noted && !d.Changes() {
		return
	}
	a.noted = kind
	a.record(d)
}

// record makes a decision an event.
func (a *autoscaler) record(d autoscale.Decision) {
	s := a.system
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, targets.Event{
		UnixNS: time.Now().UnixNano(), Node: autoscalerName, Text: d.String(), Supply: new(s.supply()),
		Scaling: &targets.Scaling{
			From: d.Hosts, To: d.Wanted, Advice: d.Advice, Metric: d.Metric, Limit: string(d.Limit), Reason: d.Reason,
		},
	})
	s.opts.Log.Info(d.String(), "node", autoscalerName)
}

// supply counts the web hosts. The caller holds mu.
func (s *System) supply() (supply targets.Supply) {
	for _, n := range s.nodes {
		if n.Role != sut.Web {
			continue
		}
		supply.Hosts++
		if n.state == targets.Serving && !n.joining && !n.leaving {
			supply.Serving++
		}
	}
	return supply
}

// disturbance returns why the number of web hosts must not change now, "" = it may. The caller holds mu.
func (s *System) disturbance() string {
	for _, n := range s.nodes {
		switch {
		case n.Role != sut.Web && n.Role != sut.Balance:
		case n.state != targets.Serving:
			return fmt.Sprintf("%s is %s", n.Name, n.state)
		case n.frozen:
			return "the system is frozen"
		case n.joining, n.leaving:
			return "the number of web hosts changes"
		}
	}
	return ""
}

// observed is a web host during one interval.
type observed struct {
	*node
	since  time.Time // when it was ready
	admin  string
	before float64 // CPU seconds at the begin of the interval
	known  bool    // before is known
	sum    int64   // of the answers
	count  int     // of the answers
}

// observe watches all web hosts for one interval and returns their samples. It returns early, with the reason, when a
// web host or a balancer does not serve.
func (a *autoscaler) observe(ctx context.Context) (samples []autoscale.Sample, disturbed string) {
	s := a.system
	s.mu.Lock()
	disturbed = s.disturbance()
	var hosts []*observed
	for _, n := range s.nodes {
		if n.Role == sut.Web {
			hosts = append(hosts, &observed{node: n, since: n.since, admin: n.ready.Admin})
		}
	}
	s.mu.Unlock()
	if disturbed != "" {
		return nil, disturbed
	}
	begin := time.Now()
	for _, h := range hosts {
		h.before, h.known = h.cpuSeconds()
	}
	for i := range scrapes {
		due := begin.Add(a.config.Interval * time.Duration(i+1) / scrapes)
		if disturbed = a.undisturbed(ctx, time.Until(due)); disturbed != "" {
			return nil, disturbed
		}
		if ctx.Err() == nil && a.config.Metric == ladder.ScaleInFlight {
			s.scrapeInFlight(ctx, hosts, max(a.config.Interval/scrapes, time.Second))
		}
	}
	elapsed := time.Since(begin).Seconds()
	for _, h := range hosts {
		sample := autoscale.Sample{Host: h.Host, ReadySince: h.since, Size: 1}
		if a.config.Metric == ladder.ScaleCPU {
			sample.Size = h.host.CPU
			if after, known := h.cpuSeconds(); known && h.known {
				sample.Value = new(100 * (after - h.before) / elapsed / h.host.CPU)
			}
		} else if h.count >= minScrapes {
			sample.Value = new(float64(h.sum) / float64(h.count))
		}
		samples = append(samples, sample)
	}
	return samples, ""
}

// undisturbed waits for a duration. It returns early, with the reason, when a web host or a balancer does not serve.
func (a *autoscaler) undisturbed(ctx context.Context, d time.Duration) (disturbed string) {
	end := time.NewTimer(d)
	defer end.Stop()
	for {
		a.system.mu.Lock()
		disturbed, changed := a.system.disturbance(), a.system.changed
		a.system.mu.Unlock()
		if disturbed != "" {
			return disturbed
		}
		select {
		case <-changed:
		case <-end.C:
			return ""
		case <-ctx.Done():
			return ""
		}
	}
}

// cpuSeconds returns what the host of a web node has used since its start. known is false if the host is gone.
func (o *observed) cpuSeconds() (seconds float64, known bool) {
	usage, err := o.host.budget.Usage()
	return usage.CPUSeconds, err == nil
}

// scrapeInFlight adds the number of requests in flight of each host that answers in time.
func (s *System) scrapeInFlight(ctx context.Context, hosts []*observed, patience time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var all sync.WaitGroup
	for _, h := range hosts {
		all.Go(func() {
			series, err := metrics.Read(ctx, &s.admin, h.admin, s.secret)
			if err == nil && series.Has(inFlightMetric) {
				h.sum += series.Sum(inFlightMetric)
				h.count++
			}
		})
	}
	all.Wait()
}
