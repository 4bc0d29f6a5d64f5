package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/session"
	"github.com/stagebench/stagebench/sut/sqlite/replog"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/proc"
)

// strangerVariable makes this binary attack a system, as stranger does.
const strangerVariable = "STAGEBENCH_TEST_STRANGER"

// nobody is the user who attacks.
const nobody = 65534

// victims is what every user of the machine can find out about a system.
type victims struct {
	Nodes []targets.NodeStatus // without the secret
	Dirs  []string
}

// attack is something that nobody else may do.
type attack struct {
	Name    string
	Refusal string // why it failed; empty = it succeeded
	do      func() error
}

// attackTime bounds one attack.
const attackTime = 5 * time.Second

// stranger attacks the victims on its standard input, and prints each attack with its result.
func stranger(in io.Reader, out io.Writer) error {
	var v victims
	if err := json.NewDecoder(in).Decode(&v); err != nil {
		return err
	}
	all := attacksOnFiles(v.Dirs)
	for _, n := range v.Nodes {
		if n.Admin != "" {
			all = append(all, attacksOnAdmin(n)...)
		}
		all = append(all, attacksOnService(n)...)
	}
	for _, a := range all {
		if err := a.do(); err != nil {
			a.Refusal = err.Error()
		}
		if err := json.NewEncoder(out).Encode(a); err != nil {
			return err
		}
	}
	return nil
}

// ask sends a request. A status below 300 is success.
func ask(method, url, body string, header ...string) error {
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return err
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
	}
	client := http.Client{Timeout: attackTime}
	response, err := client.Do(req)
	if err != nil {
		return err
	}
	_ = response.Body.Close()
	if response.StatusCode < 300 {
		return nil
	}
	return errors.New(response.Status)
}

// attacksOnAdmin reads and changes a node at its admin address: as a local process, with a secret of another system,
// from a web page, and through a name that was rebound to the address.
func attacksOnAdmin(n targets.NodeStatus) (all []attack) {
	const wiring = `{"epoch":1000000,"uses":{"db":[{"node":"x","address":"127.0.0.1:9"}]}}`
	for who, header := range map[string][]string{
		"a local process": nil,
		"another system":  {"Authorization", sut.NewSecret().Bearer()},
		"a web page":      {"Origin", "https://example.org", "Content-Type", "text/plain"},
		"a rebound name":  {"Host", "example.org"},
	} {
		for _, r := range [][3]string{
			{http.MethodGet, "/metrics"},
			{http.MethodGet, sut.WiringPath},
			{http.MethodPut, sut.WiringPath, wiring},
			{http.MethodGet, sut.ReplicationPath},
			{http.MethodPut, sut.ReplicationPath, `{"epoch":1000000}`},
			{http.MethodGet, sut.LostPath},
			{http.MethodPost, sut.LostPath, `{}`},
			{http.MethodPut, sut.BucketsPath, `{}`},
			{http.MethodDelete, sut.BucketsPath, `{}`},
		} {
			all = append(all, attack{Name: fmt.Sprintf("%s: %s %s at %s", who, r[0], r[1], n.Node), do: func() error {
				return ask(r[0], "http://"+n.Admin+r[1], r[2], header...)
			}})
		}
	}
	return all
}

// attacksOnService uses a node as only other nodes of its system may.
func attacksOnService(n targets.NodeStatus) (all []attack) {
	add := func(name string, do func() error) {
		all = append(all, attack{Name: name + " at " + n.Node, do: do})
	}
	switch n.Engine {
	case sut.App:
		add("look a session up", func() error {
			return ask(http.MethodGet, "http://"+n.Address+session.Path, "", "X-Session-Token", "web-1.0123")
		})
	case sut.Files:
		for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodDelete} {
			add(method+" photo bytes", func() error {
				return ask(method, fmt.Sprintf("http://%s/blob/%d/thumb", n.Address, seededPhoto(1)), "x")
			})
		}
	case sut.RESP, sut.Redis:
		for _, line := range []string{"GET a", "SET a 1", "FLUSHALL", "CONFIG GET *", "AUTH stagebench"} {
			add(line, func() error { return say(n.Address, line, "-") })
		}
	case sut.Memcached:
		for _, line := range []string{"get a", "stats", "flush_all", "set a 0 0 12\r\nstagebench x"} {
			add(line, func() error { return say(n.Address, line, "CLIENT_ERROR") })
		}
	case sut.SQLite, sut.Postgres:
		for _, user := range []string{"stagebench", "stagebench_node", "stagebench_admin", "postgres"} {
			for _, parameters := range []string{"", "&password=stagebench", "&replication=database"} {
				add("log in as "+user+" "+parameters, func() error {
					return logIn(fmt.Sprintf("postgres://%s@%s/stagebench?sslmode=disable%s", user, n.Address, parameters))
				})
			}
		}
	}
	if n.Engine == sut.SQLite {
		for _, secret := range []sut.Secret{"", sut.NewSecret()} {
			add("replicate and fence", func() error { return replicate(n, secret) })
		}
	}
	return all
}

// say sends a line. An answer that begins with the prefix is a refusal.
func say(address, line, refusal string) error {
	conn, err := net.DialTimeout("tcp", address, attackTime)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(attackTime))
	if _, err := io.WriteString(conn, line+"\r\n"); err != nil {
		return err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && strings.HasPrefix(answer, refusal) {
		err = errors.New(strings.TrimSpace(answer))
	}
	return err
}

func logIn(url string) error {
	ctx, cancel := context.WithTimeout(context.Background(), attackTime)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err == nil {
		_ = conn.Close(ctx)
	}
	return err
}

// replicate claims to be a replica of a later epoch that has everything.
func replicate(n targets.NodeStatus, secret sut.Secret) error {
	ctx, cancel := context.WithTimeout(context.Background(), attackTime)
	defer cancel()
	hello := replog.Hello{Node: "db-2", To: n.Node, Epoch: 1_000_000, Position: 1 << 40}
	link, err := replog.Dial(ctx, n.Address, secret, replog.KindHello, hello)
	if err != nil {
		return err
	}
	defer func() { _ = link.Close() }()
	out := bufio.NewWriter(link)
	for range 100 {
		_ = replog.WriteNumbers(out, replog.KindAck, 1<<40)
	}
	_ = out.Flush() // the answer says whether it worked
	kind, body, err := replog.Read(link, 1<<20)
	if err == nil && kind != replog.KindWelcome {
		err = fmt.Errorf("%c %q", kind, body)
	}
	return err
}

// attacksOnFiles reads what the processes of a system keep on disk.
func attacksOnFiles(dirs []string) (all []attack) {
	for _, dir := range dirs {
		all = append(all, attack{Name: "read files of " + dir, do: func() error {
			refusal := error(fs.ErrNotExist)
			walk := func(path string, entry fs.DirEntry, err error) error {
				if err == nil && entry.Type().IsRegular() {
					_, err = os.ReadFile(path)
					if err == nil {
						return fmt.Errorf("%w: %s", errReadable, path)
					}
				}
				if err != nil {
					refusal = err
				}
				return nil
			}
			if err := filepath.WalkDir(dir, walk); errors.Is(err, errReadable) {
				fmt.Fprintln(os.Stderr, err)
				return nil
			}
			return refusal
		}})
	}
	return all
}

var errReadable = errors.New("readable")

// attackedBy runs stranger as another user and returns the attacks.
func attackedBy(t *testing.T, v victims) (all []attack) {
	t.Helper()
	for i := range v.Nodes {
		v.Nodes[i].Secret = ""
	}
	document, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	// The other user cannot enter the directory of this binary, but its own process leads to it.
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env, cmd.Dir = []string{strangerVariable + "=1"}, "/"
	cmd.Stdin, cmd.Stderr = strings.NewReader(string(document)), t.Output()
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for decoder := json.NewDecoder(strings.NewReader(string(out))); decoder.More(); {
		var a attack
		if err := decoder.Decode(&a); err != nil {
			t.Fatal(err)
		}
		all = append(all, a)
	}
	return all
}

// Another user of this machine can do nothing to a system, and each attempt at a node is logged.
func TestStrangers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to attack as another user")
	}
	for name, engines := range map[string]sut.Knobs{
		"embedded":  nil,
		"native":    {"db.engine": "postgres", "cache.engine": "redis", "lb.engine": "haproxy"},
		"memcached": {"cache.engine": "memcached"},
	} {
		t.Run(name, func(t *testing.T) {
			knobs := sut.Knobs{"db.sync": "sync", "web.split": "true"}
			for knob, value := range engines {
				knobs[knob] = value
			}
			r := bringUpSized(t, sut.Caches, knobs, roomy)
			before := r.Status()
			owner, err := proc.Self("/")
			if err != nil {
				t.Fatal(err)
			}
			dirs, err := filepath.Glob(filepath.Join(os.TempDir(), "stagebench-"+owner.String()+"-*"))
			if err != nil || len(dirs) == 0 {
				t.Fatalf("%d private directories: %v", len(dirs), err)
			}
			all := attackedBy(t, victims{Nodes: r.Status(), Dirs: append(dirs, templates(), r.logs)})
			if len(all) < 200 {
				t.Errorf("only %d attacks", len(all))
			}
			for _, a := range all {
				if a.Refusal == "" || strings.Contains(a.Refusal, "connection refused") {
					t.Errorf("%s: %s", a.Name, a.Refusal)
				}
			}
			t.Logf("%d attacks refused", len(all))
			for i, n := range r.Status() {
				was := before[i]
				if n.State != was.State || n.Restarts != was.Restarts || n.ReplicationRole != was.ReplicationRole {
					t.Errorf("afterwards %+v, before %+v", n, was)
				}
				if log, err := os.ReadFile(filepath.Join(r.logs, n.Node+".log")); err != nil || n.Admin != "" &&
					!strings.Contains(string(log), "refused a request at the admin address") {
					t.Errorf("the log of %s does not have the attacks: %v", n.Node, err)
				}
			}
			r.hidesSecret(t)
			r.strangerIsNoCopy(t)
		})
	}
}

// hidesSecret checks that no process shows the secret in its arguments, which everybody can read.
func (r *rig) hidesSecret(t *testing.T) {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(paths) == 0 {
		t.Fatalf("%d processes: %v", len(paths), err)
	}
	for _, path := range paths {
		text, _ := os.ReadFile(path) // the process may have ended
		if strings.Contains(string(text), string(r.secret())) {
			t.Errorf("%s has the secret: %q", path, text)
		}
	}
}

// strangerIsNoCopy pauses all replicas of a synchronous database. A stranger who acknowledges everything does not count
// as a copy: no write is acknowledged.
func (r *rig) strangerIsNoCopy(t *testing.T) {
	t.Helper()
	primary := r.reading(t, "db-1")
	like := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
		defer cancel()
		_, err := primary.Like(ctx, seededPhoto(1), photos.ID(1))
		return err
	}
	if err := like(); err != nil {
		t.Fatalf("a write with two replicas: %v", err)
	}
	var nodes []targets.NodeStatus
	for _, n := range r.Status() {
		switch {
		case n.ReplicationRole == targets.Replica:
			if err := r.Pause(n.Node); err != nil {
				t.Fatal(err)
			}
		case n.ReplicationRole == targets.Primary:
			nodes = append(nodes, n)
		}
	}
	attacked := make(chan []attack)
	go func() { attacked <- attackedBy(t, victims{Nodes: nodes}) }()
	err := like()
	for _, a := range <-attacked {
		if a.Refusal == "" {
			t.Errorf("%s succeeded", a.Name)
		}
	}
	if err == nil {
		t.Error("a write was acknowledged although both replicas are stopped")
	}
}
