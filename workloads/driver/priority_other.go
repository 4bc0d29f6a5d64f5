//go:build !linux

package driver

import "errors"

// RaisePriority gives the driver real-time priority where the system has it.
func RaisePriority() (lower func(), err error) {
	return nil, errors.New("real-time priority: only on Linux")
}
