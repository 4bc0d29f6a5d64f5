package sqlite_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/stagebench/stagebench/sut/sqlite"
	"github.com/stagebench/stagebench/sut/store/storetest"
)

// The environment that makes the test binary a node: what must be killed for
// real runs as a process of its own.
const (
	nodeDir     = "STAGEBENCH_TEST_NODE_DIR"
	nodeAddress = "STAGEBENCH_TEST_NODE_ADDRESS"
	nodeCommits = "STAGEBENCH_TEST_NODE_COMMITS"
	nodeCopies  = "STAGEBENCH_TEST_NODE_COPIES" // a sqlite.Replication
)

func TestMain(m *testing.M) {
	if os.Getenv(nodeDir) != "" {
		os.Exit(node())
	}
	goleak.VerifyTestMain(m)
}

// node serves until its standard input ends.
func node() int {
	cfg := sqlite.Config{
		Address: os.Getenv(nodeAddress), Dir: os.Getenv(nodeDir),
		Durability: sqlite.Durability(os.Getenv(nodeCommits)), Statements: catalogue(),
	}
	if text := os.Getenv(nodeCopies); text != "" {
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

// catalogue is the store's catalogue in the node's words.
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

// serve runs a node in this process for the length of a test.
func serve(t testing.TB, cfg sqlite.Config) *sqlite.Server {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	if cfg.Statements == nil {
		cfg.Statements = catalogue()
	}
	s, err := sqlite.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(context.Background()) }()
	t.Cleanup(func() {
		now, cancel := context.WithCancel(context.Background())
		cancel()
		if err := s.Shutdown(now); err != nil {
			t.Error(err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s
}

// connect opens a client for the length of a test.
func connect(t testing.TB, s *sqlite.Server) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), "postgres://stagebench@"+s.Addr().String()+"/stagebench?sslmode=disable")
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

// TestStoreWithoutGroups runs the same with every commit on its own and with
// one reader, where waiting in line is the rule.
func TestStoreWithoutGroups(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) *storetest.Store {
		s := serve(t, sqlite.Config{GroupLimit: 1, ReadConns: 1, Durability: sqlite.Normal})
		return storetest.Open(t, s.Addr().String())
	})
}

func TestFaults(t *testing.T) {
	t.Parallel()
	p := &process{dir: t.TempDir(), address: "127.0.0.1:0"}
	p.Restart(t)
	t.Cleanup(func() { p.Kill(t) })
	storetest.Faults(t, p)
}

// process is a node in a process of its own.
type process struct {
	dir, address string
	durability   sqlite.Durability
	replication  *sqlite.Replication
	cmd          *exec.Cmd
	stdin        io.Closer
}

func (p *process) Address() string { return p.address }

func (p *process) Kill(t testing.TB) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = p.cmd.Wait() // says that it was killed
	p.stdin.Close()
}

// Restart starts the node. An outgoing connection may have its port for a moment.
func (p *process) Restart(t testing.TB) {
	t.Helper()
	err := p.start(t)
	for deadline := time.Now().Add(patience); err != nil && time.Now().Before(deadline); {
		p.Kill(t)
		<-time.After(5 * time.Millisecond)
		err = p.start(t)
	}
	if err != nil {
		t.Fatalf("the node did not come up: %v", err)
	}
}

// start starts the node and returns an error when it ends before it serves.
func (p *process) start(t testing.TB) error {
	t.Helper()
	p.cmd = exec.Command(os.Args[0])
	p.cmd.Env = append(os.Environ(), nodeDir+"="+p.dir, nodeAddress+"="+p.address, nodeCommits+"="+string(p.durability))
	if p.replication != nil {
		text, err := json.Marshal(p.replication)
		if err != nil {
			t.Fatal(err)
		}
		p.cmd.Env = append(p.cmd.Env, nodeCopies+"="+string(text))
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
