package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/balance"
	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/haproxy"
	"github.com/stagebench/stagebench/sut/memcached"
	"github.com/stagebench/stagebench/sut/postgres"
	"github.com/stagebench/stagebench/sut/redis"
)

// Installed says whether the server of a native engine is there, and if not,
// how to get it. An embedded engine always is.
func Installed(engine sut.Engine) error {
	var err error
	switch engine {
	case sut.Postgres:
		_, err = postgres.Find()
	case sut.HAProxy:
		_, err = haproxy.Find()
	case sut.Redis:
		_, err = redis.Find()
	case sut.Memcached:
		_, err = memcached.Find()
	}
	return err
}

// server is a native server that a package describes and that is started here.
type server interface {
	Prepare(ctx context.Context) error // files and ownership
	Command() *exec.Cmd                // not started
	Ready(ctx context.Context) error   // one probe, nil when it serves
	StopSignal() os.Signal             // asks it to end in order
	Version(ctx context.Context) (string, error)
	Address() string
}

// How long a native server may take to serve, and how often it is asked.
const (
	nativeStart = 30 * time.Second
	nativePoll  = 5 * time.Millisecond
)

func (b birth) startPostgres(ctx context.Context) (part, error) {
	install, err := postgres.Find()
	if err != nil {
		return part{}, err
	}
	port, err := b.freePort()
	if err != nil {
		return part{}, err
	}
	s := postgres.New(postgres.Config{
		Install: install, Name: b.config.Node, Dir: b.config.Dir, Listen: net.ParseIP(b.config.Listen), Port: port,
		Procs: b.config.Procs, Log: b.log, Replication: b.postgresReplication(),
	})
	// A postmaster that dies by SIGKILL would leave its backends behind; SIGQUIT
	// is its immediate shutdown.
	p, err := b.startNative(ctx, s, syscall.SIGQUIT)
	if err != nil {
		return part{}, err
	}
	died := p.died
	p = p.beside(s.Watch).beside(func(ctx context.Context) { died <- awaitLost(ctx, s) })
	return b.withAdmin(p, b.databaseAdmin(native{s, b, install}, postgres.ErrConflict))
}

// lostPoll is how often a replica is asked whether it can follow at all.
const lostPoll = time.Second

// awaitLost returns why a replica cannot follow its primary any more, when that is
// so: the node ends then, and fetches the whole anew when it is started again.
func awaitLost(ctx context.Context, s *postgres.Server) error {
	tick := time.NewTicker(lostPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			if reason := s.Lost(); reason != "" {
				return errors.New(reason)
			}
		}
	}
}

// native is the native database as what is replicated.
type native struct {
	*postgres.Server
	birth   birth
	install postgres.Install
}

// LostChanges implements replicated. It starts a server on the copy that was kept,
// for as long as it is asked.
func (n native) LostChanges(ctx context.Context) (lost sut.Lost, err error) {
	kept, err := n.KeptCopy(ctx)
	if err != nil || kept == nil {
		return sut.Lost{Node: n.birth.config.Node, Changes: []sut.LostChange{}}, err
	}
	b := n.birth
	b.config.Port, b.config.Replication = 0, nil
	port, err := b.freePort()
	if err != nil {
		return lost, err
	}
	s := postgres.New(postgres.Config{Install: n.install, Name: b.config.Node + "-kept", Dir: kept.Dir, Listen: net.ParseIP(b.config.Listen), Port: port, Log: b.log})
	p, err := b.startNative(ctx, s, syscall.SIGQUIT)
	if err != nil {
		return lost, err
	}
	defer func() { err = errors.Join(err, p.stop(context.WithoutCancel(ctx))) }()
	return n.LostFrom(ctx, kept, s)
}

func (b birth) startHAProxy(ctx context.Context) (part, error) {
	binary, err := haproxy.Find()
	if err != nil {
		return part{}, err
	}
	port, err := b.freePort()
	if err != nil {
		return part{}, err
	}
	s := haproxy.New(haproxy.Config{
		Balancing: b.balancing(), Log: b.log, Install: binary, Dir: filepath.Join(b.config.Dir, "haproxy"),
		Listen: net.ParseIP(b.config.Listen), Port: port, Procs: b.config.Procs,
		Drain: time.Duration(max(b.config.DrainSeconds, 1) * float64(time.Second)),
	})
	admin, err := balance.Admin(b.registry, s)
	if err != nil {
		return part{}, err
	}
	p, err := b.startNative(ctx, s, syscall.SIGKILL)
	if err != nil {
		return part{}, err
	}
	return b.withAdmin(p, admin)
}

func (b birth) startMemcached(ctx context.Context) (part, error) {
	install, err := memcached.Find()
	if err != nil {
		return part{}, err
	}
	port, err := b.serverPort()
	if err != nil {
		return part{}, err
	}
	s := memcached.New(memcached.Config{
		Install: install, Listen: net.ParseIP(b.config.Listen), Port: port, MaxBytes: b.cache().Bytes(), Procs: b.config.Procs,
	})
	return b.startCacheServer(ctx, s, cache.Config{Protocol: cache.Memcached})
}

// withAdmin adds the admin address of a node whose server has none.
func (b birth) withAdmin(p part, handler http.Handler) (part, error) {
	admin, err := b.listen(0)
	if err != nil {
		return part{}, errors.Join(err, p.stop(context.Background()))
	}
	return p.with(admin, newHTTPServer(), handler), nil
}

// beside runs something as long as a part lives.
func (p part) beside(watch func(context.Context)) part {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		watch(ctx)
	}()
	inner := p.stop
	p.stop = func(ctx context.Context) error {
		cancel()
		<-done
		return inner(ctx)
	}
	return p
}

// with adds an admin listener to a part.
func (p part) with(admin net.Listener, h *httpServer, handler http.Handler) part {
	h.serve(admin, handler)
	p.ready.Admin = admin.Addr().String()
	inner := p.stop
	p.stop = func(ctx context.Context) error { return errors.Join(inner(ctx), h.stop(ctx)) }
	return p
}

// freePort is the node's old port, or one that nobody has. The host's address
// is its own, so nobody else takes it before the server does.
func (b birth) freePort() (int, error) {
	if b.config.Port != 0 {
		return b.config.Port, nil
	}
	listener, err := b.listen(0)
	if err != nil {
		return 0, err
	}
	return listener.Addr().(*net.TCPAddr).Port, listener.Close()
}

// marks are the variables by which whoever runs nodes knows the processes of each again.
// A native server has an environment of its own, and is of its node all the same.
func marks(environment []string) []string {
	return slices.DeleteFunc(environment, func(v string) bool { return !strings.HasPrefix(v, "STAGEBENCH_") })
}

// startNative starts a described server as a child that dies with this process,
// and waits until it serves or exits.
func (b birth) startNative(ctx context.Context, s server, death syscall.Signal) (part, error) {
	if err := s.Prepare(ctx); err != nil {
		return part{}, err
	}
	cmd := s.Command()
	cmd.Env = append(cmd.Env, marks(os.Environ())...)
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = death
	reader, writer := io.Pipe()
	cmd.Stdout, cmd.Stderr = writer, writer
	go b.relay(reader, s)
	started, exited := make(chan error, 1), make(chan error, 1)
	go func() {
		// The death signal comes when the parent thread ends, so the thread that
		// started the child must live as long as the child does.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			err = cmd.Wait()
			_ = writer.Close() // a pipe's writer never fails to close
			exited <- fmt.Errorf("%s ended: %w", filepath.Base(cmd.Path), orExited(err))
		}
	}()
	if err := <-started; err != nil {
		return part{}, err
	}
	stop := func(ctx context.Context) error { return stopNative(ctx, cmd, s.StopSignal(), exited) }
	if err := awaitNative(ctx, s, exited); err != nil {
		return part{}, errors.Join(err, stop(ctx))
	}
	version, err := s.Version(ctx)
	if err != nil {
		return part{}, errors.Join(err, stop(ctx))
	}
	died := make(chan error, 2) // of the server, and of who watches it
	relayed := make(chan error, 1)
	go func() {
		err := <-exited
		died <- err
		relayed <- err
	}()
	return part{
		ready: sut.Ready{Node: b.config.Node, Address: s.Address(), Version: version, PIDs: []int{cmd.Process.Pid}},
		died:  died,
		stop:  func(ctx context.Context) error { return stopNative(ctx, cmd, s.StopSignal(), relayed) },
	}, nil
}

// relay logs what the server prints. One that prints more than words for people
// has a Printed, which reports whether it has logged the line itself.
func (b birth) relay(r io.Reader, s server) {
	printed := func(string) bool { return false }
	if own, has := s.(interface{ Printed(line string) bool }); has {
		printed = own.Printed
	}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if !printed(lines.Text()) {
			b.log.Info(lines.Text(), "source", "server")
		}
	}
	_, _ = io.Copy(io.Discard, r) // after a line that is too long: the server must not block
}

func awaitNative(ctx context.Context, s server, exited chan error) error {
	ctx, cancel := context.WithTimeout(ctx, nativeStart)
	defer cancel()
	poll := time.NewTicker(nativePoll)
	defer poll.Stop()
	for {
		err := s.Ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-poll.C:
		case death := <-exited:
			exited <- death // for the stop that follows
			return death
		case <-ctx.Done():
			return fmt.Errorf("not ready within %v: %w", nativeStart, err)
		}
	}
}

// stopNative asks the server to end and kills it when the time is over.
func stopNative(ctx context.Context, cmd *exec.Cmd, signal os.Signal, exited <-chan error) error {
	if err := cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-exited:
		return nil
	case <-ctx.Done():
		err := cmd.Process.Kill()
		<-exited
		if errors.Is(err, os.ErrProcessDone) {
			return nil
		}
		return errors.Join(ctx.Err(), err)
	}
}

// orExited names the end of a server that ended without an error: it was not
// asked to.
func orExited(err error) error {
	if err == nil {
		return errors.New("exit status 0, but nobody had asked it to")
	}
	return err
}
