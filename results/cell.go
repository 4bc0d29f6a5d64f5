package results

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Latency is the distribution of one clock, in nanoseconds. A percentile is nil
// if fewer than ten samples lie beyond it. Where failures count as infinitely
// slow, it is also nil if its value is that of a failure.
type Latency struct {
	Count int64  `json:"count"`
	P50   *int64 `json:"p50"`
	P90   *int64 `json:"p90"`
	P95   *int64 `json:"p95"`
	P99   *int64 `json:"p99"`
	P999  *int64 `json:"p999"`
	Max   *int64 `json:"max"`
	Mean  *int64 `json:"mean"`
	// Clamped counts the samples above 60 s, which are recorded as 60 s.
	Clamped int64 `json:"clamped,omitempty"`
}

// OpStats is one op class of one step.
type OpStats struct {
	Count       int64   `json:"count"`             // scheduled
	Request     string  `json:"request,omitempty"` // method and target, of an attack on several URLs
	ResponseNS  Latency `json:"response_ns"`
	ResponseAll Latency `json:"response_all_ns"` // failures as infinitely slow
	ServiceNS   Latency `json:"service_ns"`
	WaitNS      Latency `json:"wait_ns"`
	LagNS       Latency `json:"lag_ns"`
	// Of the failed ops: the times until they failed. A response to an op that got no answer would have taken longer,
	// after a timeout longer than Step.TimeoutNS.
	FailedNS        Latency `json:"failed_response_ns,omitzero"`
	FailedServiceNS Latency `json:"failed_service_ns,omitzero"`
	Errors          int64   `json:"errors"`
	SessionLost     int64   `json:"session_lost,omitempty"`
	BytesIn         int64   `json:"bytes_in"` // of the bodies of all responses
	// Edge counts the successes by what the HTTP cache nearest to the client did, RFC 9211: "hit", or the reason why it
	// forwarded the request, such as "uri-miss" or "bypass". Nil = there was none.
	Edge map[string]int64 `json:"edge,omitempty"`
	// Cached counts the successes without an edge hit that the cache tier answered.
	Cached  int64 `json:"cached,omitempty"`
	OverSLO int64 `json:"over_slo"` // successes slower than the class's bound
	// The parts of OverSLO and of the unsent ops that would have met the bound without the delay that the client
	// may have caused.
	OverSLOByClient int64 `json:"over_slo_by_client,omitempty"`
	UnsentByClient  int64 `json:"unsent_by_client,omitempty"`
}

// NodeUsage is what one node used during one step.
type NodeUsage struct {
	Node       string  `json:"node"`
	Host       string  `json:"host"`
	Role       string  `json:"role"`
	CPUSeconds float64 `json:"cpu_seconds"`
	// ThrottledSeconds is that of its host: the nodes of a host share its budget, and are held back together.
	ThrottledSeconds float64 `json:"throttled_seconds"`
	// WaitSeconds is the time in which its threads were ready to run but had no CPU, summed over the threads: they
	// waited for another thread, or for the next quota period.
	WaitSeconds float64 `json:"wait_seconds"`
	RSSBytes    int64   `json:"rss_bytes"`
}

// HostUsage is what one host used of its budget during one step.
type HostUsage struct {
	Host             string  `json:"host"`
	CPU              float64 `json:"cpu"` // budget in cores
	Isolated         bool    `json:"isolated"`
	CPUSeconds       float64 `json:"cpu_seconds"`
	CPUShare         float64 `json:"cpu_share"`         // of the budget, 1 = all of it
	ThrottledSeconds float64 `json:"throttled_seconds"` // runnable threads held back, summed over CPUs
	ThrottledShare   float64 `json:"throttled_share"`   // share of quota periods in which the host was throttled
}

// ClientUsage is what the load generator itself used during one step.
type ClientUsage struct {
	CPUSeconds   float64 `json:"cpu_seconds"`
	CPUShare     float64 `json:"cpu_share"`    // of the cores that the client could use
	RealTime     bool    `json:"real_time"`    // the client had real-time priority
	StallMaxNS   int64   `json:"stall_max_ns"` // longest time in which the client did not run
	StallSumNS   int64   `json:"stall_sum_ns"` // sum of these times, without the shortest ones
	GCPauseMaxNS int64   `json:"gc_pause_max_ns"`
	GCPauseSumNS int64   `json:"gc_pause_sum_ns"`
	Connections  int64   `json:"connections,omitempty"` // made in the step
	OutsideShare float64 `json:"outside_share"`         // of the machine: CPU of other processes if known, and steal
	OutsideKnown bool    `json:"outside_known"`         // OutsideShare was measured
}

// Stall is a time in which the client did not run.
type Stall struct {
	AtNS     int64 `json:"at_ns"` // since the start of the step
	LengthNS int64 `json:"length_ns"`
}

// Outage is a run of failures, ordered by intended time, without a long gap.
type Outage struct {
	FromNS int64 `json:"from_ns"` // intended time of the first failure, since the start of the step
	ToNS   int64 `json:"to_ns"`   // intended time of the last failure
	Failed int64 `json:"failed"`
}

// Event is something that happened to the target during a step.
type Event struct {
	AtNS int64  `json:"at_ns"`
	Text string `json:"text"`
}

// Stale counts the stale reads of single records. Package history defines them.
type Stale struct {
	Reads int64 `json:"reads"` // reads that could be judged
	Stale int64 `json:"stale"` // reads that returned an older version than one acknowledged before they were sent
	// RYWViolations counts the stale reads by the user who wrote the newer version.
	// They violate read-your-writes.
	RYWViolations int64 `json:"ryw_violations"`
	// AgeNS is the age of the stale reads: the time from the acknowledgement of the
	// first newer version to the sending of the read.
	AgeNS Latency `json:"age_ns"`
	// The same for the reads that a cache answered. They are included above; the
	// database answered all other reads.
	Hits      int64   `json:"hits"`
	StaleHits int64   `json:"stale_hits"`
	HitAgeNS  Latency `json:"hit_age_ns"`
}

// Share returns the stale share of the reads.
func (s Stale) Share() float64 { return float64(s.Stale) / float64(max(s.Reads, 1)) }

// HitShare returns the stale share of the reads that a cache answered.
func (s Stale) HitShare() float64 { return float64(s.StaleHits) / float64(max(s.Hits, 1)) }

// CacheReads counts the web tier's reads from the cache tier. The web nodes count them.
type CacheReads struct {
	Hits   int64 `json:"hits"`
	Misses int64 `json:"misses"` // without the reads that no cache host answered
}

// HitRatio returns the share of the reads that were hits.
func (c CacheReads) HitRatio() float64 { return float64(c.Hits) / float64(max(c.Hits+c.Misses, 1)) }

// DatabaseCalls counts the operations that web and cache hosts sent to the databases, one round trip each. The
// web and cache hosts count them.
type DatabaseCalls struct {
	Reads  int64 `json:"reads"`
	Writes int64 `json:"writes"` // a write-back batch counts once
}

// CacheNode holds the figures that one cache host reports: its counts during one step, and its contents at the
// end of the step. A cache host that loads or writes records itself also counts its own lookups, so its counts
// are higher than those of the web tier.
type CacheNode struct {
	Node      string `json:"node"`
	Hits      int64  `json:"hits"`   // lookups that found the key
	Misses    int64  `json:"misses"` // lookups that did not find the key
	Evictions int64  `json:"evictions"`
	Expired   int64  `json:"expired"`
	// Entries and bytes at the end of the step. Each engine counts the bytes of an
	// entry in its own way: compare them with the limit, not between engines.
	Entries    int64 `json:"entries"`
	Bytes      int64 `json:"bytes"`
	LimitBytes int64 `json:"limit_bytes"` // 0 = none
	// WriteBack is nil for a host that neither loads nor writes records itself. All
	// its fields are 0 for a host that does, but without write-back.
	WriteBack *WriteBack `json:"write_back,omitempty"`
	// SinceStart says that the counts are totals since the start of the host: it
	// started during the step, or did not answer at the beginning of the step.
	SinceStart bool `json:"since_start,omitempty"`
}

// WriteBack counts the acknowledged writes that a cache host buffers before it writes them to the database.
type WriteBack struct {
	Unflushed int64 `json:"unflushed"` // buffered at the end of the step
	Flushed   int64 `json:"flushed"`   // written to the database
	Refused   int64 `json:"refused"`   // refused by the database; these writes are lost
}

// Writes counts the writes to single records and how they ended, judged by the
// records' versions. history.Resolve documents what versions cannot show.
type Writes struct {
	Acknowledged     int64 `json:"acknowledged"`
	Lost             int64 `json:"lost"`              // acknowledged writes that no longer exist
	Ambiguous        int64 `json:"ambiguous"`         // writes without a clear answer: they may have taken effect
	AmbiguousApplied int64 `json:"ambiguous_applied"` // ambiguous writes that took effect
	Unread           int64 `json:"unread,omitempty"`  // records that could not be read back
	// Conflicts counts how often primaries changed the same row concurrently. The
	// primaries count them. The last write won, and the other writes are lost.
	// Discarded is what the lost updates had added to numbers, by "table.column".
	Conflicts int64            `json:"conflicts,omitempty"`
	Discarded map[string]int64 `json:"discarded,omitempty"`
}

// Figure is a counter or a gauge of a tier, summed over the nodes that report it.
type Figure struct {
	Name  string `json:"name"`            // unit last: "cache_evictions"
	Title string `json:"title,omitempty"` // header of its table column; "" = no column
	Doc   string `json:"doc,omitempty"`   // one sentence
	// Kind is "counter": growth over the step; "gauge": value at its end; or another ladder.FigureKind.
	Kind  string `json:"kind"`
	Value *int64 `json:"value"` // nil = unknown
	// Unknown lists the nodes that did not answer at the end of the step. If there are any, the value is unknown.
	Unknown []string `json:"unknown,omitempty"`
	// SinceStart lists the nodes that contribute their total since start, not the growth over the step: they
	// restarted during the step, or did not answer at its beginning.
	SinceStart []string `json:"since_start,omitempty"`
}

// Figure returns the figure with this name, nil if no node reports it.
func (s Step) Figure(name string) *Figure {
	i := slices.IndexFunc(s.Figures, func(f Figure) bool { return f.Name == name })
	if i < 0 {
		return nil
	}
	return &s.Figures[i]
}

// Notef adds a note. Judge makes it a warning.
func (s *Step) Notef(format string, args ...any) {
	s.Notes = append(s.Notes, fmt.Sprintf(format, args...))
}

// Step is one offered rate in a cell.
type Step struct {
	Purpose       string  `json:"purpose"` // warmup, reference, peak, capacity, replay, fixed, attack
	OfferedRPS    float64 `json:"offered_rps"`
	SentRPS       float64 `json:"sent_rps"`
	CompletedRPS  float64 `json:"completed_rps"`
	GoodputRPS    float64 `json:"goodput_rps,omitempty"` // successes, without the first part of the step
	Seconds       float64 `json:"seconds"`
	Schedule      string  `json:"schedule"`
	CatchUp       string  `json:"catch_up"`
	ResponseNS    Latency `json:"response_ns"`             // successes
	ResponseNoLag Latency `json:"response_without_lag_ns"` // successes, response minus their own lag
	ResponseAll   Latency `json:"response_all_ns"`         // failures as infinitely slow
	ServiceNS     Latency `json:"service_ns"`
	WaitNS        Latency `json:"wait_ns"`
	LagNS         Latency `json:"lag_ns"`
	// Of the failed ops, see OpStats. TimeoutNS is how long an op may take: a response to an op that timed out would
	// have taken at least this.
	FailedNS        Latency `json:"failed_response_ns,omitzero"`
	FailedServiceNS Latency `json:"failed_service_ns,omitzero"`
	TimeoutNS       int64   `json:"timeout_ns,omitempty"`

	Journeys     *Journeys          `json:"journeys,omitempty"` // nil = the workload has none
	Ledger       Ledger             `json:"ledger"`
	Ops          map[string]OpStats `json:"ops"`
	Causes       map[string]int64   `json:"causes,omitempty"`   // failures by cause
	Statuses     map[int]int64      `json:"statuses,omitempty"` // complete responses by status
	Outages      []Outage           `json:"outages,omitempty"`
	Events       []Event            `json:"events,omitempty"`
	Autoscaling  *Autoscaling       `json:"autoscaling,omitempty"` // nil = there is no autoscaler
	Stale        *Stale             `json:"stale,omitempty"`       // nil = no read of a single record could be judged
	Figures      []Figure           `json:"figures,omitempty"`     // those that at least one node reports
	Cache        *CacheReads        `json:"cache,omitempty"`       // nil = no cache tier, or web nodes were restarted
	CacheNodes   []CacheNode        `json:"cache_nodes,omitempty"`
	Static       *StaticReads       `json:"static,omitempty"`     // nil = no edges, or unknown
	Processing   *Processing        `json:"processing,omitempty"` // nil = no workers, or nobody looked
	Database     *DatabaseCalls     `json:"database,omitempty"`   // nil = unknown, for example after a restart
	Hosts        []HostUsage        `json:"hosts,omitempty"`
	Nodes        []NodeUsage        `json:"nodes,omitempty"`
	Client       ClientUsage        `json:"client"`
	OwnLatencyNS *Latency           `json:"own_latency_ns,omitempty"` // as the driver's engine measured it
	SLOMet       bool               `json:"slo_met"`
	SLOBroken    string             `json:"slo_broken,omitempty"` // why the SLO was missed: "errors 0.20% > 0.1%"
	BytesIn      int64              `json:"bytes_in"`
	BytesOut     int64              `json:"bytes_out"`
	ServerCount  *int64             `json:"server_count,omitempty"` // requests that the server counted
	OpsHash      string             `json:"ops_hash"`               // of up to a million ops; equal for equal seeds
	Valid        bool               `json:"valid"`
	Invalid      []string           `json:"invalid,omitempty"` // why the step is not valid; also in Warnings
	// Excused: not valid, but what made it invalid cannot have changed SLOMet.
	Excused bool `json:"excused,omitempty"`
	// ByClient: the SLO was missed, but only because of delays that the client may have caused.
	ByClient bool `json:"by_client,omitempty"`
	// Repeated: this step counts for no figure, and the next one with the same purpose replaces it. It is not
	// trusted, or offered too little for the peak.
	Repeated bool     `json:"repeated,omitempty"`
	Warnings []string `json:"warnings"`
	// Notes are the warnings that no rule of Judge gave, such as the death of a node. They are also in Warnings.
	Notes []string `json:"notes,omitempty"`
}

// Trace counts the lines of a replayed trace and what was done with them.
type Trace struct {
	Lines          int64            `json:"lines"`
	Broken         int64            `json:"broken"`          // lines that are not requests
	OutOfOrder     int64            `json:"out_of_order"`    // requests logged after a later one; they were sorted
	DuplicateTimes int64            `json:"duplicate_times"` // requests with the same time as the previous one
	Mapped         int64            `json:"mapped"`          // requests that are sent
	Skipped        map[string]int64 `json:"skipped"`         // lines not sent, by reason; includes broken lines
	Paths          int64            `json:"paths"`           // distinct paths
	Clients        int64            `json:"clients"`         // distinct clients
	SpanNS         int64            `json:"span_ns"`         // from the first to the last request, as logged
	LengthNS       int64            `json:"length_ns"`       // from the first to the last request, as replayed
}

// Limit is what kept a cell from a higher capacity.
type Limit struct {
	By       string  `json:"by"` // a role, "client" or "unknown"
	Host     string  `json:"host,omitempty"`
	Figure   string  `json:"figure,omitempty"` // the evidence: "93% of its CPU budget"
	CPUShare float64 `json:"cpu_share,omitempty"`
	// ThrottledShare is the share of quota periods in which the host was throttled, and WaitNS the time that its threads
	// waited for a CPU, per request.
	ThrottledShare float64 `json:"throttled_share,omitempty"`
	WaitNS         int64   `json:"wait_ns,omitempty"`
	// Next is the role that would be the limit if this one had more CPU, and its share of its own CPU.
	Next         string  `json:"next,omitempty"`
	NextCPUShare float64 `json:"next_cpu_share,omitempty"`
}

// CellHost is a host of a cell.
type CellHost struct {
	Host     string  `json:"host"`
	CPU      float64 `json:"cpu"`
	Isolated bool    `json:"isolated"`
}

// HasInterval reports whether the capacity has a 90 % interval.
func (c Cell) HasInterval() bool {
	return len(c.Repeats) > 0 && strings.HasSuffix(c.CapacityMethod, "90 % interval")
}

// MethodReplay is the capacity method of a cell that replays a trace at the
// trace's own times, so that there is no capacity search.
const MethodReplay = "none: a replay has its own times"

// MethodFixed is the capacity method of a cell that was measured at one fixed
// rate without a capacity search, for example while faults were injected.
const MethodFixed = "none: one fixed rate"

// Searched reports whether the cell's capacity was searched for.
func (c Cell) Searched() bool {
	return c.CapacityMethod != MethodReplay && c.CapacityMethod != MethodFixed
}

// Cell is one configuration times one workload. It is measured in several visits, which are spread over the run.
type Cell struct {
	Stage     string            `json:"stage"`
	Workload  string            `json:"workload"`
	Variant   string            `json:"variant,omitempty"` // tells cells of one stage and workload apart
	Engines   map[string]string `json:"engines"`
	Versions  map[string]string `json:"versions,omitempty"` // of the engines, by role
	Driver    string            `json:"driver"`
	Knobs     map[string]string `json:"knobs"`
	Topology  string            `json:"topology"` // digest
	Hosts     []CellHost        `json:"hosts"`
	Units     float64           `json:"units"`
	BringUpNS int64             `json:"bring_up_ns"`
	// CapacityRPS is the highest offered rate at which the SLO is met over a long time, and CapacityLow to
	// CapacityHigh its 90 % interval. If no rate missed the SLO, it is at least CapacityLow, and CapacityHigh is 0;
	// if no rate met it, it is 0, and CapacityHigh is the lowest offered rate.
	CapacityRPS    float64 `json:"capacity_rps"`
	CapacityLow    float64 `json:"capacity_low"`
	CapacityHigh   float64 `json:"capacity_high"`
	CapacityMethod string  `json:"capacity_method"` // "pooled, 4 visits, 90 % interval", MethodReplay or MethodFixed
	// PeakRPS is the rate of successes while more is offered than the system can do, with its 90 % interval.
	PeakRPS  float64 `json:"peak_rps,omitempty"`
	PeakLow  float64 `json:"peak_low,omitempty"`
	PeakHigh float64 `json:"peak_high,omitempty"`
	// Demand is the CPU time that a request costs, by tier.
	Demand      map[string]Demand `json:"demand,omitempty"`
	Gain        *Gain             `json:"gain,omitempty"` // nil = no previous stage, or one of the capacities is unknown
	SLO         string            `json:"slo"`
	Repeats     []float64         `json:"repeats"`          // the capacity as each visit shows it
	Peaks       []float64         `json:"peaks,omitempty"`  // the peak of each visit
	Speeds      []Speed           `json:"speeds,omitempty"` // of the machine, before each visit
	WarmupCutNS int64             `json:"warmup_cut_ns"`    // time cut off as warm-up, in the visit with the longest one
	Trace       *Trace            `json:"trace,omitempty"`
	Reference   *Step             `json:"reference,omitempty"` // the joined slices that give the cell's latency
	Writes      *Writes           `json:"writes,omitempty"`    // nil = not checked after the measurement
	Failovers   []Failover        `json:"failovers,omitempty"` // of its databases, in all visits
	Steps       []Step            `json:"steps"`
	LimitedBy   string            `json:"limited_by"`
	Limit       Limit             `json:"limit"`
	Valid       bool              `json:"valid"`
	Invalid     []string          `json:"invalid,omitempty"` // why the cell is not valid; also in Warnings
	Warnings    []string          `json:"warnings"`
	Error       string            `json:"error,omitempty"` // why the cell could not be measured
}

// Failover is one change of the primary of a replicated database, with the duration of each step.
type Failover struct {
	Epoch    int64  `json:"epoch"`     // of the new primary
	From     string `json:"from"`      // old primary
	To       string `json:"to"`        // new primary
	UnixNS   int64  `json:"unix_ns"`   // when the old primary last answered
	DetectNS int64  `json:"detect_ns"` // from that answer until the old primary was considered dead
	FenceNS  int64  `json:"fence_ns"`  // until it could no longer accept writes
	// PromoteNS ends when the new primary accepts writes, SwitchNS when the web nodes send their writes to it.
	PromoteNS int64 `json:"promote_ns"`
	SwitchNS  int64 `json:"switch_ns"`
	// ReplaceNS is the time from the last answer of the old primary until it was a replica that had caught up; 0 = not
	// yet.
	ReplaceNS int64 `json:"replace_ns"`
	Position  int64 `json:"position"` // of the last change that the new primary had
}

// Speed is how fast the machine was at one moment, in work per second.
type Speed struct {
	Compute  float64 `json:"compute"`  // blocks of 1 KiB hashed with SHA-256
	Loopback float64 `json:"loopback"` // round trips of one byte over TCP
	Memory   float64 `json:"memory"`   // pages of a memory of 16 MiB read
}

// Gain is the capacity of a cell divided by that of the previous stage, with its 90 % interval. The interval comes from
// the ratios of visits in the same pass, which are neighbours in time.
type Gain struct {
	Over  string  `json:"over"` // the previous stage
	Ratio float64 `json:"ratio"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
}

// Warnf adds a warning.
func (c *Cell) Warnf(format string, args ...any) {
	c.Warnings = append(c.Warnings, fmt.Sprintf(format, args...))
}

// Invalidatef adds a reason why the figures of the cell cannot be trusted.
func (c *Cell) Invalidatef(format string, args ...any) {
	c.Warnf(format, args...)
	c.Valid, c.Invalid = false, append(c.Invalid, c.Warnings[len(c.Warnings)-1])
}

// Measured reports whether any step of the cell was measured. If not, its system may never have run.
func (c Cell) Measured() bool { return c.Reference != nil || len(c.Steps) > 0 }

// Isolated reports whether every host of the cell was held to its budget. It is not known unless the cell is Measured.
func (c Cell) Isolated() bool {
	return !slices.ContainsFunc(c.Hosts, func(h CellHost) bool { return !h.Isolated })
}

// Schema is the version of summary.json. Fields may be added, never renamed.
const Schema = 1

// Run is everything measured by one invocation: summary.json.
type Run struct {
	Schema   int      `json:"schema"`
	Run      string   `json:"run"`
	Complete bool     `json:"complete"`       // false while it runs and after an interruption
	Data     string   `json:"data,omitempty"` // size of the data set, and its number of records
	Cells    []Cell   `json:"cells"`
	Gate     *Gate    `json:"gate,omitempty"` // nil = the run is no gate
	Warnings []string `json:"warnings"`
}

// Manifest is manifest.json: what was run and on which machine, in enough detail to run it again.
type Manifest struct {
	Schema    int               `json:"schema"`
	Run       string            `json:"run"`
	Command   []string          `json:"command"`
	Started   time.Time         `json:"started"`
	Seed      uint64            `json:"seed"`
	Data      string            `json:"data"`
	Config    map[string]any    `json:"config"` // effective configuration, from the values that were used
	Digests   map[string]string `json:"digests"`
	Version   string            `json:"version"`
	BinarySHA string            `json:"binary_sha256"`
	Go        string            `json:"go"`
	OS        string            `json:"os"`
	Kernel    string            `json:"kernel"`
	CPUModel  string            `json:"cpu_model"`
	Cores     int               `json:"cores"`
	// Budgets says how hosts were isolated: "cgroup v1", "cgroup v2", "not isolated".
	Budgets string `json:"budgets"`
	// Priority is that of the driver while it sends: "real-time", or why it is the ordinary one.
	Priority string            `json:"driver_priority,omitempty"`
	UnitCPU  float64           `json:"unit_cpu"`
	Reserve  float64           `json:"reserve_cpu"`
	Engines  map[string]string `json:"engines"`
	Versions map[string]string `json:"versions,omitempty"` // of the engines, by role; known once they run
	Warnings []string          `json:"warnings"`
}
