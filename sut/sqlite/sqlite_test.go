package sqlite_test

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"testing"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/stagebench/stagebench/internal/porttest"
	"github.com/stagebench/stagebench/sut/sqlite"
	"github.com/stagebench/stagebench/sut/store/storetest"
)

// The environment variables that make the test binary a node. A test that kills a node with a signal needs it in its
// own process.
const (
	nodeDir         = "STAGEBENCH_TEST_NODE_DIR"
	nodeAddress     = "STAGEBENCH_TEST_NODE_ADDRESS"
	nodeDurability  = "STAGEBENCH_TEST_NODE_DURABILITY"
	nodeReplication = "STAGEBENCH_TEST_NODE_REPLICATION" // a sqlite.Replication as JSON
)

func TestMain(m *testing.M) {
	if os.Getenv(nodeDir) != "" {
		os.Exit(node())
	}
	goleak.VerifyTestMain(m)
}

// node serves until its standard input ends. It returns the exit status.
func node() int {
	listener, err := net.Listen("tcp", os.Getenv(nodeAddress))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cfg := sqlite.Config{Listener: listener, Dir: os.Getenv(nodeDir), Statements: catalogue()}.
		Synchronous(cmp.Or(os.Getenv(nodeDurability), "full"))
	if text := os.Getenv(nodeReplication); text != "" {
		if err := json.Unmarshal([]byte(text), &cfg.Replication); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	s, err := sqlite.New(cfg)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(s.Addr())
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	if err := s.Serve(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// catalogue returns the statements of the store.
func catalogue() []sqlite.Statement {
	var all []sqlite.Statement
	for _, from := range storetest.Statements() {
		to := sqlite.Statement{SQL: from.SQL, Local: from.SQLite}
		for _, p := range from.Params {
			to.Params = append(to.Params, sqlite.Type(p))
		}
		for _, c := range from.Columns {
			to.Columns = append(to.Columns, sqlite.Column{Name: c.Name, Type: sqlite.Type(c.Type)})
		}
		all = append(all, to)
	}
	return all
}

// listen returns a listener on a free port.
func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// serve runs a node in this process until the end of the test.
func serve(t testing.TB, cfg sqlite.Config) *sqlite.Server {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	if cfg.Statements == nil {
		cfg.Statements = catalogue()
	}
	cfg.Listener = listen(t)
	s, err := sqlite.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ended := inBackground(func() error { return s.Serve(context.Background()) })
	t.Cleanup(func() {
		if err := s.Shutdown(cancelledContext()); err != nil {
			t.Error(err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s
}

// connect returns a client that is connected until the end of the test.
func connect(t testing.TB, s *sqlite.Server) *pgx.Conn {
	t.Helper()
	url := "postgres://stagebench@" + s.Addr().String() + "/stagebench?sslmode=disable"
	conn, err := pgx.Connect(context.Background(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func TestStore(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) *storetest.Store {
		return storetest.Open(t, serve(t, sqlite.Config{}).Addr().String())
	})
}

func TestShards(t *testing.T) {
	t.Parallel()
	storetest.Shards(t, func(t *testing.T) string { return serve(t, sqlite.Config{}).Addr().String() })
}

// TestStoreWithoutGroups runs the same checks without shared commits and with one read connection. Then most statements
// wait in a queue.
func TestStoreWithoutGroups(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) *storetest.Store {
		s := serve(t, sqlite.Config{}.Adjust(func(e *sqlite.EngineConfig, _ *sqlite.WireConfig) {
			e.GroupLimit, e.ReadConns, e.Synchronous = 1, 1, "normal"
		}))
		return storetest.Open(t, s.Addr().String())
	})
}

func TestFaults(t *testing.T) {
	t.Parallel()
	p := &process{dir: t.TempDir(), address: porttest.Free(t).String()}
	p.Restart(t)
	t.Cleanup(func() { p.Kill(t) })
	storetest.Faults(t, p)
}

// process is a node in its own process.
type process struct {
	dir, address string
	durability   string // SQLite's pragma synchronous; "" = full
	replication  *sqlite.Replication
	cmd          *exec.Cmd
	stdin        io.Closer
}

// Address returns the address of the node.
func (p *process) Address() string { return p.address }

// Kill kills the process and waits for its end.
func (p *process) Kill(t testing.TB) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = p.cmd.Wait() // the error is that the process was killed
	p.stdin.Close()
}

// Restart starts the node. It retries, because an outgoing connection may use the port of the node for a moment.
func (p *process) Restart(t testing.TB) {
	t.Helper()
	eventually(t, "the node process serves", func() error {
		err := p.start(t)
		if err != nil {
			p.Kill(t)
		}
		return err
	}, func(err error) bool { return err == nil })
}

// start starts the node. It returns an error if the process ends before the node serves.
func (p *process) start(t testing.TB) error {
	t.Helper()
	p.cmd = exec.Command(os.Args[0])
	p.cmd.Env = append(os.Environ(),
		nodeDir+"="+p.dir, nodeAddress+"="+p.address, nodeDurability+"="+p.durability)
	if p.replication != nil {
		text, err := json.Marshal(p.replication)
		if err != nil {
			t.Fatal(err)
		}
		p.cmd.Env = append(p.cmd.Env, nodeReplication+"="+string(text))
	}
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return err
	}
	p.address = line[:len(line)-1]
	return nil
}
