//go:build !linux

package wan

import "syscall"

// bindWithoutPort does nothing: other systems choose the port when a socket is bound.
func bindWithoutPort(_, _ string, _ syscall.RawConn) error { return nil }
