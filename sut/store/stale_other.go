//go:build !unix

package store

import "net"

// stale cannot inspect a socket on this system. The next operation detects a stale
// connection.
func stale(net.Conn) bool { return false }
