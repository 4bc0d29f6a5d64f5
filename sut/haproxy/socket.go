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

// ask sends one line of commands to the server's stats socket and returns the answer.
func (h *Server) ask(ctx context.Context, command string) (string, error) {
	// The path of a Unix socket is limited to 107 bytes, and the path of the directory
	// may be longer. The path through a file descriptor is short.
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
	// Closing the connection unblocks the write and the read when ctx ends.
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

// rows returns the server's statistics: for each frontend, backend and host one row, as
// values by column.
func (h *Server) rows(ctx context.Context) ([]map[string]string, error) {
	text, err := h.ask(ctx, "show stat")
	if err != nil {
		return nil, err
	}
	return parseStat(text)
}

// parseStat parses the answer to "show stat". Source: HAProxy, Management Guide,
// section 9.1, Statistics and monitoring: CSV format.
func parseStat(text string) ([]map[string]string, error) {
	records, err := csv.NewReader(strings.NewReader(strings.TrimPrefix(text, "# "))).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("statistics: %w", err)
	}
	if len(records) == 0 {
		return nil, errors.New("statistics: the server sent an empty answer")
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

// fill fills a status from the server's statistics.
func (p *slots) fill(s *sut.BalancerStatus, rows []map[string]string) error {
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
			node := p.nodeIn(values["svname"])
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
			u.Ejections += p.ejections[node]
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
	failed *error // the first error in any row
}

// number returns the value of a column.
func (r statRow) number(column string) uint64 {
	n, err := strconv.ParseUint(r.values[column], 10, 64)
	if err != nil && *r.failed == nil {
		*r.failed = fmt.Errorf("statistics: %s of %s: %w", column, r.values["svname"], err)
	}
	return n
}

// fillFrontend fills the counters of clients.
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

// add adds the row of a host in one backend. joins is the number of times the host was
// added to that backend while the server ran.
func add(u *sut.UpstreamStatus, row statRow, joins uint64) {
	u.InFlight += int(row.number("scur"))
	u.Requests += row.number("stot")
	status := row.values["status"]
	if strings.HasPrefix(status, "MAINT") || strings.HasPrefix(status, "DRAIN") {
		return // the backend does not use the host
	}
	up := strings.HasPrefix(status, "UP")
	if u.Up = u.Up || up; !u.Up {
		check := row.values["check_status"]
		u.Cause = strings.TrimSpace("health check: " + check + " " + row.values["last_chk"])
		switch check {
		case "HANA":
			u.Ejected, u.Cause = true, "ejected after consecutive failed connections"
		case "L7OK": // its last check passed, so judge has marked it down
			u.Ejected, u.Cause = true, "ejected after consecutive failed requests"
		}
	}
	// HAProxy counts each join as one transition to down and one to up.
	down := row.number("chkdown")
	u.WentDown = max(u.WentDown, down-min(down, joins))
	if !up {
		down = max(down, 1) - 1
	}
	u.WentUp = max(u.WentUp, down)
	if row.values["hanafail"] != "" { // empty if ejection is off
		u.Ejections = max(u.Ejections, row.number("hanafail"))
	}
}

// connections returns the connection counters of a layer 4 status.
func connections(s *sut.BalancerStatus) *sut.ConnectionStatus {
	if s.Connections == nil {
		s.Connections = &sut.ConnectionStatus{}
	}
	return s.Connections
}

// logFormat returns the format of a request in the server's log. HandleLogLine parses it. Source:
// HAProxy, Configuration Manual, section 8.2.4, Custom log format.
func (c Config) logFormat() string {
	format := `{\"request_id\":\"%[var(txn.id)]\",\"method\":\"%HM\",\"path\":\"%[var(txn.path),json(utf8s)]\",` +
		`\"status\":%ST,\"upstream\":\"%s\",\"duration_ms\":%Ta,\"end\":\"%ts\"`
	if c.ejects() {
		format += `,\"successes\":\"%[srv_name,table_gpc0(` + successTable + `)]\"`
	}
	return format + "}"
}

// logEntry is a log line in logFormat.
type logEntry struct {
	RequestID  string `json:"request_id"`
	Method     string `json:"method"`
	Path       string `json:"path"`
	Status     int    `json:"status"`      // -1 = no response was sent
	Upstream   string `json:"upstream"`    // the slot, or "<NOSRV>"
	DurationMS int64  `json:"duration_ms"` // from the first byte of the request
	Successes  string `json:"successes"`   // successful responses of the host so far; see judge
	End        string `json:"end"`         // which side aborted the request and in which phase; "--" = not aborted
}

// causes returns the causes by the first letter of logEntry.End. Source: HAProxy,
// Configuration Manual, section 8.5, Session state at disconnection.
func causes() map[byte]string {
	return map[byte]string{
		'C': "the client left", 'c': "the client was too slow",
		'S': "the host closed the connection or could not be reached", 's': "the host did not answer in time",
		'P': "the balancer refused the request", 'L': "the balancer answered the request",
		'R': "the balancer is out of resources", 'I': "the balancer had an internal error",
		'D': "the host went down", 'K': "an operator closed the connection",
	}
}

// HandleLogLine takes a line that the server printed and reports whether it is about a request.
// It logs such a line to Config.Log if LogRequests selects it, with the same attributes as
// the embedded balancer. It also ejects a host that fails requests. The caller must handle all other lines. The server
// drops lines if they are not read fast enough.
func (h *Server) HandleLogLine(line string) bool {
	var e logEntry
	if !strings.HasPrefix(line, `{"request_id":`) || json.Unmarshal([]byte(line), &e) != nil {
		return false
	}
	if e.Status < 0 {
		if e.Status = 0; strings.HasPrefix(e.End, "C") {
			e.Status = sut.StatusClientDisconnected
		}
	}
	aborted := !strings.HasPrefix(e.End, "-")
	failed := e.Status >= http.StatusInternalServerError || e.Status == sut.StatusClientDisconnected || aborted
	h.slots.mu.Lock()
	node := h.slots.nodeIn(e.Upstream)
	h.slots.mu.Unlock()
	h.judge(e, node)
	if h.cfg.LogRequests == sut.LogNone || h.cfg.LogRequests == sut.LogFailed && !failed {
		return true
	}
	level, cause := slog.LevelInfo, ""
	if failed {
		level = slog.LevelWarn
	}
	if aborted {
		cause = causes()[e.End[0]]
	}
	h.cfg.Log.LogAttrs(context.Background(), level, "request",
		slog.String("request_id", e.RequestID), slog.String("method", e.Method), slog.String("path", e.Path),
		slog.Int("status", e.Status), slog.String("upstream", node),
		slog.Int64("duration_ns", e.DurationMS*int64(time.Millisecond)), slog.String("cause", cause))
	return true
}
