package queue

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stagebench/stagebench/sut/photos"
)

// Values of the label result of stagebench_jobs_put_total.
const (
	putStored  = "stored"
	putPresent = "present" // the queue had the job
	putFailed  = "failed"
)

// metrics are those of one client: a web host puts jobs, and a worker does them.
type metrics struct {
	put         *prometheus.CounterVec // by result
	ended       *prometheus.CounterVec // by result
	redelivered prometheus.Counter
	retried     prometheus.Counter
	waited      prometheus.Histogram
	took        prometheus.Histogram
}

func newMetrics() *metrics {
	seconds := []float64{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60}
	m := &metrics{
		put: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stagebench_jobs_put_total", Help: "Jobs that this host put into the queue, by result.",
		}, []string{"result"}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stagebench_jobs_total", Help: "Jobs that this worker ended, by result.",
		}, []string{"result"}),
		redelivered: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "stagebench_jobs_redelivered_total", Help: "Deliveries of jobs that had been delivered before.",
		}),
		retried: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "stagebench_jobs_retried_total", Help: "Attempts at jobs that failed: the job is tried or delivered again.",
		}),
		waited: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "stagebench_job_wait_seconds", Help: "Time from storing a job to its delivery.", Buckets: seconds,
		}),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "stagebench_job_duration_seconds", Help: "Time from the delivery of a job to its end.", Buckets: seconds,
		}),
	}
	for _, result := range []string{putStored, putPresent, putFailed} {
		m.put.WithLabelValues(result)
	}
	for _, end := range photos.JobEnds() {
		m.ended.WithLabelValues(string(end))
	}
	return m
}

func (m *metrics) register(registry prometheus.Registerer) error {
	var errs []error
	for _, c := range []prometheus.Collector{m.put, m.ended, m.redelivered, m.retried, m.waited, m.took} {
		errs = append(errs, registry.Register(c))
	}
	return errors.Join(errs...)
}
