package postgres

import (
	"fmt"
	"strings"

	"github.com/stagebench/stagebench/sut"
)

// hostRules is pg_hba.conf. It admits two roles with their password from loopback: each host of a topology has its own
// address in 127.0.0.0/8. Whatever it does not name is refused.
const hostRules = `# Written by stagebench before each start.
host   ` + Database + `              ` + User + `       127.0.0.0/8   scram-sha-256
host   ` + Database + `              ` + User + `       ::1/128       scram-sha-256
host   ` + Database + `,replication  ` + nodeUser + `  127.0.0.0/8   scram-sha-256
host   ` + Database + `,replication  ` + nodeUser + `  ::1/128       scram-sha-256
`

// settings returns the text of postgresql.conf. It replaces the file that initdb wrote, so
// the other settings have PostgreSQL's defaults on every machine. state is the current
// role of a server with Replication.
func (c Config) settings(state sut.Replication) string {
	var b strings.Builder
	section := func(comment string) { fmt.Fprintf(&b, "\n# %s\n", comment) }
	set := func(name string, value any) { fmt.Fprintf(&b, "%s = %s\n", name, quote(fmt.Sprint(value))) }

	b.WriteString("# Written by stagebench before each start.\n")
	section("Connections.")
	set("listen_addresses", c.Listen)
	set("port", c.Port)
	set("unix_socket_directories", "")
	set("max_connections", maxConnections)
	set("superuser_reserved_connections", 0) // the superuser cannot log in
	set("cluster_name", c.Name)

	section("Memory: sized for a small host. A killed server leaves no POSIX shared memory behind.")
	set("shared_buffers", fmt.Sprintf("%dkB", sharedBuffers>>10))
	set("huge_pages", "off")
	set("dynamic_shared_memory_type", "mmap")

	section("Durability: an acknowledged commit is on disk.")
	set("fsync", "on")
	set("synchronous_commit", "on")
	set("full_page_writes", "on")

	section("Planner: JIT compilation costs more than our short queries. A parallel query needs a second core.")
	set("jit", "off")
	// The data is in memory. The default is for spinning disks: the planner would then
	// scan whole tables in place of an index.
	set("random_page_cost", "1.1")
	set("max_parallel_workers", c.Procs)
	set("max_parallel_workers_per_gather", min(2, c.Procs-1))

	if c.Replication != nil {
		r := *c.Replication
		r.State = state
		r.settings(section, set)
	}

	section("Log to standard error, for the process that started the server.")
	set("log_destination", "stderr")
	set("logging_collector", "off")
	set("log_line_prefix", "%m [%p] ")

	section("Locale and time zone: the same on every machine.")
	for _, name := range []string{"lc_messages", "lc_monetary", "lc_numeric", "lc_time"} {
		set(name, "C")
	}
	set("timezone", "UTC")
	set("log_timezone", "UTC")
	set("datestyle", "iso, mdy")
	set("default_text_search_config", "pg_catalog.english")
	return b.String()
}

// writeSettings replaces postgresql.conf in the data directory. A replica that does not have the passwords yet gets no
// lag: the passwords are changes of the primary, too, and nobody can log in before the replica has applied them.
func (s *Server) writeSettings(state sut.Replication) error {
	cfg := s.cfg
	if cfg.Replication != nil {
		r := *cfg.Replication
		s.mu.Lock()
		r.Members = s.members
		s.mu.Unlock()
		if has, err := s.hasPasswords(); err != nil {
			return err
		} else if !has && state.Primary != nil {
			r.Lag = 0
		}
		cfg.Replication = &r
	}
	return s.writeOwned(s.dir, "postgresql.conf", cfg.settings(state))
}

// quote returns a value as a string literal of postgresql.conf.
func quote(value string) string {
	return "'" + strings.ReplaceAll(strings.ReplaceAll(value, `\`, `\\`), "'", "''") + "'"
}
