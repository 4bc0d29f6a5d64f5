//go:build unix

// Package socket looks at the connections to a database.
package socket

import (
	"net"
	"syscall"
)

// Stale reports whether the database has closed an idle connection or sent data on it.
// The only message on an idle connection is that the database ends it. Stale inspects
// the receive queue of the socket and does not wait.
func Stale(conn net.Conn) bool {
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return true
	}
	open := false
	// raw.Read would wait if a goroutine of pgx is reading from the idle connection.
	// Control does not wait.
	err = raw.Control(func(fd uintptr) {
		var one [1]byte
		_, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK)
		open = err == syscall.EAGAIN || err == syscall.EWOULDBLOCK
	})
	return err != nil || !open
}
