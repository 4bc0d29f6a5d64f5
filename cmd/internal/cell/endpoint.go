package cell

import (
	"errors"
	"net"
	"net/netip"
	"net/url"
)

// Endpoint takes apart where a system can be reached: the base URL that requests
// name, and the addresses of all its frontends.
func Endpoint(urls []string) (endpoint *url.URL, addresses []string, err error) {
	for _, text := range urls {
		u, err := url.Parse(text)
		if err != nil {
			return nil, nil, err
		}
		if endpoint == nil {
			endpoint = u
		}
		addresses = append(addresses, u.Host)
	}
	if endpoint == nil {
		return nil, nil, errors.New("the system has no endpoint")
	}
	return endpoint, addresses, nil
}

// sourceCount is how many addresses the clients of a loopback target come from.
const sourceCount = 64

// Sources returns the addresses that clients come from: for a target on the
// loopback network 127.100+x.y.1 and up, so that what looks at addresses sees
// many; none, which leaves the choice to the system, for any other target, and
// where no such address can be bound.
func Sources(endpoint *url.URL, seed uint64) []netip.Addr {
	host, err := netip.ParseAddr(endpoint.Hostname())
	if err != nil || !host.Is4() || !host.IsLoopback() {
		return nil
	}
	var sources []netip.Addr
	for i := range sourceCount {
		sources = append(sources, netip.AddrFrom4([4]byte{127, byte(100 + seed%100), byte(seed / 100 % 250), byte(1 + i)}))
	}
	probe, err := net.Listen("tcp", netip.AddrPortFrom(sources[0], 0).String())
	if err != nil {
		return nil
	}
	_ = probe.Close() // nothing was sent over it
	return sources
}
