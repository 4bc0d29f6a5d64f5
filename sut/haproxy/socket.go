package haproxy

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// ask sends one command to the server's stats socket and returns the answer.
func (h *Server) ask(ctx context.Context, command string) (string, error) {
	// The path of a socket may have 107 bytes, the directory's may be longer:
	// the way leads through its file descriptor.
	dir, err := os.Open(h.cfg.Dir)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	path := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketName)
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return "", fmt.Errorf("stats socket: %w", err)
	}
	defer conn.Close()
	// Unblocks what follows when the caller gives up.
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	var answer []byte
	if _, err = io.WriteString(conn, command+"\n"); err == nil {
		answer, err = io.ReadAll(conn)
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("stats socket: %w", err), context.Cause(ctx))
	}
	return string(answer), nil
}

// rows asks for the server's statistics: one row for each frontend, backend and
// host, by the names of the columns.
func (h *Server) rows(ctx context.Context) ([]map[string]string, error) {
	text, err := h.ask(ctx, "show stat")
	if err != nil {
		return nil, err
	}
	return parseStat(text)
}

// parseStat reads the answer to "show stat". Source: HAProxy, Management Guide,
// section 9.1, Statistics and monitoring: CSV format.
func parseStat(text string) ([]map[string]string, error) {
	records, err := csv.NewReader(strings.NewReader(strings.TrimPrefix(text, "# "))).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("statistics: %w", err)
	}
	if len(records) == 0 {
		return nil, errors.New("statistics: the server said nothing")
	}
	var rows []map[string]string
	for _, record := range records[1:] {
		row := map[string]string{}
		for i, name := range records[0] {
			row[name] = record[i]
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// fill reads a status out of the server's statistics.
func (p *places) fill(s *sut.BalancerStatus, rows []map[string]string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var failed error
	hosts := map[string]*sut.UpstreamStatus{}
	frontend := false
	for _, values := range rows {
		row := statRow{values, &failed}
		switch values["svname"] {
		case "FRONTEND":
			frontend = true
			fillFrontend(s, row)
		case "BACKEND":
			s.Redispatches += row.number("wredis")
			if s.Layer == sut.Layer4 {
				connections(s).Failed += row.number("econ")
			}
		default:
			node := p.holder(values["svname"])
			member := p.member(node)
			if node == "" || !member && row.number("scur") == 0 {
				continue
			}
			if hosts[node] == nil {
				hosts[node] = &sut.UpstreamStatus{Node: node, Address: p.peers[node].Address, Draining: !member}
			}
			add(hosts[node], row, p.joined[values["pxname"]+"/"+values["svname"]])
		}
	}
	for _, node := range p.nodes {
		if u := hosts[node]; u != nil {
			if u.Up {
				u.Cause, u.Ejected = "", false
			}
			s.Upstreams = append(s.Upstreams, *u)
		}
	}
	if failed == nil && !frontend {
		failed = errors.New("statistics: no frontend")
	}
	return failed
}

// statRow is a row of the server's statistics.
type statRow struct {
	values map[string]string
	failed *error // the first that went wrong, of all rows
}

// number reads a column.
func (r statRow) number(column string) uint64 {
	n, err := strconv.ParseUint(r.values[column], 10, 64)
	if err != nil && *r.failed == nil {
		*r.failed = fmt.Errorf("statistics: %s of %s: %w", column, r.values["svname"], err)
	}
	return n
}

// fillFrontend reads what clients did.
func fillFrontend(s *sut.BalancerStatus, row statRow) {
	if s.Layer == sut.Layer4 {
		c := connections(s)
		c.Accepted, c.Active = row.number("stot"), int(row.number("scur"))
		c.BytesIn, c.BytesOut = row.number("bin"), row.number("bout")
		return
	}
	s.Responses = map[string]uint64{}
	for _, class := range []string{"1xx", "2xx", "3xx", "4xx", "5xx", "other"} {
		s.Responses[class] = row.number("hrsp_" + class)
	}
}

// add adds what a backend knows of a host that joined it so many times while the
// server ran.
func add(u *sut.UpstreamStatus, row statRow, joins uint64) {
	u.InFlight += int(row.number("scur"))
	u.Requests += row.number("stot")
	status := row.values["status"]
	if strings.HasPrefix(status, "MAINT") || strings.HasPrefix(status, "DRAIN") {
		return // in a backend that has no use for it
	}
	up := strings.HasPrefix(status, "UP")
	if u.Up = u.Up || up; !u.Up {
		u.Ejected = row.values["check_status"] == "HANA" // its answers were analysed, not its health
		u.Cause = strings.TrimSpace("health check: " + row.values["check_status"] + " " + row.values["last_chk"])
	}
	// To the server, a host that joins goes down once and then up.
	down := row.number("chkdown")
	u.WentDown = max(u.WentDown, down-min(down, joins))
	if !up {
		down = max(down, 1) - 1
	}
	u.WentUp = max(u.WentUp, down)
	if row.values["hanafail"] != "" { // only where answers are analysed
		u.Ejections = max(u.Ejections, row.number("hanafail"))
	}
}

// connections is where a balancer of layer 4 counts.
func connections(s *sut.BalancerStatus) *sut.ConnectionStatus {
	if s.Connections == nil {
		s.Connections = &sut.ConnectionStatus{}
	}
	return s.Connections
}

// logFormat is how the server writes a request into its log, for Printed to read.
// Source: HAProxy, Configuration Manual, section 8.2.4, Custom log format.
const logFormat = `{\"request_id\":\"%[var(txn.id)]\",\"method\":\"%HM\",\"path\":\"%[var(txn.path),json(utf8s)]\",` +
	`\"status\":%ST,\"upstream\":\"%s\",\"duration_ms\":%Ta,\"end\":\"%ts\"}`

// logEntry is what logFormat makes of a request.
type logEntry struct {
	RequestID  string `json:"request_id"`
	Method     string `json:"method"`
	Path       string `json:"path"`
	Status     int    `json:"status"`      // -1 when the client was sent none
	Upstream   string `json:"upstream"`    // the place, or "<NOSRV>"
	DurationMS int64  `json:"duration_ms"` // from the first byte of the request
	End        string `json:"end"`         // who ended it before its end, and when: "--" for nobody
}

// causes are the first letters of how a request ended. Source: HAProxy,
// Configuration Manual, section 8.5, Session state at disconnection.
func causes() map[byte]string {
	return map[byte]string{
		'C': "the client left", 'c': "the client did not go on in time",
		'S': "the host broke off or could not be reached", 's': "the host did not answer in time",
		'P': "the balancer refused it", 'L': "the balancer answered it", 'R': "the balancer is out of resources",
		'I': "the balancer failed", 'D': "the host went down", 'K': "an operator ended it",
	}
}

// Printed takes a line that the server printed and reports whether it was about
// a request. Such a one goes to Config.Log, as far as LogRequests says, in the
// words of the embedded balancer; others are left to the caller. The server leaves lines out
// when nobody reads them as fast as it writes.
func (h *Server) Printed(line string) bool {
	var e logEntry
	if !strings.HasPrefix(line, `{"request_id":`) || json.Unmarshal([]byte(line), &e) != nil {
		return false
	}
	left := strings.HasPrefix(e.End, "C")
	if e.Status < 0 {
		if e.Status = 0; left {
			e.Status = sut.StatusClientGone
		}
	}
	broken := !strings.HasPrefix(e.End, "-")
	bad := e.Status >= http.StatusInternalServerError || e.Status == sut.StatusClientGone || broken
	if h.cfg.LogRequests == sut.LogNone || h.cfg.LogRequests == sut.LogFailed && !bad {
		return true
	}
	level, cause := slog.LevelInfo, ""
	if bad {
		level = slog.LevelWarn
	}
	if broken {
		cause = causes()[e.End[0]]
	}
	h.places.mu.Lock()
	node := h.places.holder(e.Upstream)
	h.places.mu.Unlock()
	h.cfg.Log.LogAttrs(context.Background(), level, "request",
		slog.String("request_id", e.RequestID), slog.String("method", e.Method), slog.String("path", e.Path),
		slog.Int("status", e.Status), slog.String("upstream", node),
		slog.Int64("duration_ns", e.DurationMS*int64(time.Millisecond)), slog.String("cause", cause))
	return true
}
