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
	"github.com/stagebench/stagebench/targets/proc"
)

const (
	// dirPrefix begins the names of private directories; the owner follows.
	dirPrefix = "stagebench-"
	// logsDir and templateWork are in the private directory beside the nodes'
	// directories, so no node has such a name.
	logsDir = "logs"
	// maxHosts is how many addresses a system's own /24 has for hosts; the
	// ones above are kept for the building of templates.
	maxHosts = 250
)

// validate refuses what would fail half-way.
func validate(opts Options) error {
	if opts.Binary == "" {
		return errors.New("no binary to run nodes with")
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

// validateTopology checks what the ladder guarantees and a hand-made topology
// may not: known hosts, known nodes in start order, names fit for files.
func validateTopology(t sut.Topology) error {
	if len(t.Nodes) == 0 || len(t.Hosts) > maxHosts {
		return fmt.Errorf("a topology of %d hosts and %d nodes: want 1 node or more and %d hosts or less", len(t.Hosts), len(t.Nodes), maxHosts)
	}
	hosts, nodes := map[string]bool{}, map[string]bool{}
	for _, h := range t.Hosts {
		if !plainName(h.Name) || hosts[h.Name] {
			return fmt.Errorf("host %q: its name is no plain word or not the only one", h.Name)
		}
		hosts[h.Name] = true
	}
	for _, n := range t.Nodes {
		switch {
		case !plainName(n.Name) || nodes[n.Name] || n.Name == templateWork || n.Name == logsDir:
			return fmt.Errorf("node %q: its name is no plain word or not the only one", n.Name)
		case !hosts[n.Host]:
			return fmt.Errorf("node %s: there is no host %q", n.Name, n.Host)
		}
		for _, used := range n.Uses {
			if !nodes[used] {
				return fmt.Errorf("node %s uses %q, which does not come before it", n.Name, used)
			}
		}
		nodes[n.Name] = true
	}
	if len(t.Frontends) == 0 {
		return errors.New("no frontend: clients have nothing to talk to")
	}
	for _, name := range append(slices.Clone(t.Frontends), t.Counters...) {
		if !nodes[name] {
			return fmt.Errorf("the frontend or counter %q is not a node", name)
		}
	}
	return nil
}

func plainName(name string) bool {
	return name != "" && name[0] != '.' && name[0] != '-' && strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == ""
}

// checkWalkable finds a work directory that a dropped user could not reach: a
// native server that refuses root runs as an ordinary user, and would say only
// that its files do not exist.
func checkWalkable(opts Options) error {
	if os.Geteuid() != 0 || !hasNative(opts.Topology) {
		return nil
	}
	dir, err := filepath.Abs(opts.WorkDir)
	if err != nil {
		return fmt.Errorf("find the work directory: %w", err)
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err == nil && info.Mode().Perm()&0o001 == 0 {
			return fmt.Errorf("the work directory %s: ordinary users cannot pass through %s, and native servers run as one\n"+
				"choose another with TMPDIR, or allow it with: chmod o+x %s", opts.WorkDir, dir, dir)
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

// sweepDirs removes the private directories of harnesses that were killed.
// What cannot be removed is somebody else's.
func sweepDirs(parent string) {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return
	}
	for _, entry := range entries {
		name, ours := strings.CutPrefix(entry.Name(), dirPrefix)
		if owner, ok := proc.ParseOwner(name); ours && ok && entry.IsDir() && owner.Gone("/") {
			_ = os.RemoveAll(filepath.Join(parent, entry.Name()))
		}
	}
}

// addressesFor gives each of n hosts a loopback address of its own, from a /24
// that the seed chooses, so that two systems at once do not share one; and one
// more at the end for the building of a template. The seed is the name of the
// private directory, which no other system has. Where this machine binds only
// 127.0.0.1, that is everybody's address and ports tell the hosts apart.
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
