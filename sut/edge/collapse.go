package edge

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/stagebench/stagebench/sut/edge/rules"
	"github.com/stagebench/stagebench/sut/edge/store"
)

// maxJoins bounds how often a request waits for the fill of another one in vain, because its response is for other
// requests (Vary). After that it goes to the origin itself.
const maxJoins = 3

// respond answers a request from the store, from a fill, or from the origin.
func (x *exchange) respond() {
	e := x.edge
	for joins := 0; ; joins++ {
		stored, known := e.store.Get(x.key, x.request.Header)
		var about *rules.Stored
		if stored != nil {
			about = &stored.Stored
		}
		now := time.Now()
		d := rules.Decide(x.rules, about, now)
		switch d.Action {
		case rules.Hit, rules.Stale:
			if d.Action == rules.Stale {
				x.refresh(stored)
			}
			e.hits.Add(1)
			ttl := stored.Fresh/time.Second - stored.Age(now)/time.Second // in whole seconds, as the field Age
			x.serveEntry(stored, "; hit; ttl="+itoa(int(ttl)))
			return
		case rules.Bypass:
			x.forward(d.Reason)
			return
		}
		if x.rules.OnlyIfCached() {
			x.refuse(http.StatusGatewayTimeout, rules.ReasonRequest, "there is no stored response that can be used")
			return
		}
		reason := d.Reason
		switch {
		case reason == rules.ReasonMiss && known:
			reason = rules.ReasonVaryMiss
		case reason == rules.ReasonMiss:
			reason = rules.ReasonURIMiss
		}
		if x.request.Method == http.MethodHead {
			x.forward(reason)
			return
		}
		if d.Action == rules.Miss {
			stored = nil
		}
		if x.miss(stored, reason, joins >= maxJoins) {
			return
		}
	}
}

// miss answers a GET that the store cannot answer. It returns false when the request waited for a fill whose response
// is not for it.
func (x *exchange) miss(stored *store.Entry, reason string, alone bool) bool {
	e := x.edge
	seen := stored != nil || e.store.Seen(x.key)
	// A range is cut from the stored response, so the validation is the same for all.
	shareable := x.rules.Shareable() || stored != nil && x.rules.ShareableWithoutRange()
	if alone || !shareable || stored == nil && e.unqueued.has(x.key, time.Now()) {
		x.alone(stored, reason, seen)
		return true
	}
	f, leads, waits := e.flights.join(x, stored)
	if seen || !leads {
		f.admit.Store(true)
	}
	if leads {
		x.lead(f)
	}
	select {
	case <-f.ready:
	case <-x.request.Context().Done():
		if waits {
			f.waiters.Done()
		}
		if leads {
			f.abandon()
		}
		x.abort(x.request.Context().Err())
	}
	x.final()
	return x.use(f, leads, waits, reason)
}

// lead starts a fill that others may join. It outlives the request of its leader.
func (x *exchange) lead(f *fill) {
	out := x.outgoing(f.ctx)
	rules.Unconditional(out.Header)
	f.inform = x.inform
	x.edge.fills.Go(func() { f.run(out) })
}

// refresh starts a fill in the background, unless there is one.
func (x *exchange) refresh(stored *store.Entry) {
	f := x.edge.flights.joinBackground(x, stored)
	if f == nil {
		return
	}
	f.admit.Store(true)
	out := x.outgoing(f.ctx)
	out.Method, out.Body, out.ContentLength = http.MethodGet, nil, 0
	rules.Unconditional(out.Header)
	f.rules = rules.NewRequest(http.MethodGet, x.request.Header, false)
	x.edge.fills.Go(func() { f.run(out) })
}

// alone answers a request by a fill that no other request joins. It ends with the request.
func (x *exchange) alone(stored *store.Entry, reason string, seen bool) {
	f := x.newFill(stored, x.request.Context())
	defer f.cancel()
	f.admit.Store(seen)
	f.inform = x.inform
	f.waiters.Add(1)
	res := f.fetch(x.outgoing(f.ctx))
	close(f.ready)
	x.final()
	if res == nil {
		x.edge.store.End(f.ticket)
	} else {
		x.edge.fills.Go(func() {
			f.pump(res)
			f.over()
		})
	}
	x.use(f, true, true, reason)
}

// use answers a request by the outcome of a fill. waits says that the request is one of the waiters of the fill. It
// returns false when the outcome is not for this request.
func (x *exchange) use(f *fill, leads, waits bool, reason string) bool {
	e := x.edge
	if f.outcome == shared {
		return x.join(f, leads, waits, reason)
	}
	parameters := "; fwd=" + reason
	if f.status != 0 {
		parameters += "; fwd-status=" + itoa(f.status)
	}
	if !leads {
		parameters += "; collapsed"
	}
	switch f.outcome {
	case failed:
		x.fail(f.failure, reason)
		return true
	case private:
		switch {
		case leads:
			x.private(f, reason)
		case f.failure != nil:
			x.fail(f.failure, reason)
		default:
			x.alone(nil, reason, true)
		}
		return true
	case entry:
		if !leads && !(rules.Selects(f.entry.Selecting, x.request.Header) &&
			e.store.Current(f.ticket, f.key, f.entry.Groups)) {
			return false
		}
		x.serveEntry(f.entry, parameters)
	}
	return true
}

// join answers a request by the response that a fill receives. It returns false when the response is not for this
// request.
func (x *exchange) join(f *fill, leads, waits bool, reason string) bool {
	parameters := "; fwd=" + reason + "; fwd-status=" + itoa(f.status)
	mine, notModified := leads, false
	switch {
	case !leads:
		parameters += "; collapsed"
		mine = rules.Selects(f.selecting, x.request.Header) && x.edge.store.Current(f.ticket, f.key, f.groups)
	case f.admit.Load():
		parameters += "; stored"
	}
	var r *reader
	if mine {
		if notModified = rules.NotModified(x.request.Header, f.status, f.header, time.Now()); !notModified {
			r = f.body.join()
		}
	}
	if waits {
		f.waiters.Done()
	}
	switch {
	case notModified:
		x.notModified(f.header, parameters)
	case r != nil:
		defer r.leave()
		x.stream(f, r, parameters)
	case leads: // the body broke off at once
		x.abort(errors.New("the origin's answer broke off"))
	default:
		return false
	}
	return true
}

// private sends a response that is for the leader only.
func (x *exchange) private(f *fill, reason string) {
	defer f.cancel()
	defer context.AfterFunc(x.request.Context(), f.cancel)()
	res := f.take()
	if res == nil {
		x.abort(context.Canceled)
	}
	defer res.Body.Close()
	x.relay(res, reason)
}

// flights is the fills that requests may join, by key. A key has several when its responses depend on more of the
// request (Vary), or when one may not be used any more.
type flights struct {
	mu    sync.Mutex
	byKey map[string][]*fill
}

// join returns a fill whose response may be for the request, or a new one that the request leads. waits says that the
// request is counted as one of the waiters of the fill.
func (fs *flights) join(x *exchange, stored *store.Entry) (f *fill, leads, waits bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, f := range fs.byKey[x.key] {
		if f.accepts(x) {
			select {
			case <-f.ready:
				return f, false, false
			default:
				f.waiters.Add(1)
				return f, false, true
			}
		}
	}
	f = fs.add(x, stored)
	f.waiters.Add(1)
	return f, true, true
}

// open lets the waiters of a fill go on. No waiter comes after that.
func (fs *flights) open(f *fill) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	close(f.ready)
}

// joinBackground returns a new fill that validates a stored response; nil = there is one already.
func (fs *flights) joinBackground(x *exchange, stored *store.Entry) *fill {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, f := range fs.byKey[x.key] {
		if f.stored != nil && rules.Selects(f.stored.Selecting, x.request.Header) || f.accepts(x) {
			return nil
		}
	}
	f := fs.add(x, stored)
	f.background = true
	return f
}

// add adds a new fill. The caller holds the mutex.
func (fs *flights) add(x *exchange, stored *store.Entry) *fill {
	f := x.newFill(stored, x.edge.base)
	fs.byKey[x.key] = append(fs.byKey[x.key], f)
	return f
}

// accepts reports whether a request may join a fill. While the header of the response is not known, the fields that
// select it are not known either, and the request checks them later.
func (f *fill) accepts(x *exchange) bool {
	header := x.request.Header
	select {
	case <-f.ready:
	default:
		return (f.stored == nil || rules.Selects(f.stored.Selecting, header)) &&
			f.edge.store.Current(f.ticket, f.key, nil)
	}
	switch f.outcome {
	case failed:
		return true
	case entry:
		return rules.Selects(f.entry.Selecting, header) && (f.status != http.StatusNotModified ||
			rules.Decide(x.rules, &f.entry.Stored, time.Now()).Action == rules.Hit)
	case shared:
		return rules.Decide(x.rules, &f.verdict.Stored, time.Now()).Action == rules.Hit &&
			rules.Selects(f.selecting, header) && f.edge.store.Current(f.ticket, f.key, f.groups)
	}
	return false
}

// remove ends the time in which requests may join a fill.
func (fs *flights) remove(f *fill) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.removeLocked(f)
}

func (fs *flights) removeLocked(f *fill) {
	kept := slices.DeleteFunc(fs.byKey[f.key], func(other *fill) bool { return other == f })
	if len(kept) == 0 {
		delete(fs.byKey, f.key)
	} else {
		fs.byKey[f.key] = kept
	}
}

// removeAfter removes a fill after a while.
func (fs *flights) removeAfter(f *fill, d time.Duration) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f.expiry = time.AfterFunc(d, func() { fs.remove(f) })
}

// clear removes all fills and their timers.
func (fs *flights) clear() {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, fills := range fs.byKey {
		for _, f := range fills {
			if f.expiry != nil {
				f.expiry.Stop()
			}
		}
	}
	clear(fs.byKey)
}

func itoa(n int) string { return strconv.Itoa(n) }
