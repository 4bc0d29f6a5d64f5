package balance

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// ask sends one command to the server's stats socket and returns the answer.
func (h *HAProxy) ask(ctx context.Context, command string) (string, error) {
	// The path of a socket may have 107 bytes, the directory's may be longer:
	// the way leads through its file descriptor.
	dir, err := os.Open(h.cfg.Dir)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	path := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketName)
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return "", fmt.Errorf("stats socket: %w", err)
	}
	defer conn.Close()
	// Unblocks the read when the caller gives up.
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if _, err := io.WriteString(conn, command+"\n"); err != nil {
		return "", fmt.Errorf("stats socket: %w", err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		return "", errors.Join(fmt.Errorf("stats socket: %w", err), context.Cause(ctx))
	}
	return string(answer), nil
}

// rows asks for the server's statistics: one row for each frontend, backend and
// host, by the names of the columns.
func (h *HAProxy) rows(ctx context.Context) ([]map[string]string, error) {
	text, err := h.ask(ctx, "show stat")
	if err != nil {
		return nil, err
	}
	return parseStat(text)
}

// parseStat reads the answer to "show stat". Source: HAProxy, Management Guide,
// section 9.1, Statistics and monitoring: CSV format.
func parseStat(text string) ([]map[string]string, error) {
	records, err := csv.NewReader(strings.NewReader(strings.TrimPrefix(text, "# "))).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("statistics: %w", err)
	}
	if len(records) == 0 {
		return nil, errors.New("statistics: the server said nothing")
	}
	var rows []map[string]string
	for _, record := range records[1:] {
		row := map[string]string{}
		for i, name := range records[0] {
			row[name] = record[i]
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// fill reads a status out of the server's statistics.
func (s *Status) fill(rows []map[string]string, places *places) error {
	var failed error
	number := func(row map[string]string, column string) uint64 {
		n, err := strconv.ParseUint(row[column], 10, 64)
		if err != nil && failed == nil {
			failed = fmt.Errorf("statistics: %s of %s: %w", column, row["svname"], err)
		}
		return n
	}
	hosts := map[string]*UpstreamStatus{}
	frontend := false
	for _, row := range rows {
		switch row["svname"] {
		case "FRONTEND":
			frontend = true
			if s.Layer == Layer4 {
				s.connections().Accepted, s.connections().Active = number(row, "stot"), int(number(row, "scur"))
				s.connections().BytesIn, s.connections().BytesOut = number(row, "bin"), number(row, "bout")
				continue
			}
			s.Responses = map[string]uint64{}
			for _, class := range []string{"1xx", "2xx", "3xx", "4xx", "5xx", "other"} {
				s.Responses[class] = number(row, "hrsp_"+class)
			}
		case "BACKEND":
			s.Redispatches += number(row, "wredis")
			if s.Layer == Layer4 {
				s.connections().Failed += number(row, "econ")
			}
		default:
			node, address, member := places.holder(row["svname"])
			if node == "" || !member && number(row, "scur") == 0 {
				continue
			}
			u := hosts[node]
			if u == nil {
				u = &UpstreamStatus{Node: node, Address: address, Draining: !member}
				hosts[node] = u
			}
			u.InFlight += int(number(row, "scur"))
			u.Requests += number(row, "stot")
			if strings.HasPrefix(row["status"], "MAINT") || strings.HasPrefix(row["status"], "DRAIN") {
				continue // in a backend that has no use for it
			}
			u.WentDown = max(u.WentDown, number(row, "chkdown"))
			if u.Up = u.Up || strings.HasPrefix(row["status"], "UP"); !u.Up {
				u.Ejected = row["check_status"] == "HANA" // its answers were analysed, not its health
				u.Cause = strings.TrimSpace("health check: " + row["check_status"] + " " + row["last_chk"])
			}
		}
	}
	for _, node := range places.order() {
		if u := hosts[node]; u != nil {
			// A host begins as up, so that the two counts differ by one at most.
			if u.WentUp = u.WentDown; !u.Up {
				u.WentUp = max(u.WentDown, 1) - 1
			} else {
				u.Cause, u.Ejected = "", false
			}
			s.Upstreams = append(s.Upstreams, *u)
		}
	}
	if failed == nil && !frontend {
		failed = errors.New("statistics: no frontend")
	}
	return failed
}

// connections is where a balancer of layer 4 counts.
func (s *Status) connections() *ConnectionStatus {
	if s.Connections == nil {
		s.Connections = &ConnectionStatus{}
	}
	return s.Connections
}

// spares is how many hosts a running server can get that it was not started
// with.
const spares = 16

// backend is the hosts of one route, with a place for every host that there is or
// may come.
type backend struct {
	name, cookie string
	route        sut.Route
	places       []place
}

// place is a server of a backend in the words of HAProxy.
type place struct {
	name, address string
	weight        int
	used          bool // by the backend's route
}

// places knows which host is in which place. Names of places never change: those
// of the first hosts are the hosts' own.
type places struct {
	cfg   Config
	scale float64 // of weights

	mu      sync.Mutex
	members sut.Membership
	place   map[string]string // node -> place, also of nodes that are no members any more
	peers   map[string]sut.Peer
	nodes   []string // in the order in which they came
	reserve []string // places that nobody had yet
}

func newPlaces(cfg Config) *places {
	p := &places{cfg: cfg, members: sut.Membership{Upstreams: cfg.Upstreams, Routes: cfg.Routes}}
	p.reset()
	return p
}

// reset gives the members of this moment places of their own name, as a server
// does that is started with them, and returns the backends.
func (p *places) reset() []backend {
	p.mu.Lock()
	defer p.mu.Unlock()
	most := 1.0
	p.place, p.peers, p.nodes, p.reserve = map[string]string{}, map[string]sut.Peer{}, nil, nil
	for _, peer := range p.members.Upstreams {
		p.place[peer.Node], p.peers[peer.Node] = peer.Node, peer
		p.nodes = append(p.nodes, peer.Node)
		most = max(most, peer.Weight)
	}
	// The server's weights are whole numbers up to 256.
	p.scale = min(10, 256/most)
	for i := range spares {
		p.reserve = append(p.reserve, fmt.Sprintf("spare-%d", i+1))
	}
	return p.backends()
}

// backends lists the backends with all places; the caller holds the mutex.
func (p *places) backends() []backend {
	var all []backend
	for i, route := range p.members.Routes {
		b := backend{name: fmt.Sprintf("route-%d", i+1), cookie: fmt.Sprintf("%s-%d", CookieName, i+1), route: route}
		if b.conditions() == "" {
			b.name, b.cookie = "web", CookieName
		}
		all = append(all, b)
		if b.name == "web" {
			break // nothing comes so far
		}
	}
	if len(all) == 0 || all[len(all)-1].name != "web" {
		all = append(all, backend{name: "web", cookie: CookieName})
	}
	for i := range all {
		b := &all[i]
		for _, node := range p.nodes {
			member := slices.ContainsFunc(p.members.Upstreams, func(peer sut.Peer) bool { return peer.Node == node })
			b.places = append(b.places, place{
				name: p.place[node], address: p.peers[node].Address, weight: p.weight(p.peers[node]),
				used: member && (b.route.To == nil || slices.Contains(b.route.To, node)),
			})
		}
		for _, name := range p.reserve {
			b.places = append(b.places, place{name: name, address: "127.0.0.1:9", weight: 1})
		}
	}
	return all
}

// weight is a host's weight as the server takes it.
func (p *places) weight(peer sut.Peer) int {
	if p.cfg.Policy != PolicyWeightedRoundRobin {
		return 1
	}
	weight := peer.Weight
	setDefault(&weight, 1)
	return min(max(int(math.Round(weight*p.scale)), 1), 256)
}

// holder says which host is in a place, and whether it is a member; "" for none.
func (p *places) holder(name string) (node, address string, member bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, node := range p.nodes {
		if p.place[node] == name {
			return node, p.peers[node].Address, slices.ContainsFunc(p.members.Upstreams, func(peer sut.Peer) bool { return peer.Node == node })
		}
	}
	return "", "", false
}

// order is the hosts in the order in which they came.
func (p *places) order() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.nodes)
}

// change makes a membership that of this moment and returns the commands that
// make it the server's, and the places of the hosts that left.
func (p *places) change(m sut.Membership) (commands, left []string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.possible(m); err != nil {
		return nil, nil, err
	}
	before := map[string]place{}
	for _, b := range p.backends() {
		for _, was := range b.places {
			before[b.name+"/"+was.name] = was
		}
	}
	p.members = m
	for _, peer := range m.Upstreams {
		if _, known := p.place[peer.Node]; !known {
			p.place[peer.Node], p.reserve = p.reserve[0], p.reserve[1:]
			p.nodes = append(p.nodes, peer.Node)
		}
		p.peers[peer.Node] = peer
	}
	for _, b := range p.backends() {
		for _, now := range b.places {
			server := b.name + "/" + now.name
			commands = append(commands, p.commands(server, before[server], now)...)
		}
	}
	for _, node := range p.nodes {
		if !slices.ContainsFunc(m.Upstreams, func(peer sut.Peer) bool { return peer.Node == node }) {
			left = append(left, p.place[node])
		}
	}
	return commands, left, nil
}

// possible says what of a membership a running server cannot become.
func (p *places) possible(m sut.Membership) error {
	next := p.cfg
	next.Upstreams, next.Routes = m.Upstreams, m.Routes
	if err := next.validate(); err != nil {
		return err
	}
	conditions := func(routes []sut.Route) (all []string) {
		for _, r := range routes {
			all = append(all, backend{route: r}.conditions())
		}
		return all
	}
	if !slices.Equal(conditions(m.Routes), conditions(p.members.Routes)) {
		return errors.New("routes: HAProxy takes other conditions only when it is started")
	}
	fresh := 0
	for _, peer := range m.Upstreams {
		if _, known := p.place[peer.Node]; !known {
			fresh++
		}
	}
	if fresh > len(p.reserve) {
		return fmt.Errorf("%d new hosts: HAProxy has room for %d until it is started again", fresh, len(p.reserve))
	}
	return nil
}

// commands make one server of a backend what it is to be. Source: HAProxy,
// Management Guide, section 9.3, Unix socket commands.
func (p *places) commands(server string, was, now place) (all []string) {
	if now.used && was.address != now.address {
		host, port, _ := net.SplitHostPort(now.address) // validated
		all = append(all, fmt.Sprintf("set server %s addr %s port %s", server, host, port))
	}
	if now.used && was.weight != now.weight {
		all = append(all, fmt.Sprintf("set server %s weight %d", server, now.weight))
	}
	switch {
	case now.used && !was.used:
		// It begins as down, and the first good check brings it up.
		all = append(all, "set server "+server+" state ready", "set server "+server+" health down")
	case !now.used && was.used && p.cfg.Layer == Layer4:
		all = append(all, "set server "+server+" state drain") // maintenance would close its connections
	case !now.used && was.used:
		all = append(all, "set server "+server+" state maint") // users whose cookie names it move, too
	}
	return all
}

// drainPoll is how often the server is asked whether hosts that left are done.
const drainPoll = 5 * time.Millisecond

// SetMembership makes other hosts the members while the server runs, as
// sut.Membership says. Routes keep their conditions.
func (h *HAProxy) SetMembership(ctx context.Context, m sut.Membership) error {
	commands, left, err := h.places.change(m)
	if err != nil {
		return fmt.Errorf("haproxy: %w: %w", errMembership, err)
	}
	for _, command := range commands {
		if _, err := h.ask(ctx, command); err != nil {
			return fmt.Errorf("haproxy: %s: %w", command, err)
		}
	}
	for {
		rows, err := h.rows(ctx)
		if err != nil {
			return fmt.Errorf("haproxy: %w", err)
		}
		if !slices.ContainsFunc(rows, func(row map[string]string) bool {
			return slices.Contains(left, row["svname"]) && row["scur"] != "0"
		}) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("haproxy: hosts that left have not finished: %w", ctx.Err())
		case <-time.After(drainPoll):
		}
	}
}
