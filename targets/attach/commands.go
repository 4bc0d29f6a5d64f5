package attach

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stagebench/stagebench/targets/proc"
)

const (
	downTimeout = time.Minute     // of the down command
	endGrace    = 5 * time.Second // from SIGTERM to SIGKILL of what the up command started
	pollPause   = 50 * time.Millisecond
	pollTimeout = 2 * time.Second // of one request
)

// Commands start and stop a target. They are commands of the shell.
type Commands struct {
	Up   string   `json:"up"`   // it may stay in the foreground, or end with status 0; "" = the target always runs
	Down string   `json:"down"` // runs after every Up, also after a failed one; "" = nothing to do
	Dir  string   `json:"dir"`  // where they run
	Env  []string `json:"env"`  // in addition to the environment of this process
	// Lock is a file. Up waits until nobody else has locked it: after a kill, the down command of the killed process may
	// still run. "" = no lock.
	Lock string `json:"lock"`
}

// Ready describes when a target is ready: its URL answers with a status below 500.
type Ready struct {
	URL      string
	Header   http.Header
	TLS      *tls.Config   // nil = the default
	Patience time.Duration // how long it is waited for
}

// Start runs the up command, and waits until the target is ready. Program is an executable that calls Serve, with its
// arguments: it runs the commands, so that the down command also runs if this process is killed. The output of the
// commands goes to target.log in the directory logs. Stop runs the down command and ends what the up command started.
// It returns an error if the up command failed, or the down command does. If Start returns an error, all of that is
// done.
func Start(
	ctx context.Context, program string, args []string, c Commands, ready Ready, logs string,
) (stop func(context.Context) error, err error) {
	if c.Up == "" {
		return nil, ready.await(ctx, nil)
	}
	document, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(logs, "target.log"))
	if err != nil {
		return nil, err
	}
	// It is ready at once, and must not be killed before its down command has run.
	p, err := proc.Start(context.WithoutCancel(ctx), proc.Spec{
		Name: "up command", Path: program, Args: args, Stdin: append(document, '\n'), Log: log,
		ReadyTimeout: 2 * downTimeout, StopTimeout: downTimeout + 2*endGrace,
		Launch: func(cmd *exec.Cmd) error { return cmd.Start() },
	})
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	stop = func(ctx context.Context) error {
		exit := p.Stop(ctx)
		err := log.Close()
		if !exit.Clean() {
			err = errors.Join(fmt.Errorf("the target failed after it was ready: %s%s", exit.Cause, tail(exit)), err)
		}
		return err
	}
	if err := ready.await(ctx, p); err != nil {
		exit := p.Stop(context.WithoutCancel(ctx))
		return nil, errors.Join(fmt.Errorf("%w%s", err, tail(exit)), log.Close())
	}
	return stop, nil
}

// tail returns the end of the log of the commands, for an error.
func tail(exit proc.Exit) string {
	if len(exit.Tail) == 0 {
		return "\nthe commands printed nothing"
	}
	return "\nthe commands printed:\n  " + strings.Join(exit.Tail, "\n  ")
}

// await waits until the target is ready. P runs the up command; nil = there is none.
func (r Ready) await(ctx context.Context, p *proc.Process) error {
	transport := &http.Transport{TLSClientConfig: r.TLS, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{
		Transport: transport, Timeout: pollTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	patience := time.NewTimer(r.Patience)
	defer patience.Stop()
	again := time.NewTicker(pollPause)
	defer again.Stop()
	var done <-chan struct{} // nil blocks for ever
	if p != nil {
		done = p.Done()
	}
	for {
		err := r.answers(ctx, client)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-done:
			return errors.New("the up command failed before the target answered")
		case <-patience.C:
			return fmt.Errorf("%s did not answer within %v: %w", r.URL, r.Patience, err)
		case <-again.C:
		}
	}
}

// answers returns why the target is not ready, nil if it is.
func (r Ready) answers(ctx context.Context, client *http.Client) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL, nil)
	if err != nil {
		return err
	}
	for name, values := range r.Header {
		request.Header[name] = values
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 1<<20)) // only the status counts
	_ = response.Body.Close()
	if response.StatusCode >= http.StatusInternalServerError {
		return fmt.Errorf("status %s", response.Status)
	}
	return nil
}

// Serve runs the commands that in begins with. It prints a line when the up command was started, and waits until in or
// ctx ends, or the up command fails. Then it runs the down command, and ends all descendants of this process. It must
// be the main function of a process of its own.
func Serve(ctx context.Context, in io.Reader, out io.Writer, log io.Writer) error {
	decoder := json.NewDecoder(in)
	var c Commands
	if err := decoder.Decode(&c); err != nil {
		return fmt.Errorf("read the commands: %w", err)
	}
	// Daemons of the up command become children of this process instead of leaving it.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("keep hold of what the up command starts: %w", err)
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_, _ = io.Copy(io.Discard, in) // it ends with the parent at the latest
	}()
	// The parent may be gone, and nobody reads the output then. Without this, Go ends a process that writes to a closed
	// standard output.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	select {
	case <-ctx.Done():
		return nil
	case <-closed:
		return nil // nothing was started
	default:
	}
	parent := os.Getppid()
	up := c.command(context.Background(), c.Up, log)
	if err := up.Start(); err != nil {
		return fmt.Errorf("start the up command: %w", err)
	}
	_, _ = fmt.Fprintln(out, "started") // the parent reads it, unless it has ended
	failed := make(chan error, 1)
	go func() {
		if err := up.Wait(); err != nil {
			failed <- fmt.Errorf("the up command: %w", err)
		}
	}()
	select {
	case <-ctx.Done():
	case <-closed:
	case err = <-failed:
	}
	if c.Down != "" {
		downContext, cancel := context.WithTimeout(context.WithoutCancel(ctx), downTimeout)
		defer cancel()
		if os.Getppid() != parent { // it was killed, and a command that prints to its pipe would be ended
			log = io.Discard
		}
		if failed := c.command(downContext, c.Down, log).Run(); failed != nil {
			err = errors.Join(err, fmt.Errorf("the down command: %w", failed))
		}
	}
	endDescendants()
	return err
}

// lock waits for the lock.
func (c Commands) lock() (unlock func(), err error) {
	if c.Lock == "" {
		return func() {}, nil
	}
	f, err := os.OpenFile(c.Lock, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", c.Lock, err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// command returns a command that can be started.
func (c Commands) command(ctx context.Context, text string, log io.Writer) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "sh", "-c", text)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = c.Dir, append(os.Environ(), c.Env...), log, log
	return cmd
}

// endDescendants ends all descendants of this process: first with SIGTERM, and what is left after a time with SIGKILL.
func endDescendants() {
	for _, pid := range descendants() {
		_ = syscall.Kill(pid, syscall.SIGTERM)
	}
	grace := time.Now().Add(endGrace)
	again := time.NewTicker(pollPause)
	defer again.Stop()
	for left := descendants(); len(left) > 0 && time.Now().Before(grace.Add(endGrace)); left = descendants() {
		if time.Now().After(grace) {
			for _, pid := range left {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		<-again.C
	}
}

// descendants lists the running descendants of this process.
func descendants() (found []int) {
	entries, _ := os.ReadDir("/proc")
	parents := map[int]int{}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if stat, err := proc.ReadStat("/", pid); err == nil && stat.State != 'Z' {
			parents[pid] = stat.Parent
		}
	}
	family := []int{os.Getpid()}
	for i := 0; i < len(family); i++ {
		for pid, parent := range parents {
			if parent == family[i] && !slices.Contains(family, pid) {
				family = append(family, pid)
			}
		}
	}
	return family[1:]
}
