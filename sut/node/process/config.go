package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
)

// Bounds of a configuration.
const (
	maxDrainSeconds = 3600
	maxProcs        = 4096
)

// decodeConfig reads one configuration and leaves the rest of the input alone.
// What it returns can be started with: knobs that are there have values that
// they allow, and names and numbers are in their ranges.
func decodeConfig(in io.Reader) (sut.NodeConfig, error) {
	decoder := json.NewDecoder(in)
	decoder.DisallowUnknownFields()
	var config sut.NodeConfig
	if err := decoder.Decode(&config); err != nil {
		return config, err
	}
	// A template is built by nodes that are part of no topology, and have no knobs.
	config.Knobs = ladder.Complete(config.Knobs)
	return config, checkConfig(config)
}

// checkConfig says what is wrong with a configuration.
func checkConfig(config sut.NodeConfig) error {
	switch {
	case config.Node == "":
		return errors.New("the node has no name")
	case net.ParseIP(config.Listen) == nil:
		return fmt.Errorf("listen %q: want an IP address", config.Listen)
	case config.Port < 0 || config.Port > 65535:
		return fmt.Errorf("port %d: want 0 to 65535", config.Port)
	case config.Procs < 0 || config.Procs > maxProcs:
		return fmt.Errorf("procs %d: want 1 to %d, or 0 for 1", config.Procs, maxProcs)
	case !(config.DrainSeconds >= 0 && config.DrainSeconds <= maxDrainSeconds):
		return fmt.Errorf("drain_seconds %v: want 0 to %d", config.DrainSeconds, maxDrainSeconds)
	case config.Role == sut.Web && (config.IDHost < 1 || config.IDHost > sut.MaxIDHost):
		return fmt.Errorf("id_host %d: want 1 to %d, and another number for each web node", config.IDHost, sut.MaxIDHost)
	case config.Service != "" && config.Service != sut.Reads && config.Service != sut.Uploads:
		return fmt.Errorf("service %q: want %s, %s, or none for everything", config.Service, sut.Reads, sut.Uploads)
	case config.Service != "" && config.Role != sut.Web:
		return fmt.Errorf("service %q: only web nodes have one, and this is a node of role %q", config.Service, config.Role)
	}
	if config.Replication != nil {
		if err := CheckReplication(*config.Replication); err != nil {
			return err
		}
	}
	if err := checkWiring(config.Wiring); err != nil {
		return err
	}
	return ladder.Validate(config.Knobs)
}

// checkWiring says what is wrong with a wiring, whatever node it is for.
func checkWiring(w sut.Wiring) error {
	if w.Epoch < 0 {
		return fmt.Errorf("epoch %d: want 0 or more", w.Epoch)
	}
	for role, peers := range w.Uses {
		if err := CheckPeers(peers...); err != nil {
			return fmt.Errorf("uses %s: %w", role, err)
		}
	}
	for _, route := range w.Routes {
		if err := route.Validate(); err != nil {
			return fmt.Errorf("route to %v: %w", route.To, err)
		}
	}
	return nil
}

// CheckReplication says what is wrong with what a database is told of its copies.
func CheckReplication(r sut.Replication) error {
	switch {
	case r.Epoch < 1:
		return fmt.Errorf("replication: epoch %d: want 1 or more", r.Epoch)
	case r.Primary != nil && r.Several:
		return errors.New("replication: one of several primaries follows nobody: it has origins")
	case r.Primary != nil:
		return CheckPeers(*r.Primary)
	}
	return CheckPeers(r.Origins...)
}

// CheckPeers says what is wrong with nodes that another one calls.
func CheckPeers(peers ...sut.Peer) error {
	known := map[string]bool{}
	for _, p := range peers {
		_, port, err := net.SplitHostPort(p.Address)
		if number, bad := strconv.ParseUint(port, 10, 16); err != nil || bad != nil || number == 0 {
			return fmt.Errorf("node %q: address %q: want host:port", p.Node, p.Address)
		}
		switch {
		case p.Node == "":
			return fmt.Errorf("the node at %s has no name", p.Address)
		case known[p.Node]:
			return fmt.Errorf("node %q is named twice", p.Node)
		case !(p.Weight >= 0):
			return fmt.Errorf("node %q: weight %v: want 0 or more", p.Node, p.Weight)
		}
		known[p.Node] = true
	}
	return nil
}
