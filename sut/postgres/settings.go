package postgres

import (
	"fmt"
	"strings"

	"github.com/stagebench/stagebench/sut"
)

// hostRules is pg_hba.conf: everybody on loopback is trusted. Hosts of a topology
// have addresses of their own in 127.0.0.0/8.
const hostRules = `# Written by stagebench before each start.
host   all          all  127.0.0.0/8   trust
host   all          all  ::1/128       trust
host   replication  all  127.0.0.0/8   trust
host   replication  all  ::1/128       trust
`

// settings is postgresql.conf, whole: what it does not name has PostgreSQL's
// own default, whatever initdb found on the machine. Of several copies it says
// whom the server follows now.
func (c Config) settings(state sut.Replication) string {
	var b strings.Builder
	section := func(comment string) { fmt.Fprintf(&b, "\n# %s\n", comment) }
	set := func(name string, value any) { fmt.Fprintf(&b, "%s = %s\n", name, quote(fmt.Sprint(value))) }

	b.WriteString("# Written by stagebench before each start.\n")
	section("Where it listens.")
	set("listen_addresses", c.Listen)
	set("port", c.Port)
	set("unix_socket_directories", "")
	set("max_connections", maxConnections)
	set("cluster_name", c.Name)

	section("Memory: sized for a small host. Nothing is left in the kernel's shared memory when it is killed.")
	set("shared_buffers", fmt.Sprintf("%dkB", sharedBuffers>>10))
	set("huge_pages", "off")
	set("dynamic_shared_memory_type", "mmap")

	section("Durability: a commit that was acknowledged is on disk.")
	set("fsync", "on")
	set("synchronous_commit", "on")
	set("full_page_writes", "on")

	section("Compiling a query costs more than running one of ours; a parallel one needs a second core.")
	set("jit", "off")
	// The data is in memory: with the default, made for disks that turn, the
	// planner reads whole tables where an index would do.
	set("random_page_cost", "1.1")
	set("max_parallel_workers", c.Procs)
	set("max_parallel_workers_per_gather", min(2, c.Procs-1))

	if c.Replication != nil {
		r := *c.Replication
		r.State = state
		r.settings(section, set)
	}

	section("Log to standard error: whoever started the server reads it.")
	set("log_destination", "stderr")
	set("logging_collector", "off")
	set("log_line_prefix", "%m [%p] ")

	section("The same on every machine.")
	for _, name := range []string{"lc_messages", "lc_monetary", "lc_numeric", "lc_time"} {
		set(name, "C")
	}
	set("timezone", "UTC")
	set("log_timezone", "UTC")
	set("datestyle", "iso, mdy")
	set("default_text_search_config", "pg_catalog.english")
	return b.String()
}

// writeSettings replaces the server's configuration.
func (s *Server) writeSettings(state sut.Replication) error {
	return s.writeOwned(s.dir, "postgresql.conf", s.cfg.settings(state))
}

// quote writes a value as the configuration file wants it.
func quote(value string) string {
	return "'" + strings.ReplaceAll(strings.ReplaceAll(value, `\`, `\\`), "'", "''") + "'"
}
