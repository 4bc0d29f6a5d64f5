package main

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/table"
)

// The error of exit status 3 gives a reason that makes the measurement invalid. A step can
// also have warnings that do not.
func TestWhyAnAttackIsInvalid(t *testing.T) {
	step := results.Step{Warnings: []string{"node web-1 did not answer"}}
	step.Ledger.Scheduled = 1
	results.Judge(&step, results.DefaultSLO(), results.Evidence{})
	err := attackOptions{format: string(table.FormatText)}.conclude(t.Context(), streams{out: io.Discard}, step, nil)
	if err == nil || !strings.Contains(err.Error(), "invalid: op counts do not add up") {
		t.Errorf("error %v, want the reason why the step is invalid", err)
	}
}

// attackOutput runs `stagebench attack` and returns what it printed on stdout and stderr, and its exit status.
func attackOutput(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out, problems bytes.Buffer
	cmd := exec.CommandContext(t.Context(), binary, append([]string{"attack"}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), problems.String(), cmd.ProcessState.ExitCode()
}

// Servers on the internet answer in ways that a load generator must report and not hide.
func TestAttackOddServers(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.RequestURI() {
		case "/moved":
			http.Redirect(w, r, "/elsewhere", http.StatusMovedPermanently)
		case "/find?q=two%20words":
		case "/longer":
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more")
			_, _ = io.Copy(io.Discard, conn)
			_ = conn.Close()
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(server.Close)
	for name, c := range map[string]struct {
		args   []string
		status int
		want   string
	}{
		"a redirect":           {[]string{"--target", server.URL + "/moved"}, 0, "20 of 20 responses were redirects"},
		"a query with a space": {[]string{"--target", server.URL + "/find?q=two words"}, 0, "responses by status: 200: 20"},
		"a body that is longer than said": {
			[]string{"--target", server.URL + "/longer"}, 0, "the target sent bytes that belong to no response",
		},
		"no request": {
			[]string{"--target", server.URL + "/moved", "--rate", "0.1", "--schedule", "poisson"}, 2, "the schedule has no request within 1s",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			args := append([]string{"--duration", "1s", "--schedule", "constant", "--rate", "20"}, c.args...)
			stdout, stderr, status := attackOutput(t, args...)
			if status != c.status || !strings.Contains(stdout+stderr, c.want) {
				t.Errorf("exit status %d, want %d and %q\n%s%s", status, c.status, c.want, stdout, stderr)
			}
			if strings.Contains(stderr, "Unsolicited") {
				t.Errorf("stderr has a line of a library\n%s", stderr)
			}
		})
	}
}

// The zone of an IPv6 address is part of the address.
func TestAttackAddressWithZone(t *testing.T) {
	listener, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skipf("this machine has no IPv6: %v", err)
	}
	server := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(listener) }()
	defer func() { _ = server.Close() }()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	stdout, stderr, _ := attackOutput(t, "--target", "http://[::1%25lo]:"+port+"/", "--rate", "5", "--duration", "1s",
		"--schedule", "constant")
	if !strings.Contains(stdout, "responses by status: 404: 5") {
		t.Errorf("want 5 responses\n%s%s", stdout, stderr)
	}
}
