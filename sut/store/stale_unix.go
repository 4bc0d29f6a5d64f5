//go:build unix

package store

import (
	"net"
	"syscall"
)

// stale reports whether the other side has closed an idle connection, or has
// said something unasked: a database says nothing on an idle connection but
// that it ends it. It looks at the socket's receive queue without waiting.
func stale(conn net.Conn) bool {
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return true
	}
	open := false
	// Control, and not Read: pgx may have left a goroutine behind that reads
	// from the idle connection, and Read would wait for it.
	err = raw.Control(func(fd uintptr) {
		var one [1]byte
		_, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK)
		open = err == syscall.EAGAIN || err == syscall.EWOULDBLOCK
	})
	return err != nil || !open
}
