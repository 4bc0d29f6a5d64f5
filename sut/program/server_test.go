package program

import (
	"net"
	"strings"
	"testing"
)

// A server on loopback is accepted. Else the error says what is wrong.
func TestCheckLoopback(t *testing.T) {
	t.Parallel()
	install, loopback := Install{Path: "/bin/proxyd", Version: "2.6.12"}, net.IPv4(127, 0, 0, 1)
	for want, s := range map[string]Server{
		"":                             NewServer(install, loopback, 80),
		"no installation given\n":      NewServer(Install{}, loopback, 80),
		"listen address 0.0.0.0: want": NewServer(install, net.IPv4zero, 80),
		"listen address <nil>: want":   NewServer(install, nil, 80),
		"port 0: want 1 to 65535":      NewServer(install, loopback, 0),
		"port 65536: want 1 to 65535":  NewServer(install, loopback, 65536),
	} {
		err := s.CheckLoopback()
		if want == "" && err != nil || want != "" && (err == nil || !strings.HasPrefix(err.Error(), want)) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}
