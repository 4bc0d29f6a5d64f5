package main

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/rundir"
)

// The error of exit status 3 gives a reason that makes the measurement invalid. A step can
// also have warnings that do not.
func TestWhyAnAttackIsInvalid(t *testing.T) {
	step := results.Step{Warnings: []string{"node web-1 did not answer"}}
	step.Ledger.Scheduled = 1
	results.Judge(&step, results.DefaultSLO(), results.Evidence{})
	err := attackVerdict(t.Context(), step, destination{endpoint: &url.URL{}}, false)
	if err == nil || !strings.Contains(err.Error(), "invalid: op counts do not add up") {
		t.Errorf("error %v, want the reason why the step is invalid", err)
	}
}

// attackOutput runs `stagebench attack`, see commandOutput.
func attackOutput(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	return commandOutput(t, append([]string{"attack"}, args...)...)
}

// commandOutput runs stagebench and returns what it printed on stdout and stderr, and its exit status.
func commandOutput(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out, problems bytes.Buffer
	cmd := exec.CommandContext(t.Context(), binary, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = t.TempDir(), &out, &problems
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
		args []string
		bad  bool
		want string
	}{
		"a redirect":           {[]string{server.URL + "/moved"}, false, "20 of 20 responses were redirects"},
		"a query with a space": {[]string{server.URL + "/find?q=two words"}, false, "responses by status: 200: 20"},
		"a body that is longer than said": {
			[]string{server.URL + "/longer"}, false, "the target sent bytes that belong to no response",
		},
		"no request": {
			[]string{server.URL, "--rate", "0.1", "--schedule", "poisson"}, true, "the schedule has no request within 1s",
		},
		"several URLs": {
			[]string{server.URL + "/find?q=two words", server.URL + "/moved", "--weights", "3,1"}, false, "get-moved",
		},
		"several services": {[]string{server.URL, "http://127.0.0.1:1/"}, true, "are two services"},
		"several URLs are named": {
			[]string{server.URL + "/find?q=two words", server.URL + "/moved"}, false, "get-find: GET /find?q=two%20words",
		},
		"a password in a further URL": {
			[]string{server.URL, strings.Replace(server.URL, "//", "//user:pw@", 1)}, true, "leave it out of the URL",
		},
		"too many weights": {[]string{server.URL, "--weights", "1,2"}, true, "--weights has 2 values"},
		"an infinite weight": {
			[]string{server.URL, server.URL + "/a", "--weights", "1,Inf"}, true, "want more than 0, and at most",
		},
		"an empty URL": {[]string{""}, true, "an empty URL"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			args := append([]string{"--duration", "1s", "--schedule", "constant", "--rate", "20"}, c.args...)
			stdout, stderr, status := attackOutput(t, args...)
			// On a busy machine, a measurement may be invalid.
			if (status == exit.WrongUsage) != c.bad || status != exit.Done && status != exit.Invalid && !c.bad ||
				!strings.Contains(stdout+stderr, c.want) {
				t.Errorf("exit status %d, want %q\n%s%s", status, c.want, stdout, stderr)
			}
			if strings.Contains(stderr, "Unsolicited") {
				t.Errorf("stderr has a line of a library\n%s", stderr)
			}
		})
	}
}

// If only a part of a trace lies within the duration, the attack says which, and why.
func TestAttackPartOfATrace(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(server.Close)
	log := filepath.Join(t.TempDir(), "access.csv")
	if err := os.WriteFile(log, []byte("time,path\n100,/a\n3700,/b\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const want = "only 1 of the 2 requests of access.csv are sent within 1s; its longest gap is 1h0m0s, after 0s"
	stdout, stderr, _ := attackOutput(t, server.URL, "--workload", "trace:"+log, "--duration", "1s", "--wide")
	if !strings.Contains(stdout, want) || !strings.Contains(stderr, want) {
		t.Errorf("want %q in the table and on stderr\n%s%s", want, stdout, stderr)
	}
	stdout, stderr, _ = attackOutput(t, server.URL, "--workload", "trace:"+log, "--max-gap", "10ms")
	if strings.Contains(stdout+stderr, "only") || !strings.Contains(stdout, "scheduled 2 = ") {
		t.Errorf("want the whole trace\n%s%s", stdout, stderr)
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

// Each exit status of an attack, and what the message says.
func TestAttackExitStatus(t *testing.T) {
	hold := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/missing":
			http.NotFound(w, r)
		case "/slow":
			select {
			case <-hold:
			case <-time.After(30 * time.Millisecond):
			}
		}
	}))
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(hold) })
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := "http://" + closed.Addr().String()
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args   []string
		status int
		want   string
	}{
		"success":      {[]string{server.URL}, exit.Done, "objective (SLO): p99<100ms,errors<0.1%"},
		"missed":       {[]string{server.URL + "/slow", "--slo", "p99<10ms"}, exit.Missed, "p99 > 10ms"},
		"all failed":   {[]string{server.URL + "/missing"}, exit.Missed, "all 40 requests failed: HTTP 404"},
		"dead port":    {[]string{dead}, exit.Missed, "nothing connected: connection refused\ncheck that"},
		"ended early":  {[]string{dead, "-d", "1h"}, exit.Missed, "so the attack ended early: connection refused"},
		"wrong usage":  {[]string{server.URL, "--target", dead}, exit.WrongUsage, "two targets"},
		"unknown flag": {[]string{server.URL, "--durration", "1s"}, exit.WrongUsage, `did you mean --duration?`},
		"wrong class": {
			[]string{server.URL, "--slo", "upload:p99<1s"}, exit.WrongUsage, `no workload has ops of class "upload"`,
		},
		"not writable": {[]string{server.URL, "--out", "/proc/run"}, exit.Failed, "choose another one with --out DIR"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			args := append([]string{"-d", "1s", "--schedule", "constant", "-r", "2400/m", "-c", "8"}, c.args...)
			stdout, stderr, status := attackOutput(t, args...)
			// On a busy machine, a measurement may be invalid.
			measured := c.status == exit.Done || name == "missed"
			if status != c.status && !(measured && status == exit.Invalid) || !strings.Contains(stdout+stderr, c.want) {
				t.Errorf("exit status %d, want %d and %q\n%s%s", status, c.status, c.want, stdout, stderr)
			}
		})
	}
}

// An attack leaves the directory of a run, which compare and Read take. Ctrl-C leaves an incomplete one, with the
// figures so far.
func TestAttackRun(t *testing.T) {
	first := make(chan struct{}, 1)
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		select {
		case first <- struct{}{}:
		default:
		}
	}))
	defer server.Close()
	h := startHarness(t, "attack", server.URL, "-d", "1s", "--format", "json")
	if err := h.cmd.Wait(); err != nil && h.cmd.ProcessState.ExitCode() != exit.Invalid {
		t.Fatalf("%v\n%s", err, h.output.String())
	}
	run, manifest, err := rundir.Read(filepath.Join(h.temp, "runs", "latest"))
	if err != nil {
		t.Fatal(err)
	}
	if !run.Complete || len(run.Cells) != 1 || run.Cells[0].Reference == nil || run.Cells[0].Workload != "get" ||
		run.Cells[0].Reference.Ledger.OK == 0 || manifest.Config["slo"] != "p99<100ms,errors<0.1%" {
		t.Errorf("run %+v\nmanifest %+v", run, manifest)
	}
	if files, err := filepath.Glob(filepath.Join(h.temp, "runs/*/cells/target/get/*")); err != nil || len(files) < 3 {
		t.Errorf("files %v, %v: want latency.hlog, timeline.csv and logs", files, err)
	}
	if compared := h.call(t, "compare", "runs/latest", "runs/latest"); !strings.Contains(compared, "target") {
		t.Errorf("compare does not show the attack\n%s", compared)
	}

	<-first
	interrupted := startHarness(t, "attack", server.URL, "-d", "1h", "--out", "runs/stopped")
	<-first
	if err := interrupted.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := interrupted.cmd.Wait(); interrupted.cmd.ProcessState.ExitCode() != exit.Interrupted {
		t.Errorf("%v, want exit status %d\n%s", err, exit.Interrupted, interrupted.output.String())
	}
	run, _, err = rundir.Read(filepath.Join(interrupted.temp, "runs", "stopped"))
	if err != nil || run.Complete || len(run.Cells) != 1 || run.Cells[0].Reference.Ledger.OK == 0 {
		t.Errorf("run %+v, %v: want an incomplete run with figures", run, err)
	}
	compared := h.call(t, "compare", "runs/latest", filepath.Join(interrupted.temp, "runs", "stopped"), "--format", "csv")
	if lines := strings.Split(compared, "\n"); len(lines) < 3 || strings.Contains(lines[1], notComplete) ||
		!strings.Contains(lines[2], notComplete) {
		t.Errorf("compare does not mark only the run that is not complete\n%s", compared)
	}
}
