package conns_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stagebench/stagebench/internal/polltest"
	"github.com/stagebench/stagebench/sut/conns"
)

// serve starts a server with a limit of connections. It answers a request after reading
// the complete body. The server ends with the test.
func serve(t *testing.T, limit int) (address string, registry *prometheus.Registry) {
	t.Helper()
	registry = prometheus.NewRegistry()
	bound, err := conns.New(limit, registry)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if conns.Refused(r.Context()) {
			w.Header().Set("Connection", "close")
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
	})}
	bound.Attach(server)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(bound.Listen(listener))
	}()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := server.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		<-served
		if open := figure(t, registry, "stagebench_http_connections_open"); open != 0 {
			t.Errorf("%v open connections after the server ended, want 0", open)
		}
	})
	return listener.Addr().String(), registry
}

func figure(t *testing.T, registry *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue() + f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// eventually polls until a condition holds. It ends the test after 10 s.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	polltest.Eventually(t, 10*time.Second, time.Millisecond, what, holds)
}

// client is one connection.
type client struct {
	net.Conn
	in *bufio.Reader
}

func dial(t *testing.T, address string) client {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	return client{conn, bufio.NewReader(conn)}
}

func (c client) send(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

func (c client) status(t *testing.T) int {
	t.Helper()
	response, err := http.ReadResponse(c.in, nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	return response.StatusCode
}

const (
	get  = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	slow = "POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"
)

// When slow clients hold all connections, the next client gets a 503 at once. After a
// slow client has finished, a new client is served.
func TestFullServerRefusesAtOnce(t *testing.T) {
	address, registry := serve(t, 2)
	first, second := dial(t, address), dial(t, address)
	first.send(t, slow+"12345")
	second.send(t, slow+"12345")
	eventually(t, "both are served", func() bool { return figure(t, registry, "stagebench_http_connections_open") == 2 })
	third := dial(t, address)
	third.send(t, get)
	if status := third.status(t); status != http.StatusServiceUnavailable {
		t.Errorf("status %d over the limit, want 503", status)
	}
	if _, err := third.in.ReadByte(); err != io.EOF {
		t.Errorf("read from a refused connection: %v, want its end", err)
	}
	first.send(t, "67890")
	if status := first.status(t); status != http.StatusOK {
		t.Errorf("the slow client got %d", status)
	}
	fourth := dial(t, address)
	eventually(t, "a new client is served", func() bool {
		fourth.send(t, get)
		if fourth.status(t) == http.StatusOK {
			return true
		}
		fourth = dial(t, address)
		return false
	})
	if refused := figure(t, registry, "stagebench_http_connections_refused_total"); refused < 1 {
		t.Errorf("%v refused connections, want at least 1", refused)
	}
	second.send(t, "67890")
	if status := second.status(t); status != http.StatusOK {
		t.Errorf("the other slow client got %d", status)
	}
}

// Idle connections are closed for new ones, the longest idle first.
func TestIdleConnectionsAreClosed(t *testing.T) {
	address, registry := serve(t, 2)
	var all []client
	for i := range 3 {
		c := dial(t, address)
		all = append(all, c)
		c.send(t, get)
		if status := c.status(t); status != http.StatusOK {
			t.Fatalf("status %d", status)
		}
		// The client may have the response before the server marks the connection as idle.
		eventually(t, "the connection is idle", func() bool {
			return figure(t, registry, "stagebench_http_connections_idle") == float64(min(i+1, 2))
		})
	}
	if _, err := all[0].in.ReadByte(); err == nil {
		t.Error("the longest idle connection is still open")
	}
	all[1].send(t, get)
	if status := all[1].status(t); status != http.StatusOK {
		t.Errorf("the other connection got %d", status)
	}
	if closed, refused := figure(t, registry, "stagebench_http_connections_closed_idle_total"),
		figure(t, registry, "stagebench_http_connections_refused_total"); closed != 1 || refused != 0 {
		t.Errorf("%v closed, %v refused, want 1 and 0", closed, refused)
	}
}

// With many clients at once, each gets 200 or 503, and the count returns to 0.
func TestManyClients(t *testing.T) {
	address, registry := serve(t, 100) // and as many refused connections
	var all sync.WaitGroup
	var mu sync.Mutex
	statuses := map[int]int{}
	for range 200 {
		all.Go(func() {
			request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address+"/slow",
				strings.NewReader("0123456789"))
			if err != nil {
				t.Error(err)
				return
			}
			response, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(request)
			if err != nil {
				return // the server refused and closed the connection while the body was being sent
			}
			_ = response.Body.Close()
			mu.Lock()
			defer mu.Unlock()
			statuses[response.StatusCode]++
		})
	}
	all.Wait()
	if statuses[http.StatusOK] == 0 || statuses[http.StatusOK]+statuses[http.StatusServiceUnavailable] < 150 ||
		len(statuses) > 2 {
		t.Errorf("statuses %v of 200 requests", statuses)
	}
	eventually(t, "all connections have ended",
		func() bool { return figure(t, registry, "stagebench_http_connections_open") == 0 })
}

func TestBadBound(t *testing.T) {
	if _, err := conns.New(0, prometheus.NewRegistry()); err == nil {
		t.Error("a limit of 0 was accepted")
	}
}

// A connection is in use from the first byte of a request, before the header is complete.
func TestPartialRequestsAreNotLost(t *testing.T) {
	address, registry := serve(t, 2)
	first, second := dial(t, address), dial(t, address)
	for i, c := range []client{first, second} {
		c.send(t, get)
		if status := c.status(t); status != http.StatusOK {
			t.Fatalf("status %d", status)
		}
		eventually(t, "the connection is idle",
			func() bool { return figure(t, registry, "stagebench_http_connections_idle") == float64(i+1) })
	}
	first.send(t, get[:5])
	eventually(t, "the server has read it",
		func() bool { return figure(t, registry, "stagebench_http_connections_idle") == 1 })
	third, fourth := dial(t, address), dial(t, address)
	third.send(t, slow) // replaces the second, which is idle
	eventually(t, "the third is served",
		func() bool { return figure(t, registry, "stagebench_http_connections_closed_idle_total") == 1 })
	fourth.send(t, get)
	if status := fourth.status(t); status != http.StatusServiceUnavailable {
		t.Errorf("the fourth got %d, want 503", status)
	}
	first.send(t, get[5:])
	if status := first.status(t); status != http.StatusOK {
		t.Errorf("the partial request got %d after its end", status)
	}
	third.send(t, "0123456789")
	if status := third.status(t); status != http.StatusOK {
		t.Errorf("the slow client got %d", status)
	}
}

// Silent connections cannot use up the limit: they are closed for new ones.
func TestSilentConnectionsAreClosed(t *testing.T) {
	address, registry := serve(t, 3)
	for range 3 {
		dial(t, address)
	}
	eventually(t, "a request is answered", func() bool {
		c := dial(t, address)
		c.send(t, get)
		return c.status(t) == http.StatusOK
	})
	if closed := figure(t, registry, "stagebench_http_connections_closed_idle_total"); closed < 1 {
		t.Errorf("%v silent connections were closed, want at least 1", closed)
	}
}

// A client gets its 503 although hundreds of silent connections are over the limit: the
// oldest of them are closed.
func TestSilentRefusedConnectionsAreClosed(t *testing.T) {
	address, registry := serve(t, 1)
	holder := dial(t, address)
	holder.send(t, slow)
	var silent []client
	for range 600 {
		silent = append(silent, dial(t, address))
	}
	last := dial(t, address)
	last.send(t, get)
	if status := last.status(t); status != http.StatusServiceUnavailable {
		t.Errorf("status %d, want 503", status)
	}
	if refused := figure(t, registry, "stagebench_http_connections_refused_total"); refused != 601 {
		t.Errorf("%v connections were refused, want 601", refused)
	}
	if _, err := silent[0].in.ReadByte(); err == nil {
		t.Error("the oldest silent connection got an answer")
	}
	holder.send(t, "0123456789")
	if status := holder.status(t); status != http.StatusOK {
		t.Errorf("the slow client got %d", status)
	}
}

// A client over the limit gets its 503 while it is still sending a body.
func TestRefusedUploadsAreAnsweredAtOnce(t *testing.T) {
	address, _ := serve(t, 1)
	holder := dial(t, address)
	holder.send(t, slow)
	for range 300 { // more than may be refused at once: a response frees its connection
		c := dial(t, address)
		c.send(t, slow+"12345")
		if status := c.status(t); status != http.StatusServiceUnavailable {
			t.Fatalf("status %d, want 503", status)
		}
	}
}

// Shutdown works while Accept waits because of the limits. The request in flight is
// answered, and all other connections are closed.
func TestShutdownWhileFull(t *testing.T) {
	bound, err := conns.New(1, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	begun, proceed := make(chan struct{}), make(chan struct{})
	server := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(begun)
		<-proceed
	})}
	bound.Attach(server)
	served := make(chan error, 1)
	go func() { served <- server.Serve(bound.Listen(inner)) }()
	address := inner.Addr().String()
	holder := dial(t, address)
	holder.send(t, get)
	<-begun
	for range 300 { // more than may be refused at once, and none of them silent
		dial(t, address).send(t, get[:5])
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Shutdown(t.Context()) }()
	if err := <-served; err != http.ErrServerClosed {
		t.Errorf("serve ended with %v", err)
	}
	close(proceed)
	if status := holder.status(t); status != http.StatusOK {
		t.Errorf("the request in flight got %d", status)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the server did not end within 20 s")
	}
}
