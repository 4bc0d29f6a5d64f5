//go:build !unix

package socket

import "net"

// Stale cannot inspect a socket on this system. The next operation detects a stale
// connection.
func Stale(net.Conn) bool { return false }
