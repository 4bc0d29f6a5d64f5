package conns

import (
	"net"
	"testing"
)

// What has arrived and was not read yet is seen, and stays to be read.
func TestArriving(t *testing.T) {
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
	if arriving(server) {
		t.Error("something arrives on a silent connection")
	}
	if _, err := client.Write([]byte("ab")); err != nil {
		t.Fatal(err)
	}
	one := make([]byte, 1)
	if _, err := server.Read(one); err != nil { // waits until both are there: they were sent as one
		t.Fatal(err)
	}
	if !arriving(server) {
		t.Error("the second byte is not seen")
	}
	if _, err := server.Read(one); err != nil || one[0] != 'b' {
		t.Errorf("read %q, %v", one, err)
	}
	if arriving(server) {
		t.Error("something arrives after all was read")
	}
}
