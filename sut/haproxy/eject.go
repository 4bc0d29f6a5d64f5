package haproxy

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// HAProxy's own ejection for responses ("observe layer7") also counts a 503. A web host sends one when the database is
// down, so all hosts would be ejected, also for requests that need no database. So HAProxy itself ejects only for
// failed connections. It counts the successful responses of each host in a table, and logs each failed response with
// that number. A Server ejects a host after EjectAfter failures with no success between them.

// successTable is the name of the backend that holds the table of successful responses. No backend of hosts has it.
const successTable = "successes"

// ejectTimeout bounds the commands that eject a host.
const ejectTimeout = time.Second

// ejects reports whether hosts are ejected for their responses.
func (c Config) ejects() bool { return c.EjectAfter > 0 && c.Layer == sut.Layer7 }

// renderSuccesses writes the rules of a backend that count successful responses. A 503 is neither success nor failure.
func renderSuccesses(f *file) {
	f.set("http-response track-sc0 srv_name table %s", successTable)
	f.set("http-response sc-inc-gpc0(0) unless { status 500 502 503 504 }")
}

// streaks counts the failures in a row of each host.
type streaks struct {
	mu    sync.Mutex
	slots map[string]streak // by slot
}

// streak is failures in a row.
type streak struct {
	successes uint64 // successful responses before the failures
	failures  int
}

// count adds a failure of a host and returns the number of failures in a row.
func (s *streaks) count(e logEntry) int {
	successes, err := strconv.ParseUint(e.Successes, 10, 64)
	if err != nil {
		return 0 // no host answered
	}
	if !failedStatus(e.Status) && successes > 0 {
		successes-- // its status was counted as a success before its body broke off
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.slots[e.Upstream]
	if now.successes != successes {
		now = streak{successes: successes}
	}
	now.failures++
	s.slots[e.Upstream] = now
	return now.failures
}

// reset forgets the failures of an ejected host.
func (s *streaks) reset(slot string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.slots, slot)
}

// hostFailed reports whether a request failed because of its host, after it was sent. The embedded balancer has the
// same rule. Failed connections are not among them: HAProxy counts these itself.
func (e logEntry) hostFailed() bool {
	byHost := len(e.End) == 2 && strings.Contains("Ss", e.End[:1]) && strings.Contains("HD", e.End[1:])
	return byHost || failedStatus(e.Status)
}

func failedStatus(status int) bool {
	return status == http.StatusInternalServerError || status == http.StatusBadGateway ||
		status == http.StatusGatewayTimeout
}

// judge counts a request if its host failed, and ejects the host after enough failures in a row.
func (h *Server) judge(e logEntry, node string) {
	if !h.cfg.ejects() || node == "" || !e.hostFailed() || h.streaks.count(e) < h.cfg.EjectAfter {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), ejectTimeout)
	defer cancel()
	ejected, err := h.eject(ctx, e.Upstream)
	switch {
	case err != nil:
		h.cfg.Log.Warn("a host that fails requests could not be ejected", "upstream", node, "error", err)
	case ejected:
		h.streaks.reset(e.Upstream)
		h.slots.ejected(node)
		h.cfg.Log.Warn("ejected a host", "upstream", node,
			"cause", fmt.Sprintf("%d consecutive failures", h.cfg.EjectAfter), slog.Int("status", e.Status))
	}
}

// eject marks a host down until its next passed health check. It does not eject a host that is down already, and not
// the last host that is up in a backend: a failing host is better than none.
func (h *Server) eject(ctx context.Context, slot string) (ejected bool, err error) {
	rows, err := h.rows(ctx)
	if err != nil {
		return false, err
	}
	up := func(row map[string]string) bool { return strings.HasPrefix(row["status"], "UP") }
	var commands []string
	for _, row := range rows {
		if row["svname"] != slot || !up(row) {
			continue
		}
		if !slices.ContainsFunc(rows, func(other map[string]string) bool {
			return other["pxname"] == row["pxname"] && other["svname"] != slot && other["svname"] != "BACKEND" && up(other)
		}) {
			return false, nil
		}
		commands = append(commands, fmt.Sprintf("set server %s/%s health down", row["pxname"], slot))
	}
	if commands == nil {
		return false, nil
	}
	return true, h.execute(ctx, commands)
}
