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

	"github.com/stagebench/stagebench/sut/conns"
)

// serve serves with a bound until the test ends. Requests for /slow read their
// body to its end; all others are answered at once.
func serve(t *testing.T, most int) (address string, registry *prometheus.Registry) {
	t.Helper()
	registry = prometheus.NewRegistry()
	bound, err := conns.New(most, registry)
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
			t.Errorf("%v connections are counted as open after the end", open)
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

func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 10 s: %s", what)
		}
	}
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

// Slow clients hold the connections; who comes then is told so at once, and when
// one of them is done there is room again.
func TestFullIsSaidAtOnce(t *testing.T) {
	address, registry := serve(t, 2)
	first, second := dial(t, address), dial(t, address)
	first.send(t, slow+"12345")
	second.send(t, slow+"12345")
	await(t, "both are served", func() bool { return figure(t, registry, "stagebench_http_connections_open") == 2 })
	third := dial(t, address)
	third.send(t, get)
	if status := third.status(t); status != http.StatusServiceUnavailable {
		t.Errorf("status %d past the bound, want 503", status)
	}
	if _, err := third.in.ReadByte(); err != io.EOF {
		t.Errorf("the refused connection goes on: %v", err)
	}
	first.send(t, "67890")
	if status := first.status(t); status != http.StatusOK {
		t.Errorf("the slow client got %d", status)
	}
	fourth := dial(t, address)
	await(t, "there is room again", func() bool {
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

// Who only keeps a connection in reserve makes room, the longest idle first.
func TestIdleConnectionsMakeRoom(t *testing.T) {
	address, registry := serve(t, 2)
	var all []client
	for i := range 3 {
		c := dial(t, address)
		all = append(all, c)
		c.send(t, get)
		if status := c.status(t); status != http.StatusOK {
			t.Fatalf("status %d", status)
		}
		// The server says that a connection is idle after its client has the answer.
		await(t, "it is idle", func() bool {
			return figure(t, registry, "stagebench_http_connections_idle") == float64(min(i+1, 2))
		})
	}
	if _, err := all[0].in.ReadByte(); err == nil {
		t.Error("the longest idle connection is still open")
	}
	all[1].send(t, get)
	if status := all[1].status(t); status != http.StatusOK {
		t.Errorf("the other one got %d", status)
	}
	if closed, refused := figure(t, registry, "stagebench_http_connections_closed_idle_total"),
		figure(t, registry, "stagebench_http_connections_refused_total"); closed != 1 || refused != 0 {
		t.Errorf("%v closed, %v refused, want 1 and 0", closed, refused)
	}
}

// However many come at once, no more than the bound are served, everybody gets an
// answer, and the count comes back to nothing.
func TestManyAtOnce(t *testing.T) {
	address, registry := serve(t, 10)
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
				return // the answer came before the body was sent, and closed the connection
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
	await(t, "all have left", func() bool { return figure(t, registry, "stagebench_http_connections_open") == 0 })
}

func TestBadBound(t *testing.T) {
	if _, err := conns.New(0, prometheus.NewRegistry()); err == nil {
		t.Error("a bound of 0 was taken")
	}
}

// A connection that a request has begun to arrive on is in use, long before the
// server has the whole header.
func TestBegunRequestsAreNotLost(t *testing.T) {
	address, registry := serve(t, 2)
	first, second := dial(t, address), dial(t, address)
	for i, c := range []client{first, second} {
		c.send(t, get)
		if status := c.status(t); status != http.StatusOK {
			t.Fatalf("status %d", status)
		}
		await(t, "it is idle", func() bool { return figure(t, registry, "stagebench_http_connections_idle") == float64(i+1) })
	}
	first.send(t, get[:5])
	await(t, "the server has read it", func() bool { return figure(t, registry, "stagebench_http_connections_idle") == 1 })
	third, fourth := dial(t, address), dial(t, address)
	third.send(t, slow) // takes the place of the second, which is idle
	await(t, "the third is served",
		func() bool { return figure(t, registry, "stagebench_http_connections_closed_idle_total") == 1 })
	fourth.send(t, get)
	if status := fourth.status(t); status != http.StatusServiceUnavailable {
		t.Errorf("the fourth got %d, want 503", status)
	}
	first.send(t, get[5:])
	if status := first.status(t); status != http.StatusOK {
		t.Errorf("the request that had begun got %d", status)
	}
	third.send(t, "0123456789")
	if status := third.status(t); status != http.StatusOK {
		t.Errorf("the slow one got %d", status)
	}
}

// Whoever opens connections and says nothing does not keep others out.
func TestSilentConnectionsMakeRoom(t *testing.T) {
	address, registry := serve(t, 3)
	for range 3 {
		dial(t, address)
	}
	await(t, "a request is answered", func() bool {
		c := dial(t, address)
		c.send(t, get)
		return c.status(t) == http.StatusOK
	})
	if closed := figure(t, registry, "stagebench_http_connections_closed_idle_total"); closed < 1 {
		t.Errorf("%v connections were closed for it", closed)
	}
}

// Hundreds of silent connections past the bound leave a place for who asks: the
// oldest of them are closed for it.
func TestRefusedConnectionsCannotFillTheHost(t *testing.T) {
	address, registry := serve(t, 1)
	holder := dial(t, address)
	holder.send(t, slow)
	var silent []client
	for range 600 {
		silent = append(silent, dial(t, address))
	}
	asking := dial(t, address)
	asking.send(t, get)
	if status := asking.status(t); status != http.StatusServiceUnavailable {
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

// A client that is sending a long body hears at once that it is one too many.
func TestRefusedUploadsAreAnsweredAtOnce(t *testing.T) {
	address, _ := serve(t, 1)
	holder := dial(t, address)
	holder.send(t, slow)
	for range 100 { // more than there are places: each gives its own back
		c := dial(t, address)
		c.send(t, slow+"12345")
		if status := c.status(t); status != http.StatusServiceUnavailable {
			t.Fatalf("status %d, want 503", status)
		}
	}
}

// A server that is told to end does so, also while its bound holds it up: the
// request in flight is answered, and the rest is closed.
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
	for range 300 { // more than there are places, and none of them silent
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
		t.Fatal("no end within 20 s")
	}
}
