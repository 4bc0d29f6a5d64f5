package conns

import (
	"net"
	"testing"
)

// hasUnreadData detects unread bytes and does not consume them.
func TestHasUnreadData(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if hasUnreadData(server) {
		t.Error("unread data on a silent connection")
	}
	if _, err := client.Write([]byte("ab")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err := server.Read(b); err != nil { // both bytes arrive in one segment
		t.Fatal(err)
	}
	if !hasUnreadData(server) {
		t.Error("the second byte was not detected")
	}
	if _, err := server.Read(b); err != nil || b[0] != 'b' {
		t.Errorf("read %q, %v", b, err)
	}
	if hasUnreadData(server) {
		t.Error("unread data after everything was read")
	}
}
