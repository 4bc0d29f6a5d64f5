package app

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
)

// problem is an error response.
type problem struct {
	status   int
	message  string // what was wrong
	hint     string // what to do about it
	degraded string // the tier that is down, if that is why the status is 503
	cause    error  // logged, never sent
}

func (p *problem) Error() string {
	if p.cause != nil {
		return p.message + ": " + p.cause.Error()
	}
	return p.message
}

func (p *problem) Unwrap() error { return p.cause }

// because sets the cause of a problem.
func (p *problem) because(cause error) *problem {
	p.cause = cause
	return p
}

func refusal(status int, message, hint string) *problem {
	return &problem{status: status, message: message, hint: hint}
}

func badRequest(hint, format string, args ...any) *problem {
	return refusal(http.StatusBadRequest, fmt.Sprintf(format, args...), hint)
}

func notFound(message, hint string) *problem { return refusal(http.StatusNotFound, message, hint) }

func unauthorised(message string) *problem {
	return refusal(http.StatusUnauthorized, message, `log in with POST /api/login {"login": "...", "password": "..."} `+
		`and send back the cookie "`+SessionCookie+`"`)
}

func tooLarge(limit int64, what string) *problem {
	return refusal(http.StatusRequestEntityTooLarge, what+" is too large", fmt.Sprintf("send at most %d bytes", limit))
}

func unsupported(message, hint string) *problem {
	return refusal(http.StatusUnsupportedMediaType, message, hint)
}

// busy refuses a request that the host has no capacity for at the moment.
func busy(message string) *problem {
	return refusal(http.StatusServiceUnavailable, message, "try again in a second")
}

// clientGone is the result of a request whose client disconnected early.
func clientGone(cause error) *problem {
	return refusal(sut.StatusClientDisconnected, "the client disconnected", "").because(cause)
}

// internalError is a bug in the service.
func internalError(cause error) *problem {
	return refusal(http.StatusInternalServerError, "there is a bug in the service",
		"look in the log of the node that "+HeaderServedBy+" names").because(cause)
}

// tierProblem turns an error of a tier into a problem. It returns nil for nil. what
// names the requested object in the message.
func (a *App) tierProblem(x *exchange, tier, what string, err error) error {
	own, isProblem := errors.AsType[*problem](err)
	switch {
	case err == nil:
		return nil
	case x.r.Context().Err() != nil:
		return clientGone(err)
	case isProblem:
		return own
	case errors.Is(err, photos.ErrNotFound):
		return notFound(what+" does not exist", "check the id; it may have been deleted")
	case errors.Is(err, photos.ErrForbidden):
		return refusal(http.StatusForbidden, what+" belongs to another user", "log in as its owner")
	case errors.Is(err, photos.ErrConflict):
		return refusal(http.StatusConflict, what+" already exists", "use another name")
	case errors.Is(err, photos.ErrFull):
		tier = cmp.Or(string(sut.TierOf(err)), tier)
		return &problem{
			status: http.StatusInsufficientStorage, degraded: tier, cause: err, message: "the tier " + tier + " is full",
			hint: "try again later; requests that add nothing to this tier still work",
		}
	case errors.Is(err, photos.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		tier = cmp.Or(string(sut.TierOf(err)), tier)
		return &problem{
			status: http.StatusServiceUnavailable, degraded: tier, cause: err,
			message: "the tier " + tier + " does not answer",
			hint:    "try again in a second; requests that do not need this tier still work",
		}
	}
	return internalError(err)
}

// refuse sends the response for an error. An error that is not a problem is an error of
// a tier.
func (a *App) refuse(x *exchange, err error) {
	p, ok := errors.AsType[*problem](err)
	if !ok {
		errors.As(a.tierProblem(x, "", "it", err), &p)
	}
	a.noteProblem(x, p)
	header := x.Header()
	switch p.status {
	case http.StatusUnauthorized:
		// RFC 9110, 11.6.1 requires a challenge. There is no registered scheme for
		// cookies.
		header.Set("WWW-Authenticate", `Session realm="stagebench"`)
	case http.StatusServiceUnavailable:
		header.Set("Retry-After", "1")
	}
	a.send(x, p.status, 0, sut.ErrorBody{Error: p.message, Hint: p.hint})
}

// noteProblem records why a request failed, for its log line.
func (a *App) noteProblem(x *exchange, p *problem) {
	x.cause = p
	if p.degraded != "" {
		a.noteOutage(x, p.degraded, p.cause)
	}
}

// noteOutage names a tier that does not answer in the response, and in the log once a second.
func (a *App) noteOutage(x *exchange, tier string, cause error) {
	x.degrade(tier)
	if requests, log := a.outages[tier].report(a.config.Now()); log {
		a.config.Log.Warn("a tier does not answer", "tier", tier, "request_id", x.id(), "op", x.op.name,
			"error", cause, "requests_affected", requests)
	}
}

// degrade adds a tier to HeaderDegraded.
func (x *exchange) degrade(tier string) {
	header := x.Header()
	if without := header.Get(HeaderDegraded); without != "" {
		if slices.Contains(strings.Split(without, ", "), tier) {
			return
		}
		tier = without + ", " + tier
	}
	header.Set(HeaderDegraded, tier)
}

// logRequest logs a finished request if Config.LogRequests selects it.
func (a *App) logRequest(x *exchange, took time.Duration) {
	level, cause := slog.LevelInfo, ""
	switch {
	case x.status == http.StatusInternalServerError:
		level = slog.LevelError // a bug in the service
	case a.config.LogRequests == sut.LogNone,
		a.config.LogRequests == sut.LogFailed && x.status < http.StatusInternalServerError:
		return
	case x.status > http.StatusInternalServerError:
		level = slog.LevelWarn
	}
	if x.cause != nil {
		cause = x.cause.Error()
	}
	a.config.Log.LogAttrs(&x.ctx, level, "request",
		slog.String("request_id", x.id()), slog.String("op", x.op.name),
		slog.String("method", x.r.Method), slog.String("path", clip(x.r.URL.Path)), slog.Int("status", x.status),
		slog.Int64("duration_ns", int64(took)), slog.Int64("user", int64(x.user)), slog.String("cause", cause))
}

// outage knows when a tier was last down, and limits the log lines about it to one per second. It is safe for
// concurrent use.
type outage struct {
	logged atomic.Int64 // time of the last log line, in seconds since the Unix epoch
	failed atomic.Int64 // failed requests since then
}

// report counts a failed request. log is true once a second; failed is then the number
// of failed requests to log.
func (o *outage) report(now time.Time) (failed int64, log bool) {
	failed = o.failed.Add(1)
	last := o.logged.Load()
	if now.Unix() == last || !o.logged.CompareAndSwap(last, now.Unix()) {
		return 0, false
	}
	o.failed.Add(-failed)
	return failed, true
}

// lasts reports whether a request failed in this second or the one before.
func (o *outage) lasts(now time.Time) bool { return now.Unix()-o.logged.Load() <= 1 }

// send writes a JSON response. version is the version of the record in it, 0 = none.
func (a *App) send(x *exchange, status int, version int64, body any) {
	buffer := a.buffers.Get().(*jsonBuffer)
	defer a.buffers.Put(buffer)
	buffer.Reset()
	if err := buffer.encoder.Encode(body); err != nil {
		panic("app: cannot encode a response: " + err.Error())
	}
	x.showVersion(version)
	x.reply(status, "application/json", "no-store", buffer.Bytes())
}

// answer sends the result of a database call, or returns its error as a problem. what
// names the requested object.
func (a *App) answer(x *exchange, what string, err error, status int, version int64, body any) error {
	if err != nil {
		return a.tierProblem(x, tierDB, what, err)
	}
	a.send(x, status, version, body)
	return nil
}

// showVersion sets HeaderRecordVersion; 0 = the response shows no record.
func (x *exchange) showVersion(version int64) {
	if version != 0 {
		x.Header().Set(HeaderRecordVersion, strconv.FormatInt(version, 10))
	}
}

// reply writes a complete response.
func (x *exchange) reply(status int, mediaType, cacheControl string, body []byte) {
	header := x.Header()
	header.Set("Content-Type", mediaType)
	header.Set("Cache-Control", cacheControl)
	header.Set("Content-Length", strconv.Itoa(len(body)))
	x.WriteHeader(status)
	// Write fails only if the client's connection fails; nobody can receive the error.
	_, _ = x.Write(body)
}

// jsonBuffer is a reusable buffer and its JSON encoder.
type jsonBuffer struct {
	bytes.Buffer
	encoder *json.Encoder
}

func newJSONBuffer() *jsonBuffer {
	b := &jsonBuffer{}
	b.encoder = json.NewEncoder(&b.Buffer)
	b.encoder.SetEscapeHTML(false)
	return b
}
