package conns

import (
	"net"
	"syscall"
)

// hasUnreadData reports whether bytes have arrived on a connection that the server has
// not read yet. It peeks at the receive queue of the socket and does not block.
func hasUnreadData(c net.Conn) bool {
	socket, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	// The server is blocked in a Read. RawConn.Read would wait for it; Control does not.
	err = raw.Control(func(fd uintptr) {
		var b [1]byte
		n, _, _ = syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK) // -1 = no data
	})
	return err == nil && n > 0
}
