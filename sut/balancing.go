package sut

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Balancing is what a balancer spreads over which hosts, and how; each engine takes
// it. The zero value of a field means its default, where one is given.
type Balancing struct {
	// Node is the balancer's own name.
	Node string
	Upstreams
	// Layer is Layer7 (default), which balances requests, or Layer4, which
	// balances connections and sees addresses only.
	Layer string
	// Policy is how a host is picked; default PolicyRoundRobin.
	Policy string
	// Sticky keeps a user on the host that answered first, by the cookie
	// StickyCookie.
	Sticky bool
	// HealthInterval is the time between two checks of a host; default 1 s.
	// One failed check takes it out, one good check brings it back.
	HealthInterval time.Duration
	// HealthTimeout bounds a check; default the longer of HealthInterval and 1 s.
	HealthTimeout time.Duration
	// HealthPath is what a check asks for; default "/healthz". A status of 200
	// to 399 is good.
	HealthPath string
	// EjectAfter is the number of failures in a row, of requests or connections,
	// that take a host out although its checks are good; 0 = never.
	EjectAfter int
	// LogRequests says which requests are logged, with their ids: LogFailed
	// (default), LogAll or LogNone.
	LogRequests string
	// ConnectTimeout bounds connecting to a host; default 3 s.
	ConnectTimeout time.Duration
	// ResponseTimeout bounds the wait for a host's answer, from the end of the
	// request to the headers; default 60 s.
	ResponseTimeout time.Duration
	// MaxIdlePerUpstream bounds the connections to one host that are kept while
	// they are idle; default 1024. Below the concurrency, each request above it
	// costs a new connection.
	MaxIdlePerUpstream int
}

// Upstreams is the hosts that a balancer spreads requests over, and which of them get
// which requests.
type Upstreams struct {
	Peers  []Peer  // at least one; with a Weight under PolicyWeightedRoundRobin
	Routes []Route // none = everything anywhere; others need Layer7
}

// Policies of a Balancing. HAProxy has no PolicyLeastResponseTime.
const (
	PolicyRoundRobin         = "round_robin"          // each in turn
	PolicyWeightedRoundRobin = "weighted_round_robin" // each in turn, in proportion to its weight
	PolicyIPHash             = "ip_hash"              // by the client's address, always the same
	PolicyLeastConn          = "least_conn"           // the one with the fewest requests in flight
	PolicyLeastResponseTime  = "least_response_time"  // the one that should answer first
)

// Layers of a Balancing.
const (
	Layer7 = "l7"
	Layer4 = "l4"
)

// Which requests are logged.
const (
	LogFailed = "failed"
	LogAll    = "all"
	LogNone   = "none"
)

// StickyCookie is the cookie that names the host a user stays on.
const StickyCookie = "lb"

// Complete returns a copy with defaults for what is not set.
func (b Balancing) Complete() Balancing {
	b.Layer = cmp.Or(b.Layer, Layer7)
	b.Policy = cmp.Or(b.Policy, PolicyRoundRobin)
	b.LogRequests = cmp.Or(b.LogRequests, LogFailed)
	b.HealthInterval = cmp.Or(b.HealthInterval, time.Second)
	b.HealthTimeout = cmp.Or(b.HealthTimeout, max(b.HealthInterval, time.Second))
	b.HealthPath = cmp.Or(b.HealthPath, "/healthz")
	b.ConnectTimeout = cmp.Or(b.ConnectTimeout, 3*time.Second)
	b.ResponseTimeout = cmp.Or(b.ResponseTimeout, time.Minute)
	b.MaxIdlePerUpstream = cmp.Or(b.MaxIdlePerUpstream, 1024)
	return b
}

// What may stand in a configuration file, a cookie and a label without quotes.
var (
	nodeName   = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)
	healthPath = regexp.MustCompile(`^/[A-Za-z0-9_./~-]*$`)
)

// Validate says what is wrong with a Balancing that is complete.
func (b Balancing) Validate() error {
	policies := []string{
		PolicyIPHash, PolicyLeastConn, PolicyLeastResponseTime, PolicyRoundRobin, PolicyWeightedRoundRobin,
	}
	switch {
	case !nodeName.MatchString(b.Node):
		return fmt.Errorf("node name %q: want letters, digits, '_', '.' and '-'", b.Node)
	case !slices.Contains(policies, b.Policy):
		return fmt.Errorf("policy %q: want one of %s", b.Policy, strings.Join(policies, ", "))
	case b.Layer != Layer7 && b.Layer != Layer4:
		return fmt.Errorf("layer %q: want %s or %s", b.Layer, Layer7, Layer4)
	case b.Layer == Layer4 && b.Sticky:
		return errors.New("sticky needs layer l7: a balancer of connections sees no cookies")
	case b.Layer == Layer4 && len(b.Routes) > 0:
		return errors.New("routes need layer l7: a balancer of connections sees no requests")
	case !slices.Contains([]string{LogFailed, LogAll, LogNone}, b.LogRequests):
		return fmt.Errorf("log requests %q: want %s, %s or %s", b.LogRequests, LogFailed, LogAll, LogNone)
	case b.EjectAfter < 0:
		return fmt.Errorf("eject after %d: want a number of failures, or 0 for never", b.EjectAfter)
	case !healthPath.MatchString(b.HealthPath):
		return fmt.Errorf("health path %q: want a plain path, such as /healthz", b.HealthPath)
	case b.MaxIdlePerUpstream < 1:
		return fmt.Errorf("max idle per upstream %d: want at least 1", b.MaxIdlePerUpstream)
	}
	for _, bound := range []struct {
		name  string
		value time.Duration
	}{
		{"health interval", b.HealthInterval},
		{"health timeout", b.HealthTimeout},
		{"connect timeout", b.ConnectTimeout},
		{"response timeout", b.ResponseTimeout},
	} {
		if bound.value < time.Millisecond {
			return fmt.Errorf("%s %v: want at least 1ms", bound.name, bound.value)
		}
	}
	return b.Upstreams.validate()
}

// maxWeight bounds weights, so that their sum stays exact enough.
const maxWeight = 1_000_000

// validate says what is wrong with the hosts and the routes to them.
func (m Upstreams) validate() error {
	if len(m.Peers) == 0 {
		return errors.New("no upstreams: a balancer needs at least one host")
	}
	known := map[string]bool{}
	for _, peer := range m.Peers {
		address, err := netip.ParseAddrPort(peer.Address)
		switch {
		case !nodeName.MatchString(peer.Node):
			return fmt.Errorf("upstream name %q: want letters, digits, '_', '.' and '-'", peer.Node)
		case known[peer.Node]:
			return fmt.Errorf("upstream %s is listed twice", peer.Node)
		case err != nil || address.Port() == 0 || address.Addr().Zone() != "":
			return fmt.Errorf("upstream %s: address %q: want IP:port", peer.Node, peer.Address)
		case !(peer.Weight >= 0 && peer.Weight <= maxWeight):
			return fmt.Errorf("upstream %s: weight %v: want a number from 0 to %d", peer.Node, peer.Weight, maxWeight)
		}
		known[peer.Node] = true
	}
	for i, route := range m.Routes {
		if err := route.Validate(); err != nil {
			return fmt.Errorf("route %d: %w", i+1, err)
		}
		for _, node := range route.To {
			if !known[node] {
				return fmt.Errorf("route %d: %s is none of the upstreams", i+1, node)
			}
		}
	}
	return nil
}

// StatusClientGone counts requests whose client left before the answer. It is
// never sent; the number is nginx's.
const StatusClientGone = 499

// BalancerStatus is what a balancer knows of its hosts and has done so far.
type BalancerStatus struct {
	Node   string `json:"node"`
	Engine Engine `json:"engine"`
	Layer  string `json:"layer"` // Layer7 or Layer4
	Policy string `json:"policy"`
	Sticky bool   `json:"sticky"`
	// Responses counts requests that have come to their end, by the status that
	// the client was sent: "200", "503"; "499" when the client left before. HAProxy
	// only has classes: "2xx", "5xx"; "other" when the client left before. Layer 7
	// only.
	Responses map[string]uint64 `json:"responses,omitempty"`
	// Connections counts those of clients; layer 4 only.
	Connections *ConnectionStatus `json:"connections,omitempty"`
	// Redispatches counts requests, at layer 4 connections, that went to another
	// host than the first one picked, because nothing could be sent to that.
	Redispatches uint64           `json:"redispatches"`
	Upstreams    []UpstreamStatus `json:"upstreams"`
}

// ConnectionStatus is the connections of clients at a balancer of layer 4.
type ConnectionStatus struct {
	Accepted uint64 `json:"accepted"`
	Active   int    `json:"active"`
	Failed   uint64 `json:"failed"`    // closed because no host could be reached
	BytesIn  uint64 `json:"bytes_in"`  // from clients to hosts; long transfers are counted in pieces
	BytesOut uint64 `json:"bytes_out"` // from hosts to clients
}

// UpstreamStatus is one host of a balancer.
type UpstreamStatus struct {
	Node    string `json:"node"`
	Address string `json:"address"`         // host:port
	Up      bool   `json:"up"`              // it gets requests
	Cause   string `json:"cause,omitempty"` // why it is down
	// Ejected: its health checks may be good, but it failed what it was asked for.
	Ejected bool `json:"ejected,omitempty"`
	// Draining: it is no member any more and finishes what it has.
	Draining  bool   `json:"draining,omitempty"`
	InFlight  int    `json:"in_flight"` // requests, at layer 4 connections
	Requests  uint64 `json:"requests"`  // sent to it, or tried to; at layer 4 connections
	WentUp    uint64 `json:"went_up"`   // times that it came back
	WentDown  uint64 `json:"went_down"` // ejections are among them
	Ejections uint64 `json:"ejections"`
}
