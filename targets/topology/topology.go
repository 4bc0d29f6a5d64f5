// Package topology checks a declared topology before it is started, and assigns addresses to
// its hosts. It starts nothing and changes nothing. All functions may be called concurrently.
package topology

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"slices"
	"strings"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
)

// MaxHosts is the number of host addresses in the /24 of a system. The address after
// them is for building templates.
const MaxHosts = 250

// Check checks that all hosts and nodes exist, that nodes are in start order and that names
// can be file names. No node may have a reserved name. The ladder guarantees this; other
// topologies may not.
func Check(t sut.Topology, reserved ...string) error {
	if len(t.Nodes) == 0 || len(t.Hosts) > MaxHosts {
		return fmt.Errorf("a topology of %d hosts and %d nodes: want at least 1 node and at most %d hosts",
			len(t.Hosts), len(t.Nodes), MaxHosts)
	}
	hosts, nodes := map[string]bool{}, map[string]bool{}
	for _, h := range t.Hosts {
		if !PlainName(h.Name) || hosts[h.Name] {
			return fmt.Errorf("host %q: %s", h.Name, nameRule)
		}
		hosts[h.Name] = true
	}
	for _, n := range t.Nodes {
		switch {
		case !PlainName(n.Name) || nodes[n.Name] || slices.Contains(reserved, n.Name):
			return fmt.Errorf("node %q: %s\nreserved are %s", n.Name, nameRule, strings.Join(reserved, ", "))
		case !hosts[n.Host]:
			return fmt.Errorf("node %s: there is no host %q", n.Name, n.Host)
		}
		for _, used := range n.Uses {
			if !nodes[used] {
				return fmt.Errorf("node %s uses %q, which is not listed before it", n.Name, used)
			}
		}
		nodes[n.Name] = true
	}
	if len(t.Frontends) == 0 {
		return errors.New("the topology has no frontend that clients can send requests to")
	}
	for _, name := range slices.Concat(t.Frontends, t.Fallbacks, t.Counters) {
		if !nodes[name] {
			return fmt.Errorf("the frontend, fallback or counter %q is not a node", name)
		}
	}
	return nil
}

// nameRule is the rule for the names of hosts and nodes, for errors.
const nameRule = "the name must be unique, use only letters, digits, '-', '_' and '.', and not start with '-' or '.'"

// PlainName reports whether a name is safe as a file name.
func PlainName(name string) bool {
	const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
	return name != "" && name[0] != '.' && name[0] != '-' && strings.Trim(name, allowed) == ""
}

// HasNative reports whether a node of the topology runs a server that must be installed.
func HasNative(t sut.Topology) bool {
	for _, n := range t.Nodes {
		if ladder.Native(n.Engine) {
			return true
		}
	}
	return false
}

// Addresses returns a loopback address for each of n hosts, and one more at the end for
// building a template. They are in a /24 that depends on the seed, so that two systems
// rarely share addresses. The seed is the name of the private directory, which is unique.
// If this machine binds only 127.0.0.1, all hosts get 127.0.0.1 and differ in their ports.
func Addresses(seed string, n int) []string {
	sum := fnv.New64a()
	_, _ = sum.Write([]byte(seed)) // never fails
	hash := sum.Sum64()
	addresses := make([]string, n+1)
	for i := range addresses {
		addresses[i] = fmt.Sprintf("127.%d.%d.%d", 1+hash%254, hash>>8%256, i+1)
	}
	if probe, err := net.Listen("tcp", net.JoinHostPort(addresses[0], "0")); err == nil {
		probe.Close()
		return addresses
	}
	for i := range addresses {
		addresses[i] = "127.0.0.1"
	}
	return addresses
}
