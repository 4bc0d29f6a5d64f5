package resp_test

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/resp"
)

// serving starts a server and returns its address.
func serving(t *testing.T, c resp.Config) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.Listener = listener
	s, err := resp.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve() }()
	t.Cleanup(func() {
		if err := s.Shutdown(t.Context()); err != nil {
			t.Log(err)
		}
		<-ended
	})
	return listener.Addr().String()
}

// talk sends lines and returns the first line of each reply.
func talk(t *testing.T, address string, lines ...string) (replies []string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(testTimeout)); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	for _, line := range lines {
		if _, err := fmt.Fprintf(conn, "%s\r\n", line); err != nil {
			t.Fatal(err)
		}
		reply, err := in.ReadString('\n')
		if err != nil {
			return append(replies, err.Error())
		}
		replies = append(replies, strings.TrimSpace(reply))
	}
	return replies
}

// A client that has not shown the secret gets no value and changes nothing.
func TestSecret(t *testing.T) {
	t.Parallel()
	secret := sut.NewSecret()
	address := serving(t, resp.Config{Secret: secret})
	got := talk(t, address, "SET a 1", "GET a", "AUTH wrong", "GET a", "AUTH "+string(secret), "SET a 2", "GET a")
	want := []string{
		"-NOAUTH Authentication required.", "-NOAUTH Authentication required.",
		"-WRONGPASS invalid username-password pair or user is disabled.", "-NOAUTH Authentication required.", "+OK", "+OK",
	}
	for i, reply := range want {
		if got[i] != reply {
			t.Errorf("reply %d is %q, want %q", i, got[i], reply)
		}
	}
	if got := talk(t, address, "AUTH other "+string(secret)); !strings.HasPrefix(got[0], "-WRONGPASS") {
		t.Errorf("AUTH as another user: %q", got[0])
	}
}
