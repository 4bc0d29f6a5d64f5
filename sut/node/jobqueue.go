package node

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/app"
	"github.com/stagebench/stagebench/sut/jobs"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/node/process"
	"github.com/stagebench/stagebench/sut/queue"
	"github.com/stagebench/stagebench/sut/store"
)

// jobQueue is the queue of a web host, and the sweeper that puts photos again. All methods do nothing on nil.
type jobQueue struct {
	queue   *queue.Queue
	sweeper jobs.Sweeper
	memory  int64 // what a worker has for pictures in processing
}

// sweepAge is the age at which a photo is put again, as a multiple of the time until a redelivery. A job that its
// worker lost is delivered again before that.
const sweepAge = 2

// openJobs opens the queue of a web host; nil = there is no broker.
func openJobs(n process.Node, records *store.Store) (*jobQueue, error) {
	brokers := n.Config.Wiring.Active(sut.Queue)
	if len(brokers) == 0 || n.Config.Service == sut.Reads {
		return nil, nil
	}
	q, err := openQueue(n, brokers, app.RequestID)
	if err != nil {
		return nil, err
	}
	swept := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "stagebench_jobs_swept_total",
		Help: "Photos that were processing for too long without a job in the queue, and got a new one.",
	})
	n.Registry.MustRegister(swept)
	settings := ladder.QueueOf(n.Config.Knobs)
	redeliver := settings.Redeliver
	return &jobQueue{q, jobs.Sweeper{
		Processing: records.Processing, PutAgain: q.PutAgain, Age: sweepAge * redeliver, Interval: redeliver,
		Seed: uint64(n.Config.IDHost), Log: n.Log, Swept: swept,
	}, app.PictureMemory(settings.WorkerMemory())}, nil
}

// taker returns what takes the jobs of uploads; nil = nothing does.
func (j *jobQueue) taker() app.Jobs {
	if j == nil {
		return nil
	}
	return j.queue
}

// workerMemory returns what a worker has for pictures in processing; 0 = there are no workers.
func (j *jobQueue) workerMemory() int64 {
	if j == nil {
		return 0
	}
	return j.memory
}

// background sweeps until ctx ends.
func (j *jobQueue) background(ctx context.Context) {
	if j != nil {
		j.sweeper.Run(ctx)
	}
}

func (j *jobQueue) close() {
	if j != nil {
		j.queue.Close()
	}
}
