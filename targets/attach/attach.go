// Package attach checks the URL of a target that the user gave, before any load is sent, and runs the user's own
// commands that start and stop it.
//
// By default load may only go to the loopback network, so that a typing mistake cannot
// attack a stranger's service. Any other host must be allowed explicitly. Parse resolves
// a host name, and all its addresses must be loopback. It sends nothing to the target.
//
// Start runs an up command, and the function that it returns the down command. A process of its own runs Serve, which
// starts the commands, and ends them and all their descendants when its standard input closes. So nothing is left
// behind and the down command runs, also if the process that called Start is killed.
package attach

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Parse parses and checks the URL of a target. allowed lists hosts that may get load
// although they are not loopback. They are written as in the URL, without a port.
func Parse(ctx context.Context, target string, allowed []string) (*url.URL, error) {
	u, err := url.Parse(target)
	if err != nil {
		return nil, fmt.Errorf("target %q: %w\nwant a URL such as http://127.0.0.1:8080/", target, err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return nil, fmt.Errorf("target %q is not the URL of an HTTP service\n"+
			"want a URL such as http://127.0.0.1:8080/", target)
	}
	if port := u.Port(); port != "" {
		if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			return nil, fmt.Errorf("target %q has port %s\nwant 1 to 65535", u.Redacted(), port)
		}
	}
	if u.User != nil {
		return nil, fmt.Errorf("target %q contains a user or a password, which would appear in reports\n"+
			"leave it out of the URL", u.Redacted())
	}
	if slices.ContainsFunc(allowed, func(host string) bool { return strings.EqualFold(host, u.Hostname()) }) {
		return u, nil
	}
	addresses, err := net.DefaultResolver.LookupIPAddr(ctx, u.Hostname())
	if err != nil {
		return nil, fmt.Errorf("target %q: %w\nwant a URL such as http://127.0.0.1:8080/", target, err)
	}
	for _, address := range addresses {
		if !address.IP.IsLoopback() {
			return nil, fmt.Errorf("target %q is at %s, which is not on the loopback network\n"+
				"if you may load this service, add --allow-host %s", target, address.IP, u.Hostname())
		}
	}
	return u, nil
}

// Address returns host and port of a URL. A port that is left out is that of the scheme.
func Address(u *url.URL) string {
	port := cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// SameService reports whether two URLs have the same scheme and address.
func SameService(a, b *url.URL) bool { return a.Scheme == b.Scheme && Address(a) == Address(b) }

// OnThisMachine reports whether a target may be on this machine: its host has an address of the loopback network, of
// this machine, or of a network that this machine is part of, such as that of its containers.
func OnThisMachine(ctx context.Context, u *url.URL) bool {
	addresses, err := net.DefaultResolver.LookupIPAddr(ctx, u.Hostname())
	if err != nil {
		return true // nothing is known
	}
	networks, _ := net.InterfaceAddrs() // without them, only the loopback network is known
	return slices.ContainsFunc(addresses, func(a net.IPAddr) bool {
		return a.IP.IsLoopback() || slices.ContainsFunc(networks, func(n net.Addr) bool {
			network, ok := n.(*net.IPNet)
			return ok && network.Contains(a.IP)
		})
	})
}
