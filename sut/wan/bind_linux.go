package wan

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// bindWithoutPort makes the kernel choose the port of a bound socket when it connects. It then may use a port for
// several origins. Otherwise the connections that are open or in TIME_WAIT use up the ports of the client's address.
func bindWithoutPort(_, _ string, socket syscall.RawConn) error {
	return socket.Control(func(fd uintptr) {
		// Without the option, connections work until the ports are used up.
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	})
}
