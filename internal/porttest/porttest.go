// Package porttest finds addresses for the servers of tests. It is for tests and conformance
// kits only.
package porttest

import (
	"crypto/rand"
	"net"
	"net/netip"
	"testing"
)

// Free returns an address on which nothing listens. The IP address is a random one of
// 127.0.0.0/8, which Linux accepts whole. No other test and no outgoing connection uses it, so
// nobody takes the port before the server does or while the server is down.
func Free(t testing.TB) netip.AddrPort {
	t.Helper()
	ip := [4]byte{127}
	_, _ = rand.Read(ip[1:]) // never fails
	ip[1] = ip[1]&0x7f | 1   // neither 127.0.0.1 nor the broadcast address
	listener, err := net.Listen("tcp4", net.JoinHostPort(netip.AddrFrom4(ip).String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).AddrPort()
}
