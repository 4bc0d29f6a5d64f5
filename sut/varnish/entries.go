package varnish

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// Purge bans entries. Each entry has its URL in a field of its own. A background thread of Varnish removes banned
// entries; none is served before that.
func (s *Server) Purge(ctx context.Context, p sut.Purge) error {
	for _, url := range p.URLs {
		if _, err := s.command(ctx, "ban", "obj.http.x-edge-url", "~", "^"+literal(url)+"$"); err != nil {
			return fmt.Errorf("varnish: purge of %s: %w", url, err)
		}
	}
	for _, group := range p.Groups {
		if _, err := s.command(ctx, "ban", "obj.http.Cache-Groups", "~", groupPattern(group)); err != nil {
			return fmt.Errorf("varnish: purge of group %s: %w", group, err)
		}
	}
	return nil
}

// groupPattern matches the field Cache-Groups of the members of a group. It is a list of strings (RFC 9875, 2), which
// have a backslash before quotes and backslashes (RFC 9651, 3.3.3).
func groupPattern(group string) string {
	value := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(group)
	return `(^|[,` + literal(" \t") + `])` + literal(`"`+value+`"`) + `($|[,;` + literal(" \t") + `])`
}

// literal is a pattern that matches a text, and a word of a command. The management interface passes commands on to
// another process, and quotes do not survive that. So each special byte is a number in the pattern. Its backslash is
// one of the command, too.
func literal(text string) string {
	var out strings.Builder
	for _, c := range []byte(text) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '/', c == '-', c == '_':
			out.WriteByte(c)
		default:
			fmt.Fprintf(&out, `\\x%02x`, c)
		}
	}
	return out.String()
}

// Varnish adds the requests of a connection to its counters some time after it has answered them.
const (
	settlePause = 200 * time.Millisecond
	settleReads = 3
)

// Figures returns the server's counters. Varnish does not count what it stores. FetchedBytes does not have the bytes
// from origins that were removed. Figures reads until the number of requests is the same twice, at most settleReads
// times.
func (s *Server) Figures(ctx context.Context) (f sut.EdgeFigures, err error) {
	for read := range settleReads {
		before := f.Requests
		counters, err := s.counters(ctx)
		if err == nil {
			f, err = figures(counters)
		}
		if err != nil {
			return sut.EdgeFigures{}, fmt.Errorf("varnish: figures: %w", err)
		}
		if read > 0 && f.Requests == before || read == settleReads-1 {
			break
		}
		select {
		case <-time.After(settlePause):
		case <-ctx.Done():
			return sut.EdgeFigures{}, fmt.Errorf("varnish: figures: %w", ctx.Err())
		}
	}
	f.MaxBytes = s.cfg.MaxBytes
	return f, nil
}

// counters reads counters by name. options select them; none = all.
func (s *Server) counters(ctx context.Context, options ...string) (map[string]int64, error) {
	args := append([]string{"-1", "-j", "-n", filepath.Join(s.cfg.Dir, workName), "-t", "1"}, options...)
	cmd := exec.CommandContext(ctx, s.cfg.Install.Stat, args...)
	cmd.Env = []string{"LC_ALL=C"}
	var exit *exec.ExitError
	text, err := cmd.Output()
	if errors.As(err, &exit) && len(exit.Stderr) > 0 {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
	}
	if err != nil {
		return nil, fmt.Errorf("varnishstat: %w", err)
	}
	return parseCounters(text)
}

// parseCounters parses the JSON of varnishstat.
func parseCounters(text []byte) (map[string]int64, error) {
	var document struct {
		Counters map[string]struct {
			Value int64 `json:"value"`
		} `json:"counters"`
	}
	if err := json.Unmarshal(text, &document); err != nil {
		return nil, fmt.Errorf("varnishstat: %w", err)
	}
	counters := map[string]int64{}
	for name, counter := range document.Counters {
		counters[name] = counter.Value
	}
	return counters, nil
}

// figures returns what counters say.
func figures(counters map[string]int64) (f sut.EdgeFigures, err error) {
	count := func(name string) int64 {
		n, found := counters[name]
		if !found {
			err = errors.Join(err, fmt.Errorf("no counter %s", name))
		}
		return n
	}
	f = sut.EdgeFigures{
		Requests: count("MAIN.client_req"), Fetched: count("MAIN.backend_req"), Stored: -1,
		Evicted: count("MAIN.n_lru_nuked"), Purged: count("MAIN.bans_obj_killed") + count("MAIN.bans_lurker_obj_killed"),
		Entries: count("MAIN.n_object"), Bytes: count("SMA.s0.g_bytes"),
	}
	// A request that found a stale response and went to the origin is a miss, too.
	f.Hits = max(0, f.Requests-count("MAIN.cache_miss")-count("MAIN.s_pass"))
	for name, n := range counters {
		if strings.HasPrefix(name, "VBE.") && strings.HasSuffix(name, ".beresp_bodybytes") {
			f.FetchedBytes += n
		}
	}
	return f, err
}
