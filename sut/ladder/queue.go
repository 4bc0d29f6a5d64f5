package ladder

import (
	"fmt"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// Queue is the settings of the queue of jobs, and of the workers that do them.
type Queue struct {
	CPU          float64 // size of each broker host in units
	Engine       sut.Engine
	Replicas     int // brokers; each of them stores every job
	Sync         QueueSync
	SyncInterval time.Duration // with SyncInterval: time between two writes to the disk
	Redeliver    time.Duration // a job that is not acknowledged is delivered again after this time
	CapacityMB   int           // of the stored jobs
	Workers      int           // worker hosts
	WorkerCPU    float64       // size of each worker host in units
}

// QueueSync says when a broker acknowledges a job.
type QueueSync string

// With SyncInterval, a job is acknowledged when it is written to a file, which survives the death of the process. The
// file is forced to the disk from time to time, and a power cut loses the jobs since then. With SyncAlways, a job is on
// the disk before it is acknowledged.
const (
	SyncInterval QueueSync = "interval"
	SyncAlways   QueueSync = "always"
)

// defaultSyncSeconds is the interval of NATS. Version 2.9 has no other.
const defaultSyncSeconds = 120

// QueueOf returns the settings of the queue.
func QueueOf(k sut.Knobs) Queue { return settings[Queue](k) }

// WorkerMemory is the memory of a worker host in bytes.
func (s Queue) WorkerMemory() int64 { return int64(max(s.WorkerCPU, 1) * memoryPerUnit) }

// Unsynced is how long an acknowledged job may not be on the disk yet.
func (s Queue) Unsynced() time.Duration {
	if s.Sync == SyncAlways {
		return 0
	}
	return s.SyncInterval
}

func (s *Queue) knobs() []Knob { return append(s.brokerKnobs(), s.workerKnobs()...) }

func (s *Queue) brokerKnobs() []Knob {
	return []Knob{
		number("queue.cpu", &s.CPU, 1, 0.5, 32, "size of each broker host in units"),
		engine(sut.Queue, &s.Engine, queueEngines(), "implementation of the broker, from stage queue on"),
		oneOf("queue.replicas", "1", "brokers, each of which stores every job before it is acknowledged; with 3, one of "+
			"them can die, which costs CPU for each job and needs a network address for each host", []string{"1", "3"},
			func(v string) { s.Replicas = map[string]int{"1": 1, "3": 3}[v] }),
		choice("queue.sync", &s.Sync, SyncInterval, "when a job counts as stored: interval = when it is written to a file, "+
			"so that the death of the broker loses nothing, and a power cut loses the jobs of the last interval; "+
			"always = when it is on the disk; nats-server 2.9 has interval only", SyncAlways),
		seconds("queue.sync_interval", &s.SyncInterval, defaultSyncSeconds, 0.1, 3600,
			"with queue.sync=interval: seconds between two writes to the disk").on(sut.JetStream),
		seconds("queue.redeliver", &s.Redeliver, 3, 1, 60, "seconds after which a job is delivered to another worker if its "+
			"worker neither acknowledges it nor says that it is still working"),
		integer("queue.capacity_mb", &s.CapacityMB, 64, 1, 10_000,
			"space for jobs in MB; when it is full, uploads still succeed, and their jobs are put later; "+
				"a job takes about 100 bytes"),
	}
}

func (s *Queue) workerKnobs() []Knob {
	return []Knob{
		integer("queue.workers", &s.Workers, 1, 1, 16, "worker hosts, which process uploaded photos"),
		number("worker.cpu", &s.WorkerCPU, 1, 0.5, 32, "size of each worker host in units"),
	}
}

func queueEngines() []EngineInfo {
	return []EngineInfo{{Name: sut.JetStream}, {Name: sut.NATSServer, Native: true}}
}

func queueTier() Tier {
	from := []sut.Role{sut.Queue}
	return Tier{
		Role: sut.Queue, From: sut.Queued, Engines: queueEngines(), Knobs: new(Queue).brokerKnobs(),
		Figures: []Figure{
			{
				Name: "queue_backlog", Metric: "stagebench_queue_backlog", From: from, Kind: Gauge, Title: "backlog",
				Doc: "backlog: jobs that were not done at the end of the step",
			},
			{
				Name: "queue_at_risk", Metric: "stagebench_queue_at_risk", From: from, Kind: Gauge, Title: "at risk",
				Doc: "at risk: acknowledged jobs that may not be on the disk at the end of the step; a power cut can lose them, " +
					"and the photos are then put again",
			},
			{
				Name: "queue_dead_letters", Metric: "stagebench_queue_dead_letters", From: from, Kind: Gauge,
				Doc: "jobs that were given up since the system came up",
			},
			{
				Name: "jobs_put_failed", Metric: `stagebench_jobs_put_total{result="failed"}`,
				From: []sut.Role{sut.Web}, Kind: Counter,
				Doc: "jobs that the queue did not store in time; their uploads succeeded, and they are put again",
			},
			{
				Name: "jobs_swept", Metric: "stagebench_jobs_swept_total",
				From: []sut.Role{sut.Web}, Kind: Counter, Doc: "photos that waited too long without a job, and got a new one",
			},
		},
		check: checkQueue, place: placeQueue,
	}
}

func workerTier() Tier {
	from := []sut.Role{sut.Worker}
	return Tier{
		Role: sut.Worker, From: sut.Queued, Engines: []EngineInfo{{Name: sut.Processor}}, Knobs: new(Queue).workerKnobs(),
		Calls: func(sut.Stage, sut.Knobs) []sut.Role {
			return []sut.Role{sut.DB, sut.Cache, sut.Blob, sut.Queue}
		},
		Scaling: []Scaling{{Name: "worker", Knob: "queue.workers"}},
		Figures: []Figure{
			{
				Name: "jobs_done", Metric: `stagebench_jobs_total{result="done"}`, From: from, Kind: Counter,
				Doc: "photos that workers processed",
			},
			{
				Name: "jobs_repeated", Metric: `stagebench_jobs_total{result="repeated"}`, From: from, Kind: Counter,
				Title: "repeated\njobs", Doc: "repeated jobs: jobs that were delivered again although they had been done",
			},
			{
				Name: "jobs_failed", Metric: `stagebench_jobs_total{result="failed"}`, From: from, Kind: Counter,
				Doc: "photos that cannot be processed",
			},
			{
				Name: "jobs_redelivered", Metric: "stagebench_jobs_redelivered_total", From: from, Kind: Counter,
				Doc: "deliveries of jobs that had been delivered before",
			},
		},
		check: func(sut.Stage, sut.Knobs) error { return nil }, place: placeWorkers,
	}
}

func checkQueue(stage sut.Stage, k sut.Knobs) error {
	s := QueueOf(k)
	switch {
	case before(stage, sut.Queued) || s.Engine != sut.NATSServer:
		return nil
	case s.Sync != SyncInterval:
		return fmt.Errorf("queue.sync=%s needs queue.engine=%s: nats-server 2.9 has no such setting", s.Sync, sut.JetStream)
	case s.SyncInterval != defaultSyncSeconds*time.Second:
		return fmt.Errorf("queue.sync_interval=%s needs queue.engine=%s: nats-server 2.9 writes to the disk every %d s",
			k["queue.sync_interval"], sut.JetStream, defaultSyncSeconds)
	}
	return nil
}

// placeQueue places the brokers. Each of several uses those before it, which it joins at its start.
func placeQueue(p *plan) error {
	s := QueueOf(p.knobs)
	for i := range s.Replicas {
		name := fmt.Sprintf("broker-%d", i+1)
		p.node(sut.Node{Name: name, Host: p.host(name, s.CPU), Engine: s.Engine, Uses: p.names(p.role)})
	}
	return nil
}

func placeWorkers(p *plan) error {
	s := QueueOf(p.knobs)
	for i := range s.Workers {
		name := numbered(p.role, i)
		p.node(sut.Node{Name: name, Host: p.host(name, s.WorkerCPU), Engine: sut.Processor})
	}
	return nil
}
