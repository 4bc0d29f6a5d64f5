module github.com/stagebench/stagebench

go 1.26.0

require (
	github.com/HdrHistogram/hdrhistogram-go v1.4.0 // latency histograms that merge exactly, and their log format
	github.com/bradfitz/gomemcache v0.0.0-20260422231931-4d751bb6e37c // client of memcached
	github.com/dunglas/httpsfv v1.1.2 // header fields of caches that are Structured Fields (RFC 9651)
	github.com/goccy/go-yaml v1.19.2 // workload, fault, price and matrix files; errors name line and column
	github.com/google/go-cmp v0.7.0 // tests: readable differences
	github.com/jackc/pgx/v5 v5.12.0 // PostgreSQL client and wire types
	github.com/joshdk/go-junit v1.0.0 // tests: reads our JUnit files
	github.com/klauspost/compress v1.20.3 // gzip of text responses, skips small bodies; Zstandard traces
	github.com/nats-io/nats-server/v2 v2.15.2 // the embedded broker of the queue: JetStream as a library
	github.com/nats-io/nats.go v1.55.0 // client of the brokers
	github.com/olekukonko/tablewriter v1.1.5 // text and Markdown tables
	github.com/prometheus/client_golang v1.25.0 // metrics of nodes and runs
	github.com/prometheus/common v0.72.0 // writes OpenMetrics text
	github.com/prometheus/prometheus v0.315.0 // tests: parses our OpenMetrics text
	github.com/redis/go-redis/v9 v9.23.0 // client of the caches and of the session host
	github.com/rogpeppe/go-internal v1.14.1 // tests: command line behaviour as scripts
	github.com/santhosh-tekuri/jsonschema/v6 v6.0.2 // tests: the schema of matrix files
	github.com/spf13/cobra v1.10.2 // commands, flags, completion
	github.com/spf13/pflag v1.0.10 // the flags of commands
	github.com/tsenart/vegeta/v12 v12.13.0 // the default load engine
	github.com/vbauerster/mpb/v8 v8.9.3 // the progress bar
	go.uber.org/goleak v1.3.0 // tests: find goroutines that outlive their test
	golang.org/x/image v0.47.0 // scaling of photos
	golang.org/x/net v0.60.0 // rules for header names, and for the domains of cookies
	golang.org/x/perf v0.0.0-20260908200009-22c9c6c9d4da // Go benchmark text, and the statistics of benchstat
	golang.org/x/sync v0.24.0 // groups of goroutines; the first error cancels the others
	golang.org/x/sys v0.49.0 // kernel interfaces that package syscall lacks
	golang.org/x/term v0.47.0 // detects whether standard error is a terminal
	gonum.org/v1/gonum v0.16.0 // Student's t distribution, for intervals and tests
	pgregory.net/changepoint v1.0.0 // candidates of change points: ED-PELT
	zombiezen.com/go/sqlite v1.4.2 // SQLite without cgo, with sessions
)

require (
	github.com/VividCortex/ewma v1.2.0 // indirect
	github.com/acarl005/stripansi v0.0.0-20180116102854-5a71ef0e047d // indirect
	github.com/aclements/go-moremath v0.0.0-20210112150236-f10218a38794 // indirect
	github.com/antithesishq/antithesis-sdk-go v0.8.0-default-no-op // indirect
	github.com/beorn7/perks v1.0.1 // indirect
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/clipperhouse/displaywidth v0.10.0 // indirect
	github.com/clipperhouse/uax29/v2 v2.6.0 // indirect
	github.com/dustin/go-humanize v1.0.1 // indirect
	github.com/fatih/color v1.19.0 // indirect
	github.com/gogo/protobuf v1.3.2 // indirect
	github.com/google/go-tpm v0.9.8 // indirect
	github.com/google/uuid v1.6.0 // indirect
	github.com/grafana/regexp v0.0.0-20250905093917-f7b3be9d1853 // indirect
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/influxdata/tdigest v0.0.1 // indirect
	github.com/jackc/pgpassfile v1.0.0 // indirect
	github.com/jackc/pgservicefile v0.0.0-20240606120523-5a60cdf6a761 // indirect
	github.com/jackc/puddle/v2 v2.2.3 // indirect
	github.com/josharian/intern v1.0.0 // indirect
	github.com/kylelemons/godebug v1.1.0 // indirect
	github.com/mailru/easyjson v0.7.7 // indirect
	github.com/mattn/go-colorable v0.1.15 // indirect
	github.com/mattn/go-isatty v0.0.23 // indirect
	github.com/mattn/go-runewidth v0.0.19 // indirect
	github.com/minio/highwayhash v1.0.4 // indirect
	github.com/munnerz/goautoneg v0.0.0-20191010083416-a7dc8b61c822 // indirect
	github.com/nats-io/jwt/v2 v2.8.2 // indirect
	github.com/nats-io/nkeys v0.4.16 // indirect
	github.com/nats-io/nuid v1.0.1 // indirect
	github.com/ncruces/go-strftime v0.1.9 // indirect
	github.com/olekukonko/cat v0.0.0-20250911104152-50322a0618f6 // indirect
	github.com/olekukonko/errors v1.2.0 // indirect
	github.com/olekukonko/ll v0.1.6 // indirect
	github.com/prometheus/client_model v0.6.3 // indirect
	github.com/prometheus/procfs v0.22.0 // indirect
	github.com/remyoudompheng/bigfft v0.0.0-20230129092748-24d4a6f8daec // indirect
	github.com/rs/dnscache v0.0.0-20230804202142-fc85eb664529 // indirect
	go.uber.org/atomic v1.12.0 // indirect
	golang.org/x/crypto v0.58.0 // indirect
	golang.org/x/exp v0.0.0-20260824195058-e88cd73687aa // indirect
	golang.org/x/text v0.43.0 // indirect
	golang.org/x/time v0.16.0 // indirect
	golang.org/x/tools v0.51.0 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
	modernc.org/libc v1.65.7 // indirect
	modernc.org/mathutil v1.7.1 // indirect
	modernc.org/memory v1.11.0 // indirect
	modernc.org/sqlite v1.37.1 // indirect
)
