// Package attach checks addresses that somebody gave us, before any load is
// sent to them.
//
// Load may only go to the loopback network, so that nobody attacks a stranger
// by a typing mistake; any other host must be named as permitted. A name is
// resolved, and all its addresses must be loopback for it to pass. Nothing is
// sent to the address here.
package attach

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
)

// Parse reads the URL of a target. allowed names hosts, as the URL writes them
// and without a port, that may be sent load although they are not loopback.
func Parse(ctx context.Context, target string, allowed []string) (*url.URL, error) {
	u, err := url.Parse(target)
	if err != nil {
		return nil, fmt.Errorf("target %q: %w\nwant a URL such as http://127.0.0.1:8080/", target, err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return nil, fmt.Errorf("target %q is not the URL of an HTTP service\nwant a URL such as http://127.0.0.1:8080/", target)
	}
	if u.User != nil {
		return nil, fmt.Errorf("target %q holds a user or a password, which would end up in reports\nleave it out of the URL", u.Redacted())
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
				"if this service is yours to load: --allow-host %s", target, address.IP, u.Hostname())
		}
	}
	return u, nil
}
