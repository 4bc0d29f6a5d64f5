package conns

import (
	"net"
	"syscall"
)

// arriving reports whether something has arrived on a connection that its server
// has not read yet. It looks at the socket's receive queue
// without waiting.
func arriving(c net.Conn) bool {
	socket, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	// Control, and not Read: the server is waiting in a Read, which another one
	// would queue up behind.
	err = raw.Control(func(fd uintptr) {
		var one [1]byte
		n, _, _ = syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK) // -1 = nothing is there
	})
	return err == nil && n > 0
}
