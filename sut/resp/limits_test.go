package resp_test

import (
	"bufio"
	"fmt"
	"io"
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

// The unfinished commands of all clients together have a limit, and the others are served.
func TestUnfinishedCommandsAreBounded(t *testing.T) {
	t.Parallel()
	const size = 10 << 20
	begin := fmt.Sprintf("*3\r\n$3\r\nSET\r\n$1\r\na\r\n$%d\r\n", size) + strings.Repeat("x", size-1)
	checkRefused(t, 12, 6, begin, "x\r\n") // 64 MiB are allowed
}

// The memory of tiny arguments counts as well: it is many times their size.
func TestTinyArgumentsAreCounted(t *testing.T) {
	t.Parallel()
	const sent, all = 1_000_000, 1 << 20 // 6 MB, and 48 MB for the arguments
	tiny := func(n int) string { return strings.Repeat("$0\r\n\r\n", n) }
	checkRefused(t, 3, 2, fmt.Sprintf("*%d\r\n", all)+tiny(sent), tiny(all-sent))
}

// checkRefused sends as many commands without their ends to a server, and waits until it has refused some of them. Then
// it sends the ends of the others: none of these is refused.
func checkRefused(t *testing.T, commands, refused int, begin, end string) {
	t.Helper()
	address := serving(t, resp.Config{})
	type answer struct {
		conn net.Conn
		line string
	}
	answers, open := make(chan answer, commands), map[net.Conn]bool{}
	for range commands {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(testTimeout))
		open[conn] = true
		_, _ = io.WriteString(conn, begin) // fails if the server has refused the command already
		go func() {
			line, _ := bufio.NewReader(conn).ReadString('\n')
			answers <- answer{conn, line}
		}()
	}
	for range refused { // a reset can overtake the text of a refusal
		if a := <-answers; a.line != "" && !strings.Contains(a.line, "larger than 64 MiB") {
			t.Errorf("the answer to a part of a command is %q", a.line)
		} else {
			delete(open, a.conn)
		}
	}
	for conn := range open {
		_, _ = io.WriteString(conn, end) // the answer says whether it worked
	}
	for range open {
		if a := <-answers; a.line == "" || strings.Contains(a.line, "larger than") {
			t.Errorf("more than %d of %d commands were refused: %q", refused, commands, a.line)
		}
	}
	if got := talk(t, address, "PING"); got[0] != "+PONG" {
		t.Errorf("another client got %q", got[0])
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
