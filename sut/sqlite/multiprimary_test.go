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
	createUsers = "create table if not exists users (id integer primary key, login text not null unique, name text not null)"
	addUser     = "insert into users (id, login, name) values ($1, $2, $3)"
	rename      = "update users set login = $1 where id = $2"
	callUser    = "update users set name = $1 where id = $2"
	dropUser    = "delete from users where id = $1"
	allUsers    = "select id, login, name from users order by id"
	rewrite     = "update notes set text = $1 where id = $2"
	remove      = "delete from notes where id = $1"
)

// notesAndUsers is the notes' catalogue, and that of users with a UNIQUE login.
func notesAndUsers() []sqlite.Statement {
	return append(notes(),
		sqlite.Statement{SQL: createUsers},
		sqlite.Statement{SQL: addUser, Params: []sqlite.Type{sqlite.BigInt, sqlite.Text, sqlite.Text}},
		sqlite.Statement{SQL: rename, Params: []sqlite.Type{sqlite.Text, sqlite.BigInt}},
		sqlite.Statement{SQL: callUser, Params: []sqlite.Type{sqlite.Text, sqlite.BigInt}},
		sqlite.Statement{SQL: dropUser, Params: []sqlite.Type{sqlite.BigInt}},
		sqlite.Statement{SQL: allUsers, Columns: []sqlite.Column{{Name: "id", Type: sqlite.BigInt}, {Name: "login", Type: sqlite.Text}, {Name: "name", Type: sqlite.Text}}},
		sqlite.Statement{SQL: rewrite, Params: []sqlite.Type{sqlite.Text, sqlite.BigInt}},
		sqlite.Statement{SQL: remove, Params: []sqlite.Type{sqlite.BigInt}},
	)
}

// topology says of each node by its index whom it gets changes from.
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

// cluster is several primaries.
type cluster struct {
	nodes    []*copyOf
	topology topology
}

// startPrimaries starts three primaries on copies of one database, connected.
func startPrimaries(t testing.TB, by topology, change func(*sqlite.Config)) *cluster {
	t.Helper()
	base := template(t)
	c := &cluster{topology: by}
	for i := range 3 {
		c.nodes = append(c.nodes, startNode(t, base, fmt.Sprint("db-", i+1), nil, func(cfg *sqlite.Config) {
			cfg.Statements, cfg.Replication.State.Several = notesAndUsers(), true
			if change != nil {
				change(cfg)
			}
		}))
		must(t, connect(t, c.nodes[i].Server), createUsers)
	}
	c.heal(t)
	return c
}

// heal connects all nodes.
func (c *cluster) heal(t testing.TB) {
	t.Helper()
	for i, n := range c.nodes {
		state := sut.Replication{Epoch: 1, Several: true}
		for _, j := range c.topology(i, len(c.nodes)) {
			state.Origins = append(state.Origins, *c.nodes[j].peer())
		}
		c.tell(t, n, state)
	}
}

// part lets no node get anything.
func (c *cluster) part(t testing.TB) {
	t.Helper()
	for _, n := range c.nodes {
		c.tell(t, n, sut.Replication{Epoch: 1, Several: true})
	}
}

func (c *cluster) tell(t testing.TB, n *copyOf, state sut.Replication) {
	t.Helper()
	n.cfg.Replication.State = state
	if err := n.Become(context.Background(), state); err != nil {
		t.Fatal(err)
	}
}

// settle waits until every node has every change, and checks that all are equal. It
// returns the statuses.
func (c *cluster) settle(t testing.TB) (all []sut.ReplicationStatus) {
	t.Helper()
	statuses := func() (all []sut.ReplicationStatus) {
		for _, n := range c.nodes {
			all = append(all, n.ReplicationStatus())
		}
		return all
	}
	all = awaitUntil(t, "all nodes have everything", statuses, func(all []sut.ReplicationStatus) bool {
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
			t.Errorf("%s counts %d conflicts, %s %d", s.Node, s.Conflicts, all[0].Node, all[0].Conflicts)
		}
		if !s.Primary || !s.Serves {
			t.Errorf("a node says %+v", s)
		}
	}
	return all
}

// dump is all that a node has.
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

func forTopologies(t *testing.T, test func(*testing.T, topology)) {
	t.Parallel()
	for name, by := range topologies() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, by)
		})
	}
}

// TestMultiPrimary: each change of three nodes arrives at all of them, exactly
// once, also while one of them is away and comes back.
func TestMultiPrimary(t *testing.T) {
	forTopologies(t, func(t *testing.T, by topology) {
		c := startPrimaries(t, by, nil)
		write := func(round int, nodes ...int) {
			for _, node := range nodes {
				conn := connect(t, c.nodes[node].Server)
				for i := range 50 {
					must(t, conn, insert, 1000*(node+1)+100*round+i, 0, "note")
				}
			}
		}
		write(0, 0, 1, 2)
		all := c.settle(t)
		for _, s := range all {
			if s.Position != 150 || s.Conflicts != 0 || len(s.Applied) != 2 || s.LagNS < 0 {
				t.Errorf("a node says %+v", s)
			}
			for node, applied := range s.Applied {
				if applied != 50 {
					t.Errorf("%s has %d changes of %s", s.Node, applied, node)
				}
			}
		}
		c.nodes[1].kill(t)
		c.nodes[2].await(t, "the loss is seen", func(s sut.ReplicationStatus) bool { return !s.Connected && s.Problem != "" })
		write(1, 0, 2)
		c.nodes[1].start(t)
		write(1, 1)
		for _, s := range c.settle(t) {
			if s.Position != 300 || s.Conflicts != 0 {
				t.Errorf("a node says %+v", s)
			}
		}
		if n := len(c.dump(t, 0)); n != 310 {
			t.Errorf("%d notes, want 310", n)
		}
	})
}

// TestMultiPrimaryPartition: both sides write the same rows, and when they meet the later
// write of each has won on all.
func TestMultiPrimaryPartition(t *testing.T) {
	forTopologies(t, func(t *testing.T, by topology) {
		c := startPrimaries(t, by, nil)
		first, second := connect(t, c.nodes[0].Server), connect(t, c.nodes[1].Server)
		must(t, first, insert, 20, 0, "for all")
		c.settle(t)
		c.part(t)
		must(t, first, rewrite, "earlier", 1)
		must(t, first, rewrite, "of the first alone", 2)
		must(t, first, grow, 5, 3) // the other one changes another column
		must(t, first, insert, 100, 1, "earlier")
		must(t, first, remove, 4) // and is updated later
		must(t, second, rewrite, "later", 1)
		must(t, second, rewrite, "text", 3)
		must(t, second, insert, 100, 2, "later")
		must(t, second, rewrite, "lives", 4)
		must(t, second, rewrite, "earlier", 5)
		must(t, first, remove, 5)
		must(t, first, rewrite, "later", 6)
		must(t, second, grow, 1, 20)
		must(t, second, rewrite, "grown", 20)
		c.heal(t)
		all := c.settle(t)
		if all[2].Conflicts != 5 { // notes 1, 3, 100, 4, 5
			t.Errorf("%d conflicts, want 5", all[2].Conflicts)
		}
		// A note is shown as id, size, text without spaces between the numbers.
		want := []string{
			"00seeded", "10later", "1002later", "20of the first alone", "201grown", "30text", "40lives", "60later", "70seeded", "80seeded", "90seeded",
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

// TestMultiPrimaryLogins: names that must be unique are given twice on both sides of a
// partition. The later one has it everywhere, and the other one comes back when it
// is free.
func TestMultiPrimaryLogins(t *testing.T) {
	forTopologies(t, func(t *testing.T, by topology) {
		c := startPrimaries(t, by, nil)
		first, second, third := connect(t, c.nodes[0].Server), connect(t, c.nodes[1].Server), connect(t, c.nodes[2].Server)
		must(t, first, addUser, 1, "ann", "1")
		must(t, first, addUser, 2, "bob", "2")
		c.settle(t)
		c.part(t)
		must(t, first, addUser, 11, "cid", "earlier")
		must(t, second, addUser, 12, "cid", "later")
		must(t, third, rename, "dan", 1)
		must(t, third, addUser, 13, "ann", "after the other has left the name")
		must(t, third, callUser, "waits", 13)
		c.heal(t)
		if all := c.settle(t); all[0].Conflicts != 1 {
			t.Errorf("%d conflicts, want 1", all[0].Conflicts)
		}
		users := func(i int) string {
			return strings.Join(slices.DeleteFunc(c.dump(t, i), func(s string) bool { return !strings.HasPrefix(s, "user") }), ",")
		}
		if got := users(0); strings.Contains(got, "earlier") || !strings.Contains(got, "later") || strings.Count(got, "user") != 4 {
			t.Errorf("the users are %s", got)
		}
		_, err := third.Exec(context.Background(), addUser, 14, "cid", "a third one")
		wantState(t, "a name that is taken", err, "23505")
		must(t, third, dropUser, 12)
		for _, s := range c.settle(t) {
			if s.Conflicts != 0 {
				t.Errorf("%s has %d conflicts when nobody is hidden any more", s.Node, s.Conflicts)
			}
		}
		if got := users(1); !strings.Contains(got, "earlier") {
			t.Errorf("who was hidden is not back: %s", got)
		}
	})
}

// TestMultiPrimaryRandomTransactions runs 1,000 random transactions on each of three
// nodes at the same time, on few rows, while one of them is killed and restarted
// twice.
func TestMultiPrimaryRandomTransactions(t *testing.T) {
	const seed = 11
	forTopologies(t, func(t *testing.T, by topology) {
		c := startPrimaries(t, by, nil)
		var writers errgroup.Group
		for i := range c.nodes {
			random := rand.New(rand.NewPCG(seed, uint64(i)))
			if i == 1 {
				continue
			}
			conn := connect(t, c.nodes[i].Server)
			writers.Go(func() error { return writeRandomly(conn, random, 1000) })
		}
		random := rand.New(rand.NewPCG(seed, 1))
		for part := range 5 {
			conn := connect(t, c.nodes[1].Server)
			if err := writeRandomly(conn, random, 200); err != nil {
				t.Fatal(err)
			}
			if part%2 == 1 {
				c.nodes[1].kill(t)
				c.nodes[1].start(t)
			}
		}
		if err := writers.Wait(); err != nil {
			t.Fatal(err)
		}
		all := c.settle(t)
		if all[0].Conflicts == 0 {
			t.Errorf("no conflicts with seed %d: %+v", seed, all[0])
		}
		t.Logf("seed %d: %d entries, %d conflicts", seed, all[0].Position, all[0].Conflicts)
	})
}

// writeRandomly changes few rows at random. What a UNIQUE key refuses is no error.
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
				batch.Queue(remove, id)
			case 2:
				batch.Queue(grow, random.IntN(5), id)
			case 3:
				batch.Queue(rewrite, text, id)
			case 4:
				batch.Queue(addUser, id, login, text)
			case 5:
				batch.Queue(rename, login, id)
			case 6:
				batch.Queue(callUser, text, id)
			case 7:
				batch.Queue(dropUser, id)
			}
		}
		err := conn.SendBatch(context.Background(), batch).Close()
		if s := state(err); s != "" && s != "23505" {
			return err
		}
	}
	return nil
}

// TestMultiPrimarySnapshot: who is away for longer than the logs reach back, or has
// nothing at all, gets a whole database, and what it alone has comes to the others.
func TestMultiPrimarySnapshot(t *testing.T) {
	forTopologies(t, func(t *testing.T, by topology) {
		c := startPrimaries(t, by, func(cfg *sqlite.Config) { cfg.Replication.KeepEntries = 16 })
		first, second := connect(t, c.nodes[0].Server), connect(t, c.nodes[1].Server)
		must(t, second, insert, 99, 0, "early")
		c.settle(t)
		c.part(t)
		must(t, second, insert, 100, 0, "of the one that is away")
		must(t, second, rewrite, "earlier", 1)
		must(t, second, rewrite, "stays", 2)
		c.nodes[1].kill(t)
		for i := range 100 {
			must(t, first, insert, 1000+i, 0, "meanwhile")
		}
		must(t, first, rewrite, "later", 1)
		c.nodes[1].start(t)
		c.heal(t)
		all := c.settle(t)
		if all[1].Rebuilds != 1 || all[0].Rebuilds != 0 || all[0].Conflicts != 1 {
			t.Errorf("the nodes say %+v", all)
		}
		if got := strings.Join(c.dump(t, 2), ","); strings.Contains(got, "earlier") || !strings.Contains(got, "stays") || !strings.Contains(got, "away") || strings.Count(got, "meanwhile") != 100 {
			t.Errorf("the notes are %s", got)
		}
		// A new database under an old name.
		c.nodes[2].kill(t)
		c.nodes[2].dir = t.TempDir()
		c.nodes[2].cfg.Dir = c.nodes[2].dir
		c.nodes[2].start(t)
		c.settle(t)
		for i, n := range c.nodes {
			must(t, connect(t, n.Server), insert, 5000+i, 0, "afterwards")
		}
		if all := c.settle(t); all[2].Rebuilds != 1 || all[1].Rebuilds != 1 {
			t.Errorf("the nodes say %+v", all)
		}
	})
}

// TestMultiPrimaryCannotReturn: changes that were made here and are in no log any more
// would be lost with a snapshot. The node says so and stays as it is.
func TestMultiPrimaryCannotReturn(t *testing.T) {
	forTopologies(t, func(t *testing.T, by topology) {
		c := startPrimaries(t, by, func(cfg *sqlite.Config) { cfg.Replication.KeepEntries = 16 })
		c.part(t)
		first, second := connect(t, c.nodes[0].Server), connect(t, c.nodes[1].Server)
		for i := range 50 {
			must(t, first, insert, 1000+i, 0, "here")
			must(t, second, insert, 2000+i, 0, "there")
		}
		c.heal(t)
		status := c.nodes[1].await(t, "it says so", func(s sut.ReplicationStatus) bool { return strings.Contains(s.Problem, "in no log any more") })
		if status.Connected || status.Rebuilds != 0 || !status.Serves {
			t.Errorf("it says %+v", status)
		}
		if n := len(c.dump(t, 1)); n < 60 {
			t.Errorf("it has %d notes", n)
		}
	})
}

func TestMultiPrimaryRoles(t *testing.T) {
	t.Parallel()
	c := startPrimaries(t, topologies()["multi-primary"], nil)
	n := c.nodes[0]
	for name, to := range map[string]sut.Replication{
		"an old epoch":    {Epoch: 0, Several: true},
		"the only one":    {Epoch: 9},
		"a replica":       {Epoch: 9, Primary: c.nodes[1].peer()},
		"replica and not": {Epoch: 9, Several: true, Primary: c.nodes[1].peer()},
	} {
		if err := n.Become(t.Context(), to); !errors.Is(err, sqlite.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := n.Become(t.Context(), sut.Replication{Epoch: 1, Several: true, Origins: []sut.Peer{*n.peer()}}); err == nil {
		t.Error("a node became its own origin")
	}
	if err := n.Become(t.Context(), sut.Replication{Epoch: 3, Several: true}); err != nil {
		t.Error(err)
	}
	if s := n.ReplicationStatus(); s.Epoch != 3 || !s.Primary || !s.Connected || s.Conflicts != 0 {
		t.Errorf("it says %+v", s)
	}
	// It comes back with what it was told at birth.
	n.kill(t)
	n.start(t)
	if err := n.Become(t.Context(), sut.Replication{Epoch: 2, Several: true}); !errors.Is(err, sqlite.ErrRefused) {
		t.Errorf("an epoch below the known one: %v", err)
	}
	alone := startNode(t, template(t), "db-1", nil, nil)
	if err := alone.Become(t.Context(), sut.Replication{Epoch: 2, Several: true}); !errors.Is(err, sqlite.ErrRefused) {
		t.Errorf("a lone primary became one of several: %v", err)
	}
	// One of several does not get changes from one that is alone, and a replica
	// none from one of several.
	state := sut.Replication{Epoch: 3, Several: true, Origins: []sut.Peer{*alone.peer()}}
	if err := c.nodes[1].Become(t.Context(), state); err != nil {
		t.Fatal(err)
	}
	c.nodes[1].await(t, "it is not let in", func(s sut.ReplicationStatus) bool { return !s.Connected && s.Problem != "" })
	replica := startNode(t, template(t), "db-9", n, nil)
	replica.await(t, "it is refused", func(s sut.ReplicationStatus) bool { return strings.Contains(s.Problem, "one of several") })
}
