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

// Upper bounds of values in a configuration.
const (
	maxDrainSeconds = 3600
	maxProcs        = 4096
)

// decodeConfig reads one valid configuration from in, and nothing that follows it.
func decodeConfig(in io.Reader) (sut.NodeConfig, error) {
	decoder := json.NewDecoder(in)
	decoder.DisallowUnknownFields()
	var config sut.NodeConfig
	if err := decoder.Decode(&config); err != nil {
		return config, err
	}
	// Nodes that build a template belong to no topology and have no knobs.
	config.Knobs = ladder.Complete(config.Knobs)
	return config, checkConfig(config)
}

// checkConfig returns the first error in a configuration.
func checkConfig(config sut.NodeConfig) error {
	switch {
	case config.Node == "":
		return errors.New("the node has no name")
	case config.Secret == "":
		return errors.New("the node has no secret, so every process on this machine could change it")
	case net.ParseIP(config.Listen) == nil:
		return fmt.Errorf("listen %q: want an IP address", config.Listen)
	case config.Port < 0 || config.Port > 65535:
		return fmt.Errorf("port %d: want 0 to 65535", config.Port)
	case config.MemoryBytes < 0:
		return fmt.Errorf("memory_bytes %d: want 0 or more", config.MemoryBytes)
	case config.Procs < 0 || config.Procs > maxProcs:
		return fmt.Errorf("procs %d: want 1 to %d, or 0 for 1", config.Procs, maxProcs)
	case !(config.DrainSeconds >= 0 && config.DrainSeconds <= maxDrainSeconds):
		return fmt.Errorf("drain_seconds %v: want 0 to %d", config.DrainSeconds, maxDrainSeconds)
	case config.Role == sut.Web && (config.IDHost < 1 || config.IDHost > sut.MaxIDHost):
		return fmt.Errorf("id_host %d: want 1 to %d, and another number for each web node", config.IDHost, sut.MaxIDHost)
	case config.Service != "" && config.Service != sut.Reads && config.Service != sut.Uploads:
		return fmt.Errorf("service %q: want %s, %s, or none for all services", config.Service, sut.Reads, sut.Uploads)
	case config.Service != "" && config.Role != sut.Web:
		return fmt.Errorf("service %q: only web nodes have a service, and this node has role %q", config.Service, config.Role)
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

// checkWiring returns the first error in a wiring. The rules are the same for every role.
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

// CheckReplication returns the first error in the replication role of a database.
func CheckReplication(r sut.Replication) error {
	switch {
	case r.Epoch < 1:
		return fmt.Errorf("replication: epoch %d: want 1 or more", r.Epoch)
	case r.Primary != nil && r.MultiPrimary:
		return errors.New("replication: a multi-primary node has origins, not a primary to follow")
	case r.Primary != nil:
		return CheckPeers(*r.Primary)
	}
	return CheckPeers(r.Origins...)
}

// CheckPeers returns the first error in a list of peers. Names must be unique.
func CheckPeers(peers ...sut.Peer) error {
	names := map[string]bool{}
	for _, p := range peers {
		_, port, err := net.SplitHostPort(p.Address)
		if number, bad := strconv.ParseUint(port, 10, 16); err != nil || bad != nil || number == 0 {
			return fmt.Errorf("node %q: address %q: want host:port", p.Node, p.Address)
		}
		switch {
		case p.Node == "":
			return fmt.Errorf("the node at %s has no name", p.Address)
		case names[p.Node]:
			return fmt.Errorf("node %q is listed twice", p.Node)
		case !(p.Weight >= 0):
			return fmt.Errorf("node %q: weight %v: want 0 or more", p.Node, p.Weight)
		}
		names[p.Node] = true
	}
	return nil
}
