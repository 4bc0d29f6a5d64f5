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

// A client that has not shown the secret can make the server hold only a small command. The limits and the texts are
// those of Redis.
func TestStrangersSendSmallCommands(t *testing.T) {
	t.Parallel()
	secret := sut.NewSecret()
	address := serving(t, resp.Config{Secret: secret})
	for text, want := range map[string]string{
		"*11":                                    "-ERR Protocol error: unauthenticated multibulk length",
		"*2\r\n$3\r\nGET\r\n$16385":              "-ERR Protocol error: unauthenticated bulk length",
		"*2\r\n$4\r\nECHO\r\n$2\r\nab":           "-NOAUTH Authentication required.",
		"*2\r\n$4\r\nAUTH\r\n$3\r\nbad":          "-WRONGPASS invalid username-password pair or user is disabled.",
		fmt.Sprintf("*1\r\n$%d\r\n", 1<<30) + "": "-ERR Protocol error: unauthenticated bulk length",
	} {
		if got := talk(t, address, text); got[0] != want {
			t.Errorf("%q: %q, want %q", text, got[0], want)
		}
	}
	large := "*2\r\n$4\r\nECHO\r\n$20000\r\n" + strings.Repeat("x", 20000)
	if got := talk(t, address, "AUTH "+string(secret), large); got[1] != "$20000" {
		t.Errorf("with the secret: %q", got)
	}
}

// The memory of tiny arguments counts as well: it is many times their size.
func TestTinyArgumentsAreCounted(t *testing.T) {
	t.Parallel()
	address := serving(t, resp.Config{})
	tiny := "*1048576\r\n" + strings.Repeat("$0\r\n\r\n", 1_000_000) // 6 MB, and 48 MB for the arguments
	refused := 0
	for range 3 {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
		if _, err := fmt.Fprint(conn, tiny); err != nil {
			refused++ // the server has closed the connection
			continue
		}
		_ = conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		if line, _ := bufio.NewReader(conn).ReadString('\n'); strings.Contains(line, "larger than 64 MiB") {
			refused++
		}
	}
	if refused != 2 {
		t.Errorf("%d of 3 commands of 48 MB were refused, want 2: 64 MiB are allowed", refused)
	}
}

// Above the maximum number of connections a client gets an error. When another one leaves, it is served.
func TestConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	address := serving(t, resp.Config{})
	var open []net.Conn
	defer func() {
		for _, conn := range open {
			_ = conn.Close()
		}
	}()
	for range 2048 {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Skipf("this machine allows too few connections: %v", err)
		}
		open = append(open, conn)
	}
	if got := talk(t, address, "PING"); got[0] != "-ERR max number of clients reached" {
		t.Errorf("client 2049 got %q", got[0])
	}
	_ = open[0].Close()
	eventually(t, "a client is served after another one has left", func() bool {
		return talk(t, address, "PING")[0] == "+PONG"
	})
}
