package drivertest

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/driver"
)

// testAnswers sends ops to servers whose answers are no ordinary responses. Each op must be settled within its timeout,
// under a cause that says what the server does.
func testAnswers(t *testing.T, d driver.Driver) {
	runParallel(t, d,
		test{"101 instead of a response", func(t *testing.T, d driver.Driver) {
			answers(t, d, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", "HTTP 101")
		}},
		test{"responses of the HTTP/2 protocol", func(t *testing.T, d driver.Driver) {
			answers(t, d, "\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64",
				"the server speaks HTTP/2 but no HTTP/1.1, which is needed here")
		}},
		test{"another protocol", func(t *testing.T, d driver.Driver) {
			answers(t, d, "220 mail.example ESMTP\r\n", "the answer is not HTTP/1.1")
		}},
		test{"early hints without end", earlyHints},
		test{"redirects", redirects},
	)
}

// rawServer returns the address of a server that serves each connection by a function, and closes the connection when
// the test ends at the latest.
func rawServer(t *testing.T, serve func(conn net.Conn)) (endpoint string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			stop := make(chan struct{})
			t.Cleanup(func() {
				_ = conn.Close()
				<-stop
			})
			go func() {
				defer close(stop)
				serve(conn)
			}()
		}
	}()
	return "http://" + listener.Addr().String()
}

// answers sends ops to a server that gives the same answer to each request, and leaves the connection open unless the
// answer is that of HTTP/2.
func answers(t *testing.T, d driver.Driver, answer, cause string) {
	endpoint := rawServer(t, func(conn net.Conn) {
		requests := bufio.NewReader(conn)
		for {
			if _, err := http.ReadRequest(requests); err != nil {
				return
			}
			if _, err := io.WriteString(conn, answer); err != nil {
				return
			}
			if answer[0] == 0 {
				_ = conn.Close()
			}
		}
	})
	m := send(t.Context(), t, d, setup{
		endpoint: endpoint, connections: 4, rate: 20, duration: time.Second / 2, timeout: 5 * time.Second,
	})
	m.check(t, -1)
	if m.step.Causes[cause] != 10 {
		t.Errorf("ledger %+v, causes %v: want 10 ops with the cause %q", m.step.Ledger, m.step.Causes, cause)
	}
}

// earlyHints sends ops to a server that announces responses for ever.
func earlyHints(t *testing.T, d driver.Driver) {
	endpoint := rawServer(t, func(conn net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
			return
		}
		for {
			if _, err := io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\n\r\n"); err != nil {
				return
			}
		}
	})
	m := send(t.Context(), t, d, setup{
		endpoint: endpoint, connections: 2, rate: 4, duration: time.Second / 2, timeout: time.Second / 2,
	})
	m.check(t, -1)
	if m.step.Ledger.OK+m.step.Ledger.HTTPError > 0 {
		t.Errorf("ledger %+v: want no response", m.step.Ledger)
	}
}

// redirects counts the successes that only point to another place. An op that expects a redirect is a full success.
func redirects(t *testing.T, d driver.Driver) {
	server, served := countingServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/unchanged" {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		http.Redirect(w, r, "/elsewhere", http.StatusMovedPermanently)
	})
	get := func(class workloads.Class, path string, check *workloads.Check) workloads.Op {
		return workloads.Op{Class: class, Method: http.MethodGet, Path: path, Check: check}
	}
	m := send(t.Context(), t, d, setup{
		endpoint: server.URL, connections: 4, rate: 60, duration: time.Second / 2, workload: listed{
			get("moved", "/", nil), get("unchanged", "/unchanged", nil),
			get("wanted", "/", &workloads.Check{Status: []int{http.StatusMovedPermanently}}),
		},
	})
	m.check(t, served.Load())
	if l := m.step.Ledger; l.OK != 30 || l.Redirected != 10 || m.step.Statuses[http.StatusMovedPermanently] != 20 {
		t.Errorf("ledger %+v, statuses %v: want 30 successes, 10 of them redirected", l, m.step.Statuses)
	}
	for _, o := range m.outcomes {
		if o.Redirected != (o.Class == "moved") || o.Fate != results.OK {
			t.Errorf("op %d of class %s: %v, redirected %t", o.Index, o.Class, o.Fate, o.Redirected)
		}
	}
}
