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

// Balancing is the configuration of a balancer, the same for every engine. The zero
// value of a field means its default, where one is given.
type Balancing struct {
	// Node is the balancer's own name.
	Node string
	Upstreams
	// Layer is Layer7 (default), which balances requests, or Layer4, which
	// balances connections and sees addresses only.
	Layer string
	// Policy selects how a host is picked; default PolicyRoundRobin.
	Policy string
	// Sticky keeps a user on the host that served the first request. The cookie
	// StickyCookie names that host. It does not apply to requests for SharedPaths.
	Sticky bool
	// HealthInterval is the time between two health checks of a host; default 1 s.
	// One failed check marks the host down. One passed check marks it up.
	HealthInterval time.Duration
	// HealthTimeout bounds a check; default the longer of HealthInterval and 1 s.
	HealthTimeout time.Duration
	// EjectAfter is the number of consecutive failed requests or connections after
	// which a host is ejected, even if its checks pass; 0 = never.
	EjectAfter int
	// LogRequests selects which requests are logged, with their ids: LogFailed
	// (default), LogAll or LogNone.
	LogRequests string
}

// These settings are the same for every balancer.
const (
	// HealthPath is the path that a check requests. A status of 200 to 399 passes.
	HealthPath = "/healthz"
	// ConnectTimeout bounds connecting to a host.
	ConnectTimeout = 3 * time.Second
	// ResponseTimeout bounds the time from the end of the request to the header of
	// the host's response.
	ResponseTimeout = time.Minute
	// MaxIdlePerUpstream bounds the idle connections that are kept to one host. When
	// it is lower than the number of concurrent requests, the requests above it each
	// need a new connection.
	MaxIdlePerUpstream = 1024
)

// Upstreams is the hosts of a balancer and the routes to them.
type Upstreams struct {
	Peers  []Peer  // at least one; Weight counts under PolicyWeightedRoundRobin
	Routes []Route // empty = every host gets every request; routes need Layer7
	// Unsticky ends what Balancing.Sticky began: users do not stay on a host any more.
	Unsticky bool
}

// Policies of a Balancing. HAProxy has no PolicyLeastResponseTime.
const (
	PolicyRoundRobin         = "round_robin"          // each host in turn
	PolicyWeightedRoundRobin = "weighted_round_robin" // each host in turn, in proportion to its weight
	PolicyIPHash             = "ip_hash"              // the same host for the same client address
	PolicyLeastConn          = "least_conn"           // the host with the fewest requests in flight
	PolicyLeastResponseTime  = "least_response_time"  // the host with the shortest expected response time
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

// Complete returns a copy in which fields that are not set have their defaults.
func (b Balancing) Complete() Balancing {
	b.Layer = cmp.Or(b.Layer, Layer7)
	b.Policy = cmp.Or(b.Policy, PolicyRoundRobin)
	b.LogRequests = cmp.Or(b.LogRequests, LogFailed)
	b.HealthInterval = cmp.Or(b.HealthInterval, time.Second)
	b.HealthTimeout = cmp.Or(b.HealthTimeout, max(b.HealthInterval, time.Second))
	return b
}

// nodeName is the form of a name that needs no quotes or escapes where it is used: in
// configuration files, cookies and metric labels.
var nodeName = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)

// Validate returns the first error in a Balancing that Complete returned.
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
		return errors.New("sticky needs layer l7: a layer 4 balancer does not see cookies")
	case b.Layer == Layer4 && len(b.Routes) > 0:
		return errors.New("routes need layer l7: a layer 4 balancer does not see requests")
	case !slices.Contains([]string{LogFailed, LogAll, LogNone}, b.LogRequests):
		return fmt.Errorf("log requests %q: want %s, %s or %s", b.LogRequests, LogFailed, LogAll, LogNone)
	case b.EjectAfter < 0:
		return fmt.Errorf("eject after %d: want a number of failures, or 0 to never eject", b.EjectAfter)
	case min(b.HealthInterval, b.HealthTimeout) < time.Millisecond:
		return fmt.Errorf("health interval %v, health timeout %v: want at least 1ms", b.HealthInterval, b.HealthTimeout)
	}
	return b.Upstreams.validate()
}

// maxWeight bounds a weight. The sum of much larger weights would lose precision.
const maxWeight = 1_000_000

// validate returns the first error in the hosts and the routes to them.
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
				return fmt.Errorf("route %d: %s is not one of the upstreams", i+1, node)
			}
		}
	}
	return nil
}

// StatusClientDisconnected is the status under which a request is counted when its client
// disconnected before the response. It is never sent. nginx uses the same number.
const StatusClientDisconnected = 499

// BalancerStatus is the state of a balancer and its counters since it started.
type BalancerStatus struct {
	Node   string `json:"node"`
	Engine Engine `json:"engine"`
	Layer  string `json:"layer"` // Layer7 or Layer4
	Policy string `json:"policy"`
	Sticky bool   `json:"sticky"`
	// Responses counts finished requests by the status that was sent to the client,
	// such as "200" or "503". "499" is a client that disconnected early. HAProxy
	// counts by class instead, "2xx" or "5xx", and such a client as "other".
	// Layer 7 only.
	Responses map[string]uint64 `json:"responses,omitempty"`
	// Connections counts the connections of clients; layer 4 only.
	Connections *ConnectionStatus `json:"connections,omitempty"`
	// Redispatches counts requests (at layer 4, connections) that went to a second
	// host because nothing could be sent to the host picked first.
	Redispatches uint64           `json:"redispatches"`
	Upstreams    []UpstreamStatus `json:"upstreams"`
}

// ConnectionStatus counts the connections of clients at a layer 4 balancer or another relay.
type ConnectionStatus struct {
	Accepted uint64 `json:"accepted"`
	Active   int    `json:"active"`
	Failed   uint64 `json:"failed"`    // closed because no host could be reached
	BytesIn  uint64 `json:"bytes_in"`  // from clients to hosts; also grows during a long transfer
	BytesOut uint64 `json:"bytes_out"` // from hosts to clients
}

// UpstreamStatus is one host of a balancer.
type UpstreamStatus struct {
	Node    string `json:"node"`
	Address string `json:"address"`         // host:port
	Up      bool   `json:"up"`              // the balancer sends it requests
	Cause   string `json:"cause,omitempty"` // why it is down
	// Ejected means that requests to the host failed. Its health checks may pass.
	Ejected bool `json:"ejected,omitempty"`
	// Draining means that the host was removed and still finishes its requests.
	Draining  bool   `json:"draining,omitempty"`
	InFlight  int    `json:"in_flight"` // requests; at layer 4, connections
	Requests  uint64 `json:"requests"`  // attempts to send one; at layer 4, connections
	WentUp    uint64 `json:"went_up"`   // changes from down to up
	WentDown  uint64 `json:"went_down"` // changes from up to down, ejections included
	Ejections uint64 `json:"ejections"`
}

// Route sends the requests that match all its conditions to some web nodes. An
// empty condition matches every request. The first route that matches a request
// decides. When none of its nodes is up, the request fails, even if a later route
// matches it.
type Route struct {
	Method string   `json:"method,omitempty"`
	Path   string   `json:"path,omitempty"`   // an exact path, or a prefix followed by '*'
	Header string   `json:"header,omitempty"` // NAME for any value, or NAME:VALUE
	Cookie string   `json:"cookie,omitempty"` // NAME for any value, or NAME:VALUE
	To     []string `json:"to"`               // names of nodes
}

// These forms need no quotes in the configuration file of any engine.
var (
	routeMethod = regexp.MustCompile(`^[A-Z]+$`)
	routePath   = regexp.MustCompile(`^/[A-Za-z0-9_./~-]*\*?$`)
	routePair   = regexp.MustCompile(`^[A-Za-z0-9_-]+(:[A-Za-z0-9_./~-]+)?$`)
	routeNode   = regexp.MustCompile(`^[a-z0-9_-]+$`)
)

// Validate returns the first error in a route.
func (r Route) Validate() error {
	for _, condition := range []struct {
		name, value, want string
		form              *regexp.Regexp
	}{
		{"method", r.Method, "a method such as POST", routeMethod},
		{"path", r.Path, "a path such as /api/photos, or a prefix such as /img/*", routePath},
		{"header", r.Header, "NAME or NAME:VALUE", routePair},
		{"cookie", r.Cookie, "NAME or NAME:VALUE", routePair},
	} {
		if condition.value != "" && !condition.form.MatchString(condition.value) {
			return fmt.Errorf("%s %q: want %s", condition.name, condition.value, condition.want)
		}
	}
	if len(r.To) == 0 {
		return errors.New("no hosts after ->: want at least one, such as web-1")
	}
	for _, node := range r.To {
		if !routeNode.MatchString(node) {
			return fmt.Errorf("host %q: want a name such as web-1", node)
		}
	}
	return nil
}

// ParseRoutes reads routes from text. A route is conditions, an arrow and hosts. A
// semicolon separates two routes.
//
//	path=/img/* -> web-3; method=POST header=X-Batch:1 -> web-1 web-2
func ParseRoutes(text string) ([]Route, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	var routes []Route
	for _, line := range strings.Split(text, ";") {
		conditions, hosts, found := strings.Cut(line, "->")
		if !found {
			return nil, fmt.Errorf("route %q: want CONDITION... -> HOST..., for example path=/img/* -> web-3",
				strings.TrimSpace(line))
		}
		route := Route{To: strings.Fields(hosts)}
		for _, condition := range strings.Fields(conditions) {
			if err := route.add(condition); err != nil {
				return nil, err
			}
		}
		if err := route.Validate(); err != nil {
			return nil, fmt.Errorf("route %q: %w", strings.TrimSpace(line), err)
		}
		routes = append(routes, route)
	}
	return routes, nil
}

func (r *Route) add(condition string) error {
	name, value, found := strings.Cut(condition, "=")
	fields := map[string]*string{"method": &r.Method, "path": &r.Path, "header": &r.Header, "cookie": &r.Cookie}
	field, known := fields[name]
	switch {
	case !known || !found || value == "":
		return fmt.Errorf("condition %q: want method=, path=, header= or cookie= with a value", condition)
	case *field != "":
		return fmt.Errorf("condition %q: the route already has a %s", condition, name)
	}
	*field = value
	return nil
}
