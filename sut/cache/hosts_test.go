package cache_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/resp/resptest"
)

// peer returns the peer of cache host i, counted from 0.
func peer(i int, address string) sut.Peer {
	return sut.Peer{Node: fmt.Sprint("cache-", i+1), Address: address}
}

// startThree starts three cache hosts.
func startThree(t *testing.T) ([]*resptest.Server, []sut.Peer) {
	t.Helper()
	var servers []*resptest.Server
	var peers []sut.Peer
	for i := range 3 {
		servers = append(servers, resptest.Serve(t, resptest.Config{}))
		peers = append(peers, peer(i, servers[i].Addr().String()))
	}
	return servers, peers
}

// listener accepts connections for a fake host and closes all of them at the end.
type listener struct {
	net.Listener
	accepted atomic.Int64 // number of connections so far
	serving  sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn
}

// listen starts a listener. It calls serve for each connection on its own goroutine,
// and closes the connection when serve returns.
func listen(t *testing.T, address string, serve func(net.Conn)) *listener {
	t.Helper()
	l := &listener{}
	// An outgoing connection of another test may use the port for a moment.
	eventually(t, "the port to be free", func() (free bool) {
		var err error
		l.Listener, err = net.Listen("tcp", address)
		if err != nil && !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatal(err)
		}
		return err == nil
	})
	l.serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			l.mu.Lock()
			l.conns = append(l.conns, conn)
			l.mu.Unlock()
			l.accepted.Add(1)
			l.serving.Go(func() {
				serve(conn)
				_ = conn.Close()
			})
		}
	})
	t.Cleanup(l.stop)
	return l
}

func (l *listener) address() string { return l.Addr().String() }

// closeConns closes all connections. The listener accepts new ones.
func (l *listener) closeConns() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, conn := range l.conns {
		_ = conn.Close()
	}
	l.conns = nil
}

func (l *listener) stop() {
	_ = l.Close()
	l.closeConns()
	l.serving.Wait()
}

// relay forwards connections to a host until it is stopped.
func relay(t *testing.T, address, host string) *listener {
	t.Helper()
	return listen(t, address, func(conn net.Conn) {
		back, err := net.Dial("tcp", host)
		if err != nil {
			return
		}
		var replies sync.WaitGroup
		replies.Go(func() {
			_, _ = io.Copy(conn, back)
			_ = conn.Close()
		})
		_, _ = io.Copy(back, conn)
		_ = back.Close()
		replies.Wait()
	})
}

// hangingHost accepts connections and never answers.
func hangingHost(t *testing.T) *listener {
	t.Helper()
	return listen(t, "127.0.0.1:0", func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) })
}

// crashingHost receives requests for photos and closes the connection instead of
// answering. received counts these requests.
func crashingHost(t *testing.T) (address string, received *atomic.Int64) {
	t.Helper()
	received = new(atomic.Int64)
	l := listen(t, "127.0.0.1:0", func(conn net.Conn) {
		text := make([]byte, 4096)
		for {
			n, err := conn.Read(text)
			if err != nil {
				return
			}
			if strings.Contains(string(text[:n]), "photo:") {
				received.Add(1)
				return
			}
			// The handshake of the client library.
			if _, err := io.WriteString(conn, "-ERR unknown command\r\n"); err != nil {
				return
			}
		}
	})
	return l.address(), received
}

// commandLog records the commands that a fake host has received.
type commandLog struct {
	mu       sync.Mutex
	commands []string
}

func (l *commandLog) add(command string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.commands = append(l.commands, command)
}

func (l *commandLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.commands, "; ")
}

// serveFake starts a host that answers FETCH and APPLY with the results of a function.
func serveFake(t *testing.T, answer func(command, key string) any) (*resptest.Server, *commandLog) {
	t.Helper()
	log := &commandLog{}
	command := func(name string) resptest.Command {
		return resptest.Command{MinArgs: 1, MaxArgs: 2, Run: func(args [][]byte) any {
			log.add(name + " " + string(args[0]))
			return answer(name, string(args[0]))
		}}
	}
	commands := map[string]resptest.Command{
		cache.FetchCommand: command("fetch"), cache.ApplyCommand: command("apply"),
	}
	return resptest.ServeProxy(t, resptest.Config{}, func(*resptest.Server) map[string]resptest.Command {
		return commands
	}), log
}

// keyOwnedBy returns a photo's key that belongs to one of the hosts.
func keyOwnedBy(owner string, peers []sut.Peer) (key string, id photos.ID) {
	var names []string
	for _, p := range peers {
		names = append(names, p.Node)
	}
	ring := cache.NewRing(names)
	for id := photos.ID(1); ; id++ {
		if key := cache.PhotoKey(id).String(); ring.Owner(key) == owner {
			return key, id
		}
	}
}
