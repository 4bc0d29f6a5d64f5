package postgres

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stagebench/stagebench/sut"
)

// Roles besides User. adminUser is the superuser. It owns the catalogs, and nobody can log in as it: no rule of
// pg_hba.conf names it. nodeUser is the node's own role, also of its replicas.
const (
	adminUser = "stagebench_admin"
	nodeUser  = "stagebench_node"
)

// setup creates the roles and the database, one statement per line. It runs in the database template1, which CREATE
// DATABASE copies. nodeUser may read one file only, the marker.
const setup = `CREATE ROLE ` + User + ` LOGIN
CREATE ROLE ` + nodeUser + ` LOGIN REPLICATION
GRANT pg_monitor, pg_checkpoint TO ` + nodeUser + `
GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer), pg_reload_conf() TO ` + nodeUser + `
CREATE SCHEMA stagebench_replication
GRANT USAGE ON SCHEMA stagebench_replication TO ` + nodeUser + `
CREATE TABLE stagebench_replication.beat (id int PRIMARY KEY, at_us bigint NOT NULL)
INSERT INTO stagebench_replication.beat VALUES (1, 0)
GRANT SELECT, UPDATE ON stagebench_replication.beat TO ` + nodeUser + `
CREATE TABLE stagebench_replication.promotion (timeline int PRIMARY KEY, epoch bigint NOT NULL)
GRANT SELECT, INSERT, UPDATE ON stagebench_replication.promotion TO ` + nodeUser + `
CREATE FUNCTION stagebench_replication.marker() RETURNS text LANGUAGE sql SECURITY DEFINER ` +
	`SET search_path = pg_catalog RETURN pg_read_file('` + markerName + `')
REVOKE EXECUTE ON FUNCTION stagebench_replication.marker() FROM PUBLIC
GRANT EXECUTE ON FUNCTION stagebench_replication.marker() TO ` + nodeUser + `
CREATE DATABASE ` + Database + ` OWNER ` + User + `
`

// makeDir creates the data directory if it does not exist. It returns the path without
// symbolic links, which later checks compare with the paths that the kernel reports.
func makeDir(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return filepath.EvalSymlinks(path)
}

// isDataDir reports whether dir is a PostgreSQL data directory. It returns false for an
// empty directory, and an error for one with other files: those may be a user's.
func isDataDir(dir string) (bool, error) {
	initialized, err := exists(filepath.Join(dir, "PG_VERSION"))
	if initialized || err != nil {
		return initialized, err
	}
	entries, err := os.ReadDir(dir)
	if len(entries) > 0 {
		err = fmt.Errorf("holds %s and no PG_VERSION: it is neither empty nor a data directory\n"+
			"give an empty directory, or one that does not exist", entries[0].Name())
	}
	return false, err
}

// exists reports whether a file exists.
func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// buildDir calls build for a temporary directory and then renames it to the data
// directory. Without the rename, a data directory that an interruption left half made
// would look complete to the server, and its database would be missing.
func (s *Server) buildDir(build func(tempDir string) error) (err error) {
	tempDir := s.dir + ".new"
	if err := removeTempDir(tempDir); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeTempDir(tempDir))
		}
	}()
	if err := os.Mkdir(tempDir, 0o700); err != nil {
		return err
	}
	if err := s.owner.own(tempDir); err != nil {
		return err
	}
	if err := build(tempDir); err != nil {
		return err
	}
	// os.Rename refuses an existing directory. The system call replaces an empty one.
	return unix.Rename(tempDir, s.dir)
}

// create initializes a data directory with an empty database.
func (s *Server) create(ctx context.Context, tempDir string) error {
	s.cfg.Log.Info("creating a data directory", "dir", s.dir, "version", s.cfg.Install.Version)
	// No sync is needed here: an interrupted create starts again from nothing. The running
	// server syncs every commit.
	initdb := s.command(ctx, "initdb", "--pgdata="+tempDir, "--username="+adminUser, "--auth=reject",
		"--encoding=UTF8", "--locale=C", "--data-checksums", "--no-sync", "--no-instructions")
	if err := run(initdb, ""); err != nil {
		return err
	}
	return s.single(ctx, tempDir, "template1", setup)
}

// single runs statements, one per line, in single-user mode, as the superuser. That mode needs no port, no login and
// no wait for readiness. It recovers the directory of a killed server first.
func (s *Server) single(ctx context.Context, dir, database, statements string) error {
	// No replica runs yet, so a commit must not wait for one. An error must not show the statement: it may contain a
	// password.
	return run(s.command(ctx, "postgres", "--single", "-D", dir, "-c", "exit_on_error=on",
		"-c", "synchronous_commit=local", "-c", "log_min_error_statement=panic", database), statements)
}

// secretName is a file of a data directory. It contains the SHA-256 of the secret that is the password of the roles.
const secretName = "stagebench_secret.sha256"

// secretSum returns the content of that file for the secret of the configuration.
func (s *Server) secretSum() string {
	sum := sha256.Sum256([]byte(s.cfg.Secret))
	return hex.EncodeToString(sum[:]) + "\n"
}

// hasPasswords reports whether the roles in the data directory have the secret as their password.
func (s *Server) hasPasswords() (bool, error) {
	text, err := os.ReadFile(filepath.Join(s.dir, secretName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return string(text) == s.secretSum(), err
}

// setPasswords makes the secret the password of the roles, unless it already is. A template is made with the secret
// of another system.
func (s *Server) setPasswords(ctx context.Context) error {
	has, err := s.hasPasswords()
	if has || err != nil {
		return err
	}
	v, err := verifier(s.cfg.Secret)
	if err != nil {
		return err
	}
	var statements string
	for _, role := range []string{User, nodeUser} {
		statements += "ALTER ROLE " + role + " PASSWORD '" + v + "'\n"
	}
	if err := s.single(ctx, s.dir, Database, statements); err != nil {
		return err
	}
	return s.writeOwned(s.dir, secretName, s.secretSum())
}

// scramIterations is the number of hash iterations of a login. More of them slow down guesses of a password, and nobody
// can guess a secret. PostgreSQL's default of 4096 costs a client more than a millisecond of CPU per connection.
const scramIterations = 1

// verifier returns what the server stores in place of a password. So the password itself is in no statement.
// https://www.postgresql.org/docs/15/catalog-pg-authid.html, RFC 5802
func verifier(secret sut.Secret) (string, error) {
	salt := make([]byte, 16)
	_, _ = rand.Read(salt) // never fails
	salted, err := pbkdf2.Key(sha256.New, string(secret), salt, scramIterations, sha256.Size)
	if err != nil {
		return "", err
	}
	key := func(name string) []byte {
		mac := hmac.New(sha256.New, salted)
		mac.Write([]byte(name))
		return mac.Sum(nil)
	}
	stored := sha256.Sum256(key("Client Key"))
	text := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s",
		scramIterations, text(salt), text(stored[:]), text(key("Server Key"))), nil
}

// removeTempDir removes a temporary directory, and the shared memory segment of a killed
// server in it.
func removeTempDir(tempDir string) error {
	if err := ReleaseAll(tempDir); err != nil {
		return err
	}
	return os.RemoveAll(tempDir)
}

// run runs a command and waits for it and all processes that it starts. The error contains
// the last lines of the output.
func run(cmd *exec.Cmd, input string) error {
	var output bytes.Buffer
	// initdb starts servers. SIGTERM ends initdb, and its servers then shut down by
	// themselves. SIGKILL would leave their shared memory behind. The servers keep the
	// output open, so Wait waits for them, too. The separate process group keeps Ctrl-C at
	// the terminal from them.
	cmd.SysProcAttr.Setpgid = true
	// If this process is killed, the command must end: otherwise it would write to a
	// directory that a later process uses. The kernel sends Pdeathsig when the thread
	// that started the command ends, so the thread is locked.
	cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Stdin = strings.NewReader(input)
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(cmd.Path), err, lastLines(output.String(), 5))
	}
	return nil
}

// lastLines returns the last n lines of a text.
func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
