package porttest_test

import (
	"net"
	"testing"

	"github.com/stagebench/stagebench/internal/porttest"
)

func TestFree(t *testing.T) {
	first, second := porttest.Free(t), porttest.Free(t)
	if first.Addr() == second.Addr() {
		t.Errorf("two servers got the same IP address %v", first.Addr())
	}
	// A server binds the address, goes down and binds it again.
	for range 2 {
		listener, err := net.Listen("tcp4", first.String())
		if err != nil {
			t.Fatal(err)
		}
		client, err := net.Dial("tcp4", first.String())
		if err != nil {
			t.Fatal(err)
		}
		if from := client.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); from == first.Addr() {
			t.Errorf("an outgoing connection uses %v", from)
		}
		_, _ = client.Close(), listener.Close()
	}
}
