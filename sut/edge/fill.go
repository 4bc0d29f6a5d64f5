package edge

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/edge/rules"
	"github.com/stagebench/stagebench/sut/edge/store"
)

const (
	// orphanTime bounds a fill that no client waits for any more.
	orphanTime = 30 * time.Second
	// stallTimeout bounds the time in which the origin sends no byte of a body, or a client reads none of a body that is
	// not kept.
	stallTimeout = sut.ResponseTimeout
	// failureTime is the time in which requests for a key share the failure of its last fill. Otherwise, during an outage,
	// they would try the origin one after the other.
	failureTime = time.Second
	// chunkBytes is the size of the first buffer of a body without a length.
	chunkBytes = 32 << 10
)

// outcome is what the header of the origin's response means for those who wait for a fill.
type outcome int

const (
	failed  outcome = iota // no answer: fill.failure
	private                // the response is for the leader only: fill.response; waiters get fill.failure if set
	shared                 // the response may be stored: fill.header and fill.body
	entry                  // a stored response is used: fill.entry
)

// fill is one GET request to the origin whose response may be stored. Its leader is the request that caused it. A
// fill in the background has no leader.
type fill struct {
	edge   *Edge
	key    string
	host   string
	uri    string
	rules  rules.Request // of the leader
	stored *store.Entry  // the response that is being validated; nil = none
	ticket store.Ticket
	admit  atomic.Bool // the response is stored
	ctx    context.Context
	cancel context.CancelFunc
	inform func(int, http.Header)

	background bool        // it has no leader
	left       atomic.Bool // the leader has left
	// waiters are the requests that wait for the header, the leader included. They have joined the body, or given up,
	// before its beginning may be lost.
	waiters sync.WaitGroup

	// Set before ready is closed, and not modified afterwards.
	ready     chan struct{}
	outcome   outcome
	failure   *failure
	response  *http.Response
	verdict   rules.Verdict
	header    http.Header
	status    int // of the origin; 0 = no answer
	length    int64
	selecting []rules.Field
	groups    []string
	entry     *store.Entry
	body      *body

	claimed  atomic.Bool // someone closes the private response
	reserved int64       // memory for the body
	stall    *time.Timer
	orphan   *time.Timer
	expiry   *time.Timer // guarded by the mutex of flights
}

// newFill makes a fill. Requests are those of the leader x, whose response is sent by its caller.
func (x *exchange) newFill(stored *store.Entry, base context.Context) *fill {
	f := &fill{
		edge: x.edge, key: x.key, host: x.host, uri: x.uri, rules: x.rules, stored: stored,
		ticket: x.edge.store.Begin(), ready: make(chan struct{}),
	}
	f.ctx, f.cancel = context.WithCancel(base)
	return f
}

// run fetches the header, and then the body if it may be stored. It is the goroutine of a fill in flights.
func (f *fill) run(out *http.Request) {
	res := f.fetch(out)
	f.edge.flights.open(f)
	switch {
	case f.outcome == private:
		f.edge.flights.remove(f)
		if f.background || f.left.Load() {
			f.discard()
		}
		f.over()
	case res != nil:
		f.pump(res)
		f.edge.flights.remove(f)
		f.over()
	case f.outcome == failed || f.status == 0 || rules.ServerError(f.status):
		f.over()
		f.edge.flights.removeAfter(f, failureTime)
	default:
		f.edge.flights.remove(f)
		f.over()
	}
}

// over ends the use of the ticket. The context of a private response lives until its body is closed.
func (f *fill) over() {
	f.edge.store.End(f.ticket)
	if f.outcome != private {
		f.cancel()
	}
}

// fetch sends the request and decides the outcome. It returns the response if its body is to be stored.
func (f *fill) fetch(out *http.Request) *http.Response {
	e := f.edge
	conditional := false
	if f.stored != nil {
		conditional = rules.Validators(out.Header, f.stored.Header)
	}
	requested := time.Now()
	res, err := e.send(out, f.inform)
	if err == nil && conditional && res.StatusCode == http.StatusNotModified &&
		!rules.Updates(res.Header, f.stored.Header) {
		// The 304 is about another version, so the stored one cannot be used.
		_ = res.Body.Close()
		out = out.Clone(out.Context())
		rules.Unconditional(out.Header)
		conditional, requested = false, time.Now()
		res, err = e.send(out, f.inform)
	}
	now := time.Now()
	if err != nil {
		f.fail(err, now)
		return nil
	}
	e.clean(res, now)
	f.status = res.StatusCode
	if f.stored != nil {
		if conditional && res.StatusCode == http.StatusNotModified {
			_ = res.Body.Close()
			f.update(res, requested, now)
			return nil
		}
		if f.stored.UsableAfterError(res.StatusCode, now) {
			_ = res.Body.Close()
			f.outcome, f.entry = entry, f.stored
			return nil
		}
	}
	return f.receive(res, requested, now)
}

// fail decides the outcome when the origin gave no answer.
func (f *fill) fail(err error, now time.Time) {
	if f.stored != nil && f.stored.UsableAfterError(0, now) {
		f.outcome, f.entry = entry, f.stored
		return
	}
	f.outcome, f.failure = failed, failureOf(err)
	if f.stored != nil && f.stored.MustRevalidate {
		f.failure.code = http.StatusGatewayTimeout // RFC 9111, 5.2.2.2
	}
}

// update decides the outcome after a 304.
func (f *fill) update(res *http.Response, requested, received time.Time) {
	e, old := f.edge, f.stored
	merged := rules.Merge(old.Header, res.Header)
	// The age is that of the 304, and the lifetime that of the merged response.
	v := rules.Assess(f.rules, rules.Response{
		Status: old.Status, Header: merged, Requested: requested, Received: received,
	}, e.cfg.TTL)
	names, _ := rules.ParseVary(merged)
	fresh := &store.Entry{
		Stored: v.Stored, Key: f.key, Selecting: rules.Selecting(names, f.rules.Header),
		Groups: e.groupsOf(f.host, f.uri, merged), Status: old.Status, Header: merged, Body: old.Body,
	}
	f.outcome, f.entry, f.groups = entry, fresh, fresh.Groups
	if v.Store {
		e.unqueued.remove(f.key)
		e.store.Put(f.ticket, fresh, true)
	} else {
		e.store.Drop(old)
	}
}

// receive decides the outcome of a response with a body. It returns the response if the body is to be stored.
func (f *fill) receive(res *http.Response, requested, received time.Time) *http.Response {
	e := f.edge
	f.verdict = rules.Assess(f.rules, rules.Response{
		Status: res.StatusCode, Header: res.Header, Requested: requested, Received: received,
	}, e.cfg.TTL)
	// A body that ends with its connection may have broken off.
	whole := res.ContentLength >= 0 || len(res.TransferEncoding) > 0
	keep := f.verdict.Store && whole && res.ContentLength <= e.store.MaxBody()
	switch {
	case keep:
		e.unqueued.remove(f.key)
	case f.rules.Shareable() && res.StatusCode != http.StatusNotModified && !rules.ServerError(res.StatusCode):
		e.unqueued.add(f.key, received)
	}
	f.header, f.length = res.Header, res.ContentLength
	if !keep || f.length > 0 && !e.store.Reserve(f.length) {
		switch {
		case rules.ServerError(res.StatusCode):
			f.failure = errorOf(res)
		case f.stored != nil:
			e.store.Drop(f.stored) // the origin has replaced it by a response that cannot be stored
		}
		f.outcome, f.response = private, res
		return nil
	}
	f.reserved = max(0, f.length)
	names, _ := rules.ParseVary(res.Header)
	f.selecting = rules.Selecting(names, f.rules.Header)
	f.groups = e.groupsOf(f.host, f.uri, res.Header)
	f.orphan = time.AfterFunc(orphanTime, f.cancel)
	f.body = newBody(f.readersChanged)
	f.outcome = shared
	return res
}

// readersChanged bounds the fill while nobody reads.
func (f *fill) readersChanged(readers int) {
	switch {
	case readers > 0:
		f.orphan.Stop()
	case f.body.dropped || !f.admit.Load():
		f.cancel() // nobody needs the body, and it will not be stored
	default:
		f.orphan.Reset(orphanTime)
	}
}

// pump receives the body and stores the response.
func (f *fill) pump(res *http.Response) {
	defer res.Body.Close()
	f.stall = time.AfterFunc(stallTimeout, f.cancel)
	defer f.stall.Stop()
	defer f.orphan.Stop()
	last, err := f.receiveBody(res.Body)
	if err == nil && !f.body.dropped {
		f.store(last)
	}
	f.edge.store.Release(f.reserved)
	f.body.end(last, err)
}

// receiveBody reads the body to its end. It returns how many of the last bytes readers do not see yet, and why the body
// broke off. A client that knows the length has its response as soon as it has these bytes, so they are stored first:
// otherwise its next request could come before.
func (f *fill) receiveBody(from io.Reader) (last int, err error) {
	if f.length == 0 {
		return 0, nil
	}
	capacity := f.length
	if capacity < 0 {
		capacity = 0
	}
	for {
		room := f.room(&capacity)
		if room == nil {
			return 0, errors.New("no client reads the body")
		}
		n, err := from.Read(room)
		f.stall.Reset(stallTimeout)
		switch {
		case err == io.EOF:
			return n, nil
		case err != nil:
			return n, err
		case n > 0:
			f.body.extend(n)
		}
	}
}

// room returns space for more bytes of the body. When the body becomes too large to be stored, it gives up keeping
// it. It returns nil when nobody reads a body that is not kept.
func (f *fill) room(capacity *int64) []byte {
	b := f.body
	if !b.dropped && int64(len(b.buf)) == *capacity {
		if f.length >= 0 {
			// All bytes are there. The last read, for the end of the body, needs space, too.
			return make([]byte, 1)
		}
		more := min(max(*capacity, chunkBytes), f.edge.store.MaxBody()-*capacity)
		if more > 0 && f.edge.store.Reserve(more) {
			f.reserved += more
			*capacity += more
		} else {
			f.waiters.Wait()
			b.drop()
		}
	}
	if !b.dropped {
		return b.room(*capacity)
	}
	expired := make(chan struct{})
	timer := time.AfterFunc(stallTimeout, func() { close(expired) })
	defer timer.Stop()
	f.stall.Stop() // the origin waits for the clients
	if b.drain(f.ctx, expired) == 0 {
		return nil
	}
	f.stall.Reset(stallTimeout)
	f.edge.store.Release(f.reserved)
	f.reserved = 0
	return b.room(chunkBytes)
}

// store stores the complete response, whose last bytes readers do not see yet.
func (f *fill) store(last int) {
	if !f.admit.Load() {
		return
	}
	content := f.body.bytes(last)
	if cap(content)-len(content) > len(content)/8 {
		content = append(make([]byte, 0, len(content)), content...)
	}
	header := f.header.Clone()
	if hasBody(f.status) {
		header[headerLength] = []string{strconv.Itoa(len(content))}
	}
	f.edge.store.Put(f.ticket, &store.Entry{
		Stored: f.verdict.Stored, Key: f.key, Selecting: f.selecting, Groups: f.groups,
		Status: f.status, Header: header, Body: content,
	}, false)
}

// hasBody reports whether responses with a status have a body.
func hasBody(status int) bool {
	return status != http.StatusNoContent && status != http.StatusNotModified
}

// take returns the private response to the leader; nil = it is closed already.
func (f *fill) take() *http.Response {
	if f.claimed.CompareAndSwap(false, true) {
		return f.response
	}
	return nil
}

// abandon says that the leader does not wait any more. The fill goes on.
func (f *fill) abandon() {
	f.left.Store(true)
	select {
	case <-f.ready:
		f.discard()
	default: // run sees that the leader has left
	}
}

// discard closes a private response, unless that was done or the leader has taken it.
func (f *fill) discard() {
	if res := f.take(); res != nil {
		_ = res.Body.Close()
		f.cancel()
	}
}
