package balance_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/balance"
	"github.com/stagebench/stagebench/sut/balance/balancetest"
)

// childVariable is an environment variable. When it is set, the test program runs a
// balancer as a separate process, so that the balancer's CPU time can be measured
// separately from that of clients and hosts. Its value is the layer, a space, and the
// upstreams as JSON.
const childVariable = "STAGEBENCH_BALANCE_CHILD"

func TestMain(m *testing.M) {
	if description := os.Getenv(childVariable); description != "" {
		if err := runChild(description); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// runChild serves until its standard input is closed.
func runChild(description string) error {
	layer, membership, _ := strings.Cut(description, " ")
	var m sut.Upstreams
	if err := json.Unmarshal([]byte(membership), &m); err != nil {
		return err
	}
	debug.SetGCPercent(400) // the same value as in a node
	b, err := balance.New(balance.Config{Balancing: balancetest.BenchConfig(layer, m.Peers)})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	served := make(chan error, 1)
	go func() { served <- b.Serve(listener) }()
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return errors.Join(b.Shutdown(ctx), <-served)
}

// BenchmarkBalancer compares the two layers on one core with direct access to a host.
// BenchmarkHAProxy in sut/haproxy does the same. balancetest.Bench documents the figures.
//
//	go test -run '^$' -bench . -benchtime 100000x ./sut/balance ./sut/haproxy
func BenchmarkBalancer(b *testing.B) {
	upstreams := balancetest.BenchHosts(b)
	b.Run("direct", func(b *testing.B) { balancetest.Bench(b, upstreams[0].Address, 0) })
	for _, layer := range []string{sut.Layer7, sut.Layer4} {
		b.Run(layer, func(b *testing.B) {
			address, pid := startChild(b, layer, upstreams)
			balancetest.Bench(b, address, pid)
		})
	}
}

// startChild runs the embedded balancer in a separate process that uses one core.
func startChild(b *testing.B, layer string, upstreams []sut.Peer) (address string, pid int) {
	membership, err := json.Marshal(sut.Upstreams{Peers: upstreams})
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1", childVariable+"="+layer+" "+string(membership))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait() // the child prints its error on standard error
	})
	if _, err := fmt.Fscan(stdout, &address); err != nil {
		b.Fatalf("the balancer printed no address: %v", err)
	}
	return address, cmd.Process.Pid
}
