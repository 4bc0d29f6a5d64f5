package sqlite_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/sqlite"
)

const (
	createUsers = "create table if not exists users " +
		"(id integer primary key, login text not null unique, name text not null)"
	addUser    = "insert into users (id, login, name) values ($1, $2, $3)"
	setLogin   = "update users set login = $1 where id = $2"
	setName    = "update users set name = $1 where id = $2"
	deleteUser = "delete from users where id = $1"
	allUsers   = "select id, login, name from users order by id"
	setText    = "update notes set text = $1 where id = $2"
	deleteNote = "delete from notes where id = $1"
)

// notesAndUsers returns the catalogue of the notes, with statements for users. A user has a UNIQUE login.
func notesAndUsers() []sqlite.Statement {
	columns := []sqlite.Column{
		{Name: "id", Type: sqlite.BigInt}, {Name: "login", Type: sqlite.Text}, {Name: "name", Type: sqlite.Text},
	}
	return append(notes(),
		sqlite.Statement{SQL: createUsers},
		sqlite.Statement{SQL: addUser, Params: []sqlite.Type{sqlite.BigInt, sqlite.Text, sqlite.Text}},
		sqlite.Statement{SQL: setLogin, Params: []sqlite.Type{sqlite.Text, sqlite.BigInt}},
		sqlite.Statement{SQL: setName, Params: []sqlite.Type{sqlite.Text, sqlite.BigInt}},
		sqlite.Statement{SQL: deleteUser, Params: []sqlite.Type{sqlite.BigInt}},
		sqlite.Statement{SQL: allUsers, Columns: columns},
		sqlite.Statement{SQL: setText, Params: []sqlite.Type{sqlite.Text, sqlite.BigInt}},
		sqlite.Statement{SQL: deleteNote, Params: []sqlite.Type{sqlite.BigInt}},
	)
}

// topology returns the indexes of the nodes from which node i of count nodes receives changes.
type topology func(i, count int) []int

func topologies() map[string]topology {
	return map[string]topology{
		"multi-primary": func(i, count int) (from []int) {
			for j := range count {
				if j != i {
					from = append(from, j)
				}
			}
			return from
		},
		"ring": func(i, count int) []int { return []int{(i + count - 1) % count} },
	}
}

// cluster is a multi-primary set.
type cluster struct {
	nodes    []*testNode
	topology topology
}

// startPrimaries starts a connected set of three primaries on copies of one database.
func startPrimaries(t testing.TB, by topology, change func(*sqlite.Config)) *cluster {
	t.Helper()
	base := newTemplate(t)
	c := &cluster{topology: by}
	for i := range 3 {
		c.nodes = append(c.nodes, startNode(t, base, fmt.Sprint("db-", i+1), nil, func(cfg *sqlite.Config) {
			cfg.Statements, cfg.Replication.State.MultiPrimary = notesAndUsers(), true
			if change != nil {
				change(cfg)
			}
		}))
		run(t, connect(t, c.nodes[i].Server), createUsers)
	}
	c.connect(t)
	return c
}

// connect connects all nodes in their topology.
func (c *cluster) connect(t testing.TB) {
	t.Helper()
	for i, n := range c.nodes {
		state := sut.Replication{Epoch: 1, MultiPrimary: true}
		for _, j := range c.topology(i, len(c.nodes)) {
			state.Origins = append(state.Origins, *c.nodes[j].peer())
		}
		c.changeRole(t, n, state)
	}
}

// disconnect makes all nodes receive no changes, as in a partition.
func (c *cluster) disconnect(t testing.TB) {
	t.Helper()
	for _, n := range c.nodes {
		c.changeRole(t, n, sut.Replication{Epoch: 1, MultiPrimary: true})
	}
}

func (c *cluster) changeRole(t testing.TB, n *testNode, state sut.Replication) {
	t.Helper()
	n.cfg.Replication.State = state
	if err := n.ChangeRole(context.Background(), state); err != nil {
		t.Fatal(err)
	}
}

// awaitEqual waits until every node has every change, and checks that all copies are equal. It returns the statuses.
func (c *cluster) awaitEqual(t testing.TB) (all []sut.ReplicationStatus) {
	t.Helper()
	statuses := func() (all []sut.ReplicationStatus) {
		for _, n := range c.nodes {
			all = append(all, n.ReplicationStatus())
		}
		return all
	}
	all = eventually(t, "all nodes have all changes", statuses, func(all []sut.ReplicationStatus) bool {
		for _, s := range all {
			if s.Position != all[0].Position || !s.Connected || s.Problem != "" {
				return false
			}
			for node, applied := range s.Applied {
				for _, other := range all {
					if other.Node != node && other.Node != s.Node && other.Applied[node] != applied {
						return false
					}
				}
			}
		}
		return true
	})
	want := c.dump(t, 0)
	for i, s := range all {
		if got := c.dump(t, i); !slices.Equal(got, want) {
			t.Errorf("%s has\n%s\n%s has\n%s", s.Node, strings.Join(got, "\n"), all[0].Node, strings.Join(want, "\n"))
		}
		if s.Conflicts != all[0].Conflicts {
			t.Errorf("%s counts %d conflicts, %s counts %d", s.Node, s.Conflicts, all[0].Node, all[0].Conflicts)
		}
		if !s.Primary || !s.Serves {
			t.Errorf("a node reports %+v", s)
		}
	}
	return all
}

// dump returns all notes and users of a node.
func (c *cluster) dump(t testing.TB, i int) []string {
	t.Helper()
	rows, err := connect(t, c.nodes[i].Server).Query(context.Background(), allUsers)
	if err != nil {
		t.Fatal(err)
	}
	users, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (string, error) {
		values, err := row.Values()
		return "user " + fmt.Sprint(values...), err
	})
	if err != nil {
		t.Fatal(err)
	}
	return append(c.nodes[i].dump(t), users...)
}

// forTopologies runs a test in parallel for each topology.
func forTopologies(t *testing.T, test func(*testing.T, topology)) {
	t.Parallel()
	for name, by := range topologies() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, by)
		})
	}
}

// TestMultiPrimary: each change of three nodes is applied on all of them exactly once, also when one node was away.
func TestMultiPrimary(t *testing.T) {
	const writes = 20 // per node and round
	forTopologies(t, func(t *testing.T, by topology) {
		c := startPrimaries(t, by, nil)
		write := func(round int, nodes ...int) {
			for _, node := range nodes {
				conn := connect(t, c.nodes[node].Server)
				for i := range writes {
					run(t, conn, insert, 1000*(node+1)+100*round+i, 0, "note")
				}
			}
		}
		write(0, 0, 1, 2)
		all := c.awaitEqual(t)
		for _, s := range all {
			if s.Position != 3*writes || s.Conflicts != 0 || len(s.Applied) != 2 || s.LagNS < 0 {
				t.Errorf("a node reports %+v", s)
			}
			for node, applied := range s.Applied {
				if applied != writes {
					t.Errorf("%s has %d changes of %s, want %d", s.Node, applied, node, writes)
				}
			}
		}
		c.nodes[1].kill(t)
		c.nodes[2].await(t, "the third node detects the loss", func(s sut.ReplicationStatus) bool {
			return !s.Connected && s.Problem != ""
		})
		write(1, 0, 2)
		c.nodes[1].start(t)
		write(1, 1)
		for _, s := range c.awaitEqual(t) {
			if s.Position != 6*writes || s.Conflicts != 0 {
				t.Errorf("a node reports %+v", s)
			}
		}
		if n := len(c.dump(t, 0)); n != 10+6*writes {
			t.Errorf("%d notes, want %d", n, 10+6*writes)
		}
	})
}

// TestMultiPrimaryPartition: during a partition both sides write the same rows. After it, the later write of each row
// has won on all nodes.
func TestMultiPrimaryPartition(t *testing.T) {
	forTopologies(t, func(t *testing.T, by topology) {
		c := startPrimaries(t, by, nil)
		first, second := connect(t, c.nodes[0].Server), connect(t, c.nodes[1].Server)
		run(t, first, insert, 20, 0, "for all")
		c.awaitEqual(t)
		c.disconnect(t)
		run(t, first, setText, "earlier", 1)
		run(t, first, setText, "only on the first", 2)
		run(t, first, grow, 5, 3) // the second node changes another column of this row
		run(t, first, insert, 100, 1, "earlier")
		run(t, first, deleteNote, 4) // the second node updates this row later
		run(t, second, setText, "later", 1)
		run(t, second, setText, "text", 3)
		run(t, second, insert, 100, 2, "later")
		run(t, second, setText, "lives", 4)
		run(t, second, setText, "earlier", 5)
		run(t, first, deleteNote, 5)
		run(t, first, setText, "later", 6)
		run(t, second, grow, 1, 20)
		run(t, second, setText, "grown", 20)
		c.connect(t)
		all := c.awaitEqual(t)
		if all[2].Conflicts != 5 { // notes 1, 3, 100, 4, 5
			t.Errorf("%d conflicts, want 5", all[2].Conflicts)
		}
		// A note is printed as id, size and text, without a space between the numbers.
		want := []string{
			"00seeded", "10later", "1002later", "20only on the first", "201grown", "30text", "40lives",
			"60later", "70seeded", "80seeded", "90seeded",
		}
		got := c.dump(t, 2)
		for i := range got {
			got[i] = strings.Replace(got[i], " ", "", 1)
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("got %q\nwant %q", got, want)
		}
	})
}

// TestMultiPrimaryLogins: during a partition two nodes insert users with the same UNIQUE login. After it, the later
// user is visible on all nodes. The other one returns when the login is free.
func TestMultiPrimaryLogins(t *testing.T) {
	forTopologies(t, func(t *testing.T, by topology) {
		c := startPrimaries(t, by, nil)
		first, second := connect(t, c.nodes[0].Server), connect(t, c.nodes[1].Server)
		third := connect(t, c.nodes[2].Server)
		run(t, first, addUser, 1, "ann", "1")
		run(t, first, addUser, 2, "bob", "2")
		c.awaitEqual(t)
		c.disconnect(t)
		run(t, first, addUser, 11, "cid", "earlier")
		run(t, second, addUser, 12, "cid", "later")
		run(t, third, setLogin, "dan", 1)
		run(t, third, addUser, 13, "ann", "after another user has given up the login")
		run(t, third, setName, "new name", 13)
		c.connect(t)
		if all := c.awaitEqual(t); all[0].Conflicts != 1 {
			t.Errorf("%d conflicts, want 1", all[0].Conflicts)
		}
		users := func(i int) string {
			all := slices.DeleteFunc(c.dump(t, i), func(s string) bool { return !strings.HasPrefix(s, "user") })
			return strings.Join(all, ",")
		}
		got := users(0)
		if strings.Contains(got, "earlier") || !strings.Contains(got, "later") || strings.Count(got, "user") != 4 {
			t.Errorf("the users are %s", got)
		}
		_, err := third.Exec(context.Background(), addUser, 14, "cid", "third")
		wantSQLState(t, "a login that exists", err, "23505")
		run(t, third, deleteUser, 12)
		for _, s := range c.awaitEqual(t) {
			if s.Conflicts != 0 {
				t.Errorf("%s has %d conflicts, want none: no row is hidden", s.Node, s.Conflicts)
			}
		}
		if got := users(1); !strings.Contains(got, "earlier") {
			t.Errorf("the hidden user has not returned: %s", got)
		}
	})
}

// TestMultiPrimaryRandomTransactions runs random transactions on few rows, on three nodes at the same time. Meanwhile
// one of the nodes is killed and restarted twice.
func TestMultiPrimaryRandomTransactions(t *testing.T) {
	const seed, rounds, perRound = 11, 5, 30 * scale
	forTopologies(t, func(t *testing.T, by topology) {
		c := startPrimaries(t, by, nil)
		var writers errgroup.Group
		for i := range c.nodes {
			random := rand.New(rand.NewPCG(seed, uint64(i)))
			if i == 1 {
				continue
			}
			conn := connect(t, c.nodes[i].Server)
			writers.Go(func() error { return writeRandomly(conn, random, rounds*perRound) })
		}
		random := rand.New(rand.NewPCG(seed, 1))
		for round := range rounds {
			conn := connect(t, c.nodes[1].Server)
			if err := writeRandomly(conn, random, perRound); err != nil {
				t.Fatal(err)
			}
			if round%2 == 1 {
				c.nodes[1].kill(t)
				c.nodes[1].start(t)
			}
		}
		if err := writers.Wait(); err != nil {
			t.Fatal(err)
		}
		all := c.awaitEqual(t)
		if all[0].Conflicts == 0 {
			t.Errorf("no conflicts with seed %d: %+v", seed, all[0])
		}
		t.Logf("seed %d: %d entries, %d conflicts", seed, all[0].Position, all[0].Conflicts)
	})
}

// writeRandomly runs random transactions on few rows. A violated UNIQUE key is no error.
func writeRandomly(conn *pgx.Conn, random *rand.Rand, transactions int) error {
	for range transactions {
		batch := &pgx.Batch{}
		for range random.IntN(3) + 1 {
			id, text := random.IntN(12), fmt.Sprint("text ", random.IntN(1000))
			login := fmt.Sprint("login ", random.IntN(8))
			switch random.IntN(8) {
			case 0:
				batch.Queue(insert, id, random.IntN(100), text)
			case 1:
				batch.Queue(deleteNote, id)
			case 2:
				batch.Queue(grow, random.IntN(5), id)
			case 3:
				batch.Queue(setText, text, id)
			case 4:
				batch.Queue(addUser, id, login, text)
			case 5:
				batch.Queue(setLogin, login, id)
			case 6:
				batch.Queue(setName, text, id)
			case 7:
				batch.Queue(deleteUser, id)
			}
		}
		err := conn.SendBatch(context.Background(), batch).Close()
		if s := sqlState(err); s != "" && s != "23505" {
			return err
		}
	}
	return nil
}

// TestMultiPrimarySnapshot: a node that was away for longer than the logs reach back gets a snapshot. The changes that
// only this node has reach the others. A node with a new database gets a snapshot, too.
func TestMultiPrimarySnapshot(t *testing.T) {
	forTopologies(t, func(t *testing.T, by topology) {
		c := startPrimaries(t, by, func(cfg *sqlite.Config) { cfg.Replication.KeepEntries = 16 })
		first, second := connect(t, c.nodes[0].Server), connect(t, c.nodes[1].Server)
		run(t, second, insert, 99, 0, "early")
		c.awaitEqual(t)
		c.disconnect(t)
		run(t, second, insert, 100, 0, "of the node that is away")
		run(t, second, setText, "earlier", 1)
		run(t, second, setText, "stays", 2)
		c.nodes[1].kill(t)
		for i := range 40 {
			run(t, first, insert, 1000+i, 0, "meanwhile")
		}
		run(t, first, setText, "later", 1)
		c.nodes[1].start(t)
		c.connect(t)
		all := c.awaitEqual(t)
		if all[1].Rebuilds != 1 || all[0].Rebuilds != 0 || all[0].Conflicts != 1 {
			t.Errorf("the nodes report %+v", all)
		}
		got := strings.Join(c.dump(t, 2), ",")
		if strings.Contains(got, "earlier") || !strings.Contains(got, "stays") || !strings.Contains(got, "away") ||
			strings.Count(got, "meanwhile") != 40 {
			t.Errorf("the notes are %s", got)
		}
		// An existing node starts with a new database.
		c.nodes[2].kill(t)
		c.nodes[2].dir = t.TempDir()
		c.nodes[2].cfg.Dir = c.nodes[2].dir
		c.nodes[2].start(t)
		c.awaitEqual(t)
		for i, n := range c.nodes {
			run(t, connect(t, n.Server), insert, 5000+i, 0, "afterwards")
		}
		if all := c.awaitEqual(t); all[2].Rebuilds != 1 || all[1].Rebuilds != 1 {
			t.Errorf("the nodes report %+v", all)
		}
	})
}

// TestMultiPrimaryCannotReturn: a snapshot would lose changes that only one node has and that are no longer in its log.
// The node reports the problem and keeps its copy.
func TestMultiPrimaryCannotReturn(t *testing.T) {
	forTopologies(t, func(t *testing.T, by topology) {
		c := startPrimaries(t, by, func(cfg *sqlite.Config) { cfg.Replication.KeepEntries = 16 })
		c.disconnect(t)
		first, second := connect(t, c.nodes[0].Server), connect(t, c.nodes[1].Server)
		for i := range 40 {
			run(t, first, insert, 1000+i, 0, "here")
			run(t, second, insert, 2000+i, 0, "there")
		}
		c.connect(t)
		status := c.nodes[1].await(t, "the node reports the problem", func(s sut.ReplicationStatus) bool {
			return strings.Contains(s.Problem, "no longer in its log")
		})
		if status.Connected || status.Rebuilds != 0 || !status.Serves {
			t.Errorf("the node reports %+v", status)
		}
		if n := len(c.dump(t, 1)); n != 50 {
			t.Errorf("the node has %d notes, want 50", n)
		}
	})
}

func TestMultiPrimaryRoles(t *testing.T) {
	t.Parallel()
	c := startPrimaries(t, topologies()["multi-primary"], nil)
	n := c.nodes[0]
	for name, to := range map[string]sut.Replication{
		"an old epoch":   {Epoch: 0, MultiPrimary: true},
		"single-primary": {Epoch: 9},
		"a replica":      {Epoch: 9, Primary: c.nodes[1].peer()},
		"a mixed role":   {Epoch: 9, MultiPrimary: true, Primary: c.nodes[1].peer()},
	} {
		if err := n.ChangeRole(t.Context(), to); !errors.Is(err, sqlite.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	itself := []sut.Peer{*n.peer()}
	if err := n.ChangeRole(t.Context(), sut.Replication{Epoch: 1, MultiPrimary: true, Origins: itself}); err == nil {
		t.Error("a node accepted itself as an origin")
	}
	if err := n.ChangeRole(t.Context(), sut.Replication{Epoch: 3, MultiPrimary: true}); err != nil {
		t.Error(err)
	}
	if s := n.ReplicationStatus(); s.Epoch != 3 || !s.Primary || !s.Connected || s.Conflicts != 0 {
		t.Errorf("the node reports %+v", s)
	}
	// It restarts with the role of its configuration, but it still knows the epoch.
	n.kill(t)
	n.start(t)
	next := sut.Replication{Epoch: 2, MultiPrimary: true}
	if err := n.ChangeRole(t.Context(), next); !errors.Is(err, sqlite.ErrRefused) {
		t.Errorf("an epoch below the known one: %v", err)
	}
	alone := startNode(t, newTemplate(t), "db-1", nil, nil)
	if err := alone.ChangeRole(t.Context(), next); !errors.Is(err, sqlite.ErrRefused) {
		t.Errorf("a single primary became multi-primary: %v", err)
	}
	// A multi-primary node cannot receive changes from a single primary. A replica cannot follow a multi-primary node.
	state := sut.Replication{Epoch: 3, MultiPrimary: true, Origins: []sut.Peer{*alone.peer()}}
	if err := c.nodes[1].ChangeRole(t.Context(), state); err != nil {
		t.Fatal(err)
	}
	c.nodes[1].await(t, "the node is refused", func(s sut.ReplicationStatus) bool {
		return !s.Connected && s.Problem != ""
	})
	replica := startNode(t, newTemplate(t), "db-9", n, nil)
	replica.await(t, "the replica is refused", func(s sut.ReplicationStatus) bool {
		return strings.Contains(s.Problem, "multi-primary")
	})
}
