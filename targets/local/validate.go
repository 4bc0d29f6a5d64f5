package local

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
)

const (
	// dirPrefix is the prefix of the names of private directories; the owner follows.
	dirPrefix = "stagebench-"
	// logsDir is a name in the private directory, like templateWork and the nodes'
	// directories. So no node may have the name logsDir or templateWork.
	logsDir = "logs"
	// maxHosts is the number of host addresses in the /24 of a system. The address after
	// them is for building templates.
	maxHosts = 250
)

// validate returns an error for options with which Up would fail later.
func validate(opts Options) error {
	if opts.Binary == "" {
		return errors.New("Options.Binary is empty: want the executable that runs nodes")
	}
	if err := validateTopology(opts.Topology); err != nil {
		return err
	}
	if needsTemplate(opts.Topology) {
		if opts.TemplateDir == "" || opts.TemplateVersion == nil || opts.Data.Size == "" {
			return errors.New("a database needs a data set, a template directory and a template version")
		}
		if _, err := templateEngine(opts.Topology); err != nil {
			return err
		}
	}
	return checkWalkable(opts)
}

// validateTopology checks that all hosts and nodes exist, that nodes are in start order and
// that names can be file names. The ladder guarantees this; other topologies may not.
func validateTopology(t sut.Topology) error {
	if len(t.Nodes) == 0 || len(t.Hosts) > maxHosts {
		return fmt.Errorf("a topology of %d hosts and %d nodes: want at least 1 node and at most %d hosts",
			len(t.Hosts), len(t.Nodes), maxHosts)
	}
	hosts, nodes := map[string]bool{}, map[string]bool{}
	for _, h := range t.Hosts {
		if !plainName(h.Name) || hosts[h.Name] {
			return fmt.Errorf("host %q: %s", h.Name, nameRule)
		}
		hosts[h.Name] = true
	}
	for _, n := range t.Nodes {
		switch {
		case !plainName(n.Name) || nodes[n.Name] || n.Name == templateWork || n.Name == logsDir:
			return fmt.Errorf("node %q: %s\nthe names %s and %s are reserved", n.Name, nameRule, logsDir, templateWork)
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

// plainName reports whether a name is safe as a file name.
func plainName(name string) bool {
	const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
	return name != "" && name[0] != '.' && name[0] != '-' && strings.Trim(name, allowed) == ""
}

// checkWalkable returns an error if an ordinary user cannot enter the work directory. A
// native server that refuses to run as root runs as an ordinary user. Its own error would
// only say that its files do not exist.
func checkWalkable(opts Options) error {
	if os.Geteuid() != 0 || !hasNative(opts.Topology) {
		return nil
	}
	dir, err := filepath.Abs(opts.workDir)
	if err != nil {
		return fmt.Errorf("find the work directory: %w", err)
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err == nil && info.Mode().Perm()&0o001 == 0 {
			return fmt.Errorf("the work directory %s: native servers run as an ordinary user, who cannot pass through %s\n"+
				"choose another with TMPDIR, or allow it with: chmod o+x %s", opts.workDir, dir, dir)
		}
	}
	return nil
}

func hasNative(t sut.Topology) bool {
	for _, n := range t.Nodes {
		if ladder.Native(n.Engine) {
			return true
		}
	}
	return false
}

// addressesFor returns a loopback address for each of n hosts, and one more at the end for
// building a template. They are in a /24 that depends on the seed, so that two systems
// rarely share addresses. The seed is the name of the private directory, which is unique.
// If this machine binds only 127.0.0.1, all hosts get 127.0.0.1 and differ in their ports.
func addressesFor(seed string, n int) []string {
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
