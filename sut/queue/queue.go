// Package queue carries the jobs of the photo service from web hosts to workers, over NATS JetStream. The broker is the
// embedded one of package broker or a native nats-server. Only the address differs.
//
// A job is the id of a photo, and nothing else. It has a subject of its own, and the stream keeps at most one message
// of a subject. So a photo that is put again while its job is stored changes nothing, however old the job is. (The
// de-duplication of JetStream by message id is not enough: it forgets after two minutes, and messages that were
// consumed also at a restart.) After a job was done, putting its photo again makes a new job: workers find that it is
// done.
//
// A job is delivered at least once. It is delivered again if its worker does not acknowledge it within
// Config.Redeliver, and a worker extends this time while it works. A job that fails is delivered again after a pause,
// and after MaxDeliver deliveries it becomes a dead letter. The server knows no such limit: with one, exhausted
// messages would stay in the stream for ever, and a job that kills its workers would be one of them.
//
// The usual order of calls is Open, Ensure, then Put on web hosts and Work on workers, and Close. A Queue is safe for
// concurrent use. It connects in the background, and again after each failure.
package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
)

// Names on the broker.
const (
	stream      = "PHOTOS"
	subjects    = "jobs.photo." // followed by the id
	deadStream  = "DEAD_PHOTOS"
	deadLetters = "dead.photo."
	consumer    = "workers"
)

// MaxDeliver is the number of deliveries after which a job is given up.
const MaxDeliver = 5

const (
	putTimeout     = 500 * time.Millisecond // of one Put
	reconnectWait  = 100 * time.Millisecond
	connectTimeout = time.Second
	maxPending     = 64 // jobs that are delivered and not acknowledged; each worker has one or two
	maxDead        = 10_000
)

// Config is the configuration of a Queue.
type Config struct {
	Brokers []sut.Peer
	Secret  sut.Secret
	Name    string // of this client, for the broker
	// Replicas is the number of brokers that store each job: 1 or 3.
	Replicas int
	// Redeliver is the time after which a job without acknowledgement is delivered again.
	Redeliver time.Duration
	// Pause is the time until a job that failed is delivered again, and doubles each time; 0 = 500 ms.
	Pause time.Duration
	// MaxBytes bounds the stored jobs. When it is reached, Put returns an error: no job is dropped.
	MaxBytes int64
	// RequestID returns the request id of a context; nil = jobs carry none.
	RequestID func(context.Context) string
	Log       *slog.Logger
	Registry  prometheus.Registerer // gets the metrics stagebench_jobs_*; nil = they are not exported
}

// Queue is a client of the brokers.
type Queue struct {
	config  Config
	conn    *nats.Conn
	stream  jetstream.JetStream
	metrics *metrics
}

// Open returns a queue. It does not wait for a broker.
func Open(c Config) (*Queue, error) {
	c.Replicas, c.Pause = cmp.Or(c.Replicas, 1), cmp.Or(c.Pause, 500*time.Millisecond)
	if len(c.Brokers) == 0 || c.Redeliver <= 0 || c.MaxBytes <= 0 || c.Log == nil {
		return nil, errors.New("queue: Brokers, Redeliver, MaxBytes and Log are required")
	}
	q := &Queue{config: c, metrics: newMetrics()}
	if c.Registry != nil {
		if err := q.metrics.register(c.Registry); err != nil {
			return nil, fmt.Errorf("queue: %w", err)
		}
	}
	var addresses []string
	for _, b := range c.Brokers {
		addresses = append(addresses, "nats://"+b.Address)
	}
	var err error
	q.conn, err = nats.Connect(strings.Join(addresses, ","),
		nats.Token(string(c.Secret)), nats.Name(c.Name), nats.Timeout(connectTimeout),
		nats.IgnoreDiscoveredServers(), nats.RetryOnFailedConnect(true),
		// The defaults give up after two minutes, and keep what is published meanwhile: it would be sent long after Put
		// has returned an error.
		nats.MaxReconnects(-1), nats.ReconnectWait(reconnectWait), nats.ReconnectJitter(reconnectWait/2, 0),
		nats.ReconnectBufSize(-1),
		// A broker that hangs is noticed within three seconds.
		nats.PingInterval(time.Second), nats.MaxPingsOutstanding(2),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				c.Log.Warn("the broker does not answer", "error", err.Error())
			}
		}),
		nats.ReconnectHandler(func(conn *nats.Conn) { c.Log.Info("connected to a broker", "broker", conn.ConnectedAddr()) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			c.Log.Warn("the broker reports an error", "error", err.Error())
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("queue: %w", err)
	}
	if q.stream, err = jetstream.New(q.conn); err != nil {
		q.conn.Close()
		return nil, fmt.Errorf("queue: %w", err)
	}
	return q, nil
}

// Close ends the connection.
func (q *Queue) Close() { q.conn.Close() }

// Ensure makes the streams and the consumer if they do not exist. All clients ask for the same.
func (q *Queue) Ensure(ctx context.Context) error {
	_, err := q.stream.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: stream, Subjects: []string{subjects + "*"}, Storage: jetstream.FileStorage, Replicas: q.config.Replicas,
		Retention: jetstream.WorkQueuePolicy, MaxBytes: q.config.MaxBytes,
		Discard: jetstream.DiscardNew, DiscardNewPerSubject: true, MaxMsgsPerSubject: 1,
	})
	if err != nil {
		return fmt.Errorf("queue: stream %s: %w", stream, err)
	}
	_, err = q.stream.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: deadStream, Subjects: []string{deadLetters + "*"}, Storage: jetstream.FileStorage,
		Replicas: q.config.Replicas, MaxMsgs: maxDead, MaxMsgsPerSubject: 1,
	})
	if err != nil {
		return fmt.Errorf("queue: stream %s: %w", deadStream, err)
	}
	_, err = q.stream.CreateOrUpdateConsumer(ctx, stream, jetstream.ConsumerConfig{
		Durable: consumer, AckPolicy: jetstream.AckExplicitPolicy, AckWait: q.config.Redeliver, MaxDeliver: -1,
		MaxAckPending: maxPending,
	})
	if err != nil {
		return fmt.Errorf("queue: consumer %s: %w", consumer, err)
	}
	return nil
}

// Put puts the job of a photo into the queue. It returns nil when the broker has stored it, or stores it already. An
// error wraps photos.ErrUnavailable. The job may be stored nevertheless; putting it again does no harm.
func (q *Queue) Put(ctx context.Context, photo photos.ID) error {
	_, err := q.PutAgain(ctx, photo)
	return err
}

// PutAgain is Put, and says whether the queue did not have the job.
func (q *Queue) PutAgain(ctx context.Context, photo photos.ID) (missing bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, putTimeout)
	defer cancel()
	id := strconv.FormatInt(int64(photo), 10)
	message := nats.NewMsg(subjects + id)
	if q.config.RequestID != nil {
		message.Header.Set(sut.RequestIDHeader, q.config.RequestID(ctx))
	}
	_, err = q.stream.PublishMsg(ctx, message, jetstream.WithExpectStream(stream), jetstream.WithRetryAttempts(0))
	switch {
	case err == nil:
		q.metrics.put.WithLabelValues(putStored).Inc()
		return true, nil
	case isPresent(err):
		q.metrics.put.WithLabelValues(putPresent).Inc()
		return false, nil
	}
	q.metrics.put.WithLabelValues(putFailed).Inc()
	return false, sut.OfTier(sut.Queue, fmt.Errorf("%w: put the job of photo %d: %w", photos.ErrUnavailable, photo, err))
}

// isPresent reports whether the stream refused a job because it has it. The server has one error code for all reasons
// to refuse a message, so the text decides.
func isPresent(err error) bool {
	refused, ok := errors.AsType[*jetstream.APIError](err)
	return ok && strings.Contains(refused.Description, "maximum messages per subject exceeded")
}

// Ping returns nil if a broker accepts a client with the secret.
func Ping(ctx context.Context, address string, secret sut.Secret) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, err := nats.Connect("nats://"+address, nats.Token(string(secret)), nats.Timeout(connectTimeout),
		nats.NoReconnect(), nats.SetCustomDialer(dialer{ctx}))
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.FlushWithContext(ctx)
}

// dialer ends a dial with its context.
type dialer struct{ ctx context.Context }

// Dial implements nats.CustomDialer.
func (d dialer) Dial(network, address string) (net.Conn, error) {
	var n net.Dialer
	return n.DialContext(d.ctx, network, address)
}
