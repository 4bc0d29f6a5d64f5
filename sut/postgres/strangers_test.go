package postgres

import (
	"bufio"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/stagebench/stagebench/sut"
)

// TestStrangers checks who can log in to a primary, and what its roles cannot do.
func TestStrangers(t *testing.T) {
	t.Parallel()
	server := newCopy(t, filepath.Join(t.TempDir(), "data"), "db-1", Replication{State: sut.Replication{Epoch: 1}})
	process := start(t, server)
	query(t, server, "CREATE TABLE t (id bigint PRIMARY KEY)", nil)
	before := protected(t, server)
	if got, want := before["memberships"], nodeUser+" in pg_checkpoint, "+nodeUser+" in pg_monitor"; got != want {
		t.Errorf("memberships %q, want %q", got, want)
	}
	checkLogins(t, server)
	checkRights(t, server)
	if diff := cmp.Diff(before, protected(t, server)); diff != "" {
		t.Error("changed (-before +after):\n" + diff)
	}
	for _, want := range []string{
		`password authentication failed for user "stagebench"`, `no pg_hba.conf entry for host`,
		`no pg_hba.conf entry for replication connection`,
	} {
		if !strings.Contains(process.log(), want) {
			t.Errorf("the log does not contain %q", want)
		}
	}
}

func checkLogins(t *testing.T, server *Server) {
	t.Helper()
	for name, test := range map[string]struct {
		role, password, database, replication, want string
	}{
		"no password":                {User, "", Database, "", "28P01"},
		"wrong password":             {User, "x", Database, "", "28P01"},
		"wrong password of the node": {nodeUser, "x", Database, "", "28P01"},
		"the superuser":              {adminUser, string(secret), Database, "", "28000"},
		"user postgres":              {"postgres", string(secret), Database, "", "28000"},
		"another database":           {User, string(secret), "template1", "", "28000"},
		"another database, the node": {nodeUser, string(secret), "postgres", "", "28000"},
		"a replica, no password":     {nodeUser, "", "replication", "true", "28P01"},
		"a replica, wrong password":  {nodeUser, "x", "replication", "true", "28P01"},
		"a replica, as a client":     {User, string(secret), "replication", "true", "28000"},
		"a replica, the superuser":   {adminUser, string(secret), "replication", "true", "28000"},
		"the client":                 {User, string(secret), Database, "", ""},
		"the node":                   {nodeUser, string(secret), Database, "", ""},
		"the node as a replica":      {nodeUser, string(secret), "replication", "true", ""},
	} {
		if got := logIn(t, server, test.role, test.password, test.database, test.replication); got != test.want {
			t.Errorf("%s: SQLSTATE %q, want %q", name, got, test.want)
		}
	}
}

func checkRights(t *testing.T, server *Server) {
	t.Helper()
	touched := filepath.Join(server.dir, "touched")
	for _, sql := range []string{
		"COPY t FROM PROGRAM 'touch " + touched + "'",
		"COPY (SELECT 1) TO '" + touched + "'",
		"COPY t FROM '/etc/hostname'",
		"SELECT pg_read_file('pg_hba.conf')",
		"SELECT pg_ls_dir('.')",
		"SELECT lo_import('/etc/hostname')",
		"SELECT rolpassword FROM pg_authid",
		"CREATE ROLE stranger",
		"CREATE DATABASE stranger",
		"ALTER ROLE " + User + " SUPERUSER",
		"ALTER ROLE " + adminUser + " PASSWORD 'x'",
		"SET ROLE " + adminUser,
		"GRANT pg_execute_server_program TO " + User,
		"ALTER SYSTEM SET synchronous_standby_names = ''",
		"CREATE FUNCTION f() RETURNS int LANGUAGE c AS 'libc', 'getpid'",
		"SELECT pg_switch_wal()",
		"CREATE OR REPLACE FUNCTION stagebench_replication.marker() RETURNS text LANGUAGE sql RETURN ''",
	} {
		for _, role := range []string{User, nodeUser} {
			if got := sqlState(t, server, role, sql); got != "42501" { // insufficient_privilege
				t.Errorf("%s: %s: SQLSTATE %q, want 42501", role, sql, got)
			}
		}
	}
	for role, statements := range map[string][]string{
		User: {
			"SELECT stagebench_replication.marker()", "SELECT pg_promote(false)", "SELECT pg_reload_conf()",
			"SELECT pg_ls_waldir()", "UPDATE stagebench_replication.beat SET at_us = 1", "CHECKPOINT",
			"ALTER ROLE " + nodeUser + " PASSWORD 'x'", "SET ROLE " + nodeUser,
		},
		nodeUser: {
			"SELECT * FROM t", "CREATE TABLE s (id int)", "DELETE FROM stagebench_replication.beat",
			"ALTER ROLE " + User + " PASSWORD 'x'", "SET ROLE " + User,
		},
	} {
		for _, sql := range statements {
			if got := sqlState(t, server, role, sql); got != "42501" {
				t.Errorf("%s: %s: SQLSTATE %q, want 42501", role, sql, got)
			}
		}
	}
	if _, err := os.Stat(touched); !os.IsNotExist(err) {
		t.Errorf("the file of a refused statement: %v", err)
	}
}

// logIn returns the SQLSTATE with which the server refuses a login; "" = it succeeds.
func logIn(t testing.TB, server *Server, role, password, database, replication string) string {
	t.Helper()
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(role, password), Host: server.Address(), Path: database,
		RawQuery: "sslmode=disable",
	}
	config, err := pgconn.ParseConfig(u.String())
	if err != nil {
		t.Fatal(err)
	}
	if replication != "" {
		config.RuntimeParams["replication"] = replication
	}
	conn, err := pgconn.ConnectConfig(t.Context(), config)
	if err != nil {
		refused, isRefused := errors.AsType[*pgconn.PgError](err)
		if !isRefused {
			t.Fatal(err)
		}
		return refused.Code
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Error(err)
	}
	return ""
}

// protected returns what no client may change: configuration files, roles and memberships.
func protected(t testing.TB, server *Server) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, name := range []string{"pg_hba.conf", "postgresql.conf", "postgresql.auto.conf", markerName, secretName} {
		text, err := os.ReadFile(filepath.Join(server.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		found[name] = string(text)
	}
	for name, sql := range map[string]string{
		"roles": "SELECT string_agg(r::text, ' ' ORDER BY rolname) FROM pg_roles r",
		"memberships": "SELECT string_agg(concat(member::regrole, ' in ', roleid::regrole), ', ' " +
			"ORDER BY roleid::regrole::text) FROM pg_auth_members WHERE member::regrole::text LIKE 'stagebench%'",
		"databases": "SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database",
		"functions": "SELECT string_agg(p::text, ' ') FROM pg_proc p WHERE proname = 'marker'",
	} {
		var text string
		query(t, server, sql, nil, &text)
		found[name] = text
	}
	if len(found["roles"]) == 0 || !strings.Contains(found["functions"], "search_path=pg_catalog") {
		t.Fatalf("roles %q, functions %q", found["roles"], found["functions"])
	}
	return found
}

// TestSecret checks when a start sets the passwords.
func TestSecret(t *testing.T) {
	t.Parallel()
	server := newServer(t, filepath.Join(t.TempDir(), "data"))
	process := start(t, server)
	query(t, server, "CREATE TABLE t (id bigint PRIMARY KEY)", nil)
	process.stop(t, server)

	checkpoint := func(s *Server) int64 {
		t.Helper()
		c, err := s.readControl(t.Context(), s.dir)
		if err != nil {
			t.Fatal(err)
		}
		return c.checkpoint
	}
	stopped := checkpoint(server)
	if err := server.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := checkpoint(server); got != stopped {
		t.Errorf("a restart with the same secret wrote to the database: its checkpoint moved from %d to %d", stopped, got)
	}

	// The directory of a killed server gets another secret.
	process = start(t, server)
	query(t, server, "INSERT INTO t VALUES (1)", nil)
	process.kill(t)
	other := New(server.cfg)
	other.cfg.Secret = "another secret"
	start(t, other)
	var rows int
	query(t, other, "SELECT count(*) FROM t", nil, &rows)
	if rows != 1 {
		t.Errorf("%d rows after a kill and a start with another secret, want 1", rows)
	}
	for _, role := range []string{User, nodeUser} {
		if got := logIn(t, other, role, string(secret), Database, ""); got != "28P01" {
			t.Errorf("%s with the old secret: SQLSTATE %q, want 28P01", role, got)
		}
		if got := logIn(t, other, role, "another secret", Database, ""); got != "" {
			t.Errorf("%s with the new secret: SQLSTATE %q, want none", role, got)
		}
	}
	if info, err := os.Stat(other.dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("data directory: %v, %v, want mode 0700", info, err)
	}
}

// TestKilledWithOnePassword kills a start after it has set the first of two passwords.
func TestKilledWithOnePassword(t *testing.T) {
	t.Parallel()
	server := newServer(t, filepath.Join(t.TempDir(), "data"))
	start(t, server).stop(t, server)
	server.cfg.Secret = "another secret"
	v, err := verifier(server.cfg.Secret)
	if err != nil {
		t.Fatal(err)
	}
	single := server.command(t.Context(), "postgres", "--single", "-D", server.dir, Database)
	input, err := single.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	output, err := single.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := single.Start(); err != nil {
		t.Fatal(err)
	}
	_, err = fmt.Fprintf(input, "ALTER ROLE %s PASSWORD '%s'\nSELECT 'first' AS done\n", User, v)
	if err != nil {
		t.Fatal(err)
	}
	reached := false
	for lines := bufio.NewScanner(output); !reached && lines.Scan(); {
		reached = strings.Contains(lines.Text(), `done = "first"`)
	}
	if err := single.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = single.Wait() // killed
	if lock, err := readLock(server.dir); !reached || err != nil || lock.pid != single.Process.Pid {
		t.Fatalf("first password set: %v; lock file of the killed process: %+v, %v", reached, lock, err)
	}
	start(t, server)
	for _, role := range []string{User, nodeUser} {
		if got := logIn(t, server, role, "another secret", Database, ""); got != "" {
			t.Errorf("%s: SQLSTATE %q, want none", role, got)
		}
	}
}
