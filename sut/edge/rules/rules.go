// Package rules is the rules of a shared HTTP cache as pure functions: which responses may be
// stored (Assess), what to do with a request (Decide), how a stored response is updated (Merge),
// and how the header fields of these decisions are read.
//
// The rules are those of RFC 9111 (caching), RFC 9110 (conditional requests, ranges), RFC 5861
// (stale responses), RFC 9213 (CDN-Cache-Control) and RFC 9875 (groups). Where a field is
// malformed, the result is the more restrictive one. Heuristic freshness is not used: a response
// is stored only if its origin says so.
//
// The package does no I/O, reads no clock and keeps no state. Header names are canonical, as
// net/http makes them. All functions may be called concurrently. They do not modify their
// arguments, unless their comments say so.
package rules

import (
	"net/http"
	"slices"
	"time"
)

// Names of header fields that net/http has no constants for.
const (
	headerAge                   = "Age"
	headerAuthorization         = "Authorization"
	headerCacheControl          = "Cache-Control"
	headerCDNCacheControl       = "Cdn-Cache-Control"
	headerDate                  = "Date"
	headerETag                  = "Etag"
	headerExpires               = "Expires"
	headerIfMatch               = "If-Match"
	headerIfModifiedSince       = "If-Modified-Since"
	headerIfNoneMatch           = "If-None-Match"
	headerIfRange               = "If-Range"
	headerIfUnmodifiedSince     = "If-Unmodified-Since"
	headerLastModified          = "Last-Modified"
	headerRange                 = "Range"
	headerSetCookie             = "Set-Cookie"
	headerVary                  = "Vary"
	headerCacheGroups           = "Cache-Groups"
	headerCacheGroupInvalidates = "Cache-Group-Invalidation"
)

// Request is what the rules need to know about a request.
type Request struct {
	Method  string
	Header  http.Header
	HasBody bool
	control requestControl
}

// NewRequest returns a Request. The header must not be modified while the Request is in use.
func NewRequest(method string, header http.Header, hasBody bool) Request {
	r := Request{Method: method, Header: header, HasBody: hasBody}
	if lines := header[headerCacheControl]; len(lines) > 0 {
		r.control = parseRequestControl(lines)
	}
	return r
}

// OnlyIfCached reports whether the client wants a stored response or an error 504 (RFC 9111, 5.2.1.7).
func (r Request) OnlyIfCached() bool { return r.control.onlyIfCached }

// NoStore reports whether the response to this request must not be stored (RFC 9111, 5.2.1.5).
func (r Request) NoStore() bool { return r.control.noStore }

// Shareable reports whether this request may wait for the response to another request for the same key. Requests with
// Authorization, Range, conditions for the origin or own wishes on freshness must reach the origin themselves.
func (r Request) Shareable() bool { return r.ShareableWithoutRange() && r.Header[headerRange] == nil }

// ShareableWithoutRange is Shareable for a request whose Range is not sent to the origin.
func (r Request) ShareableWithoutRange() bool {
	return r.Method == http.MethodGet && !r.HasBody && !r.control.restricts() && !r.control.noStore &&
		r.Header[headerAuthorization] == nil && !r.forOrigin()
}

// forOrigin reports whether the request has a precondition that only the origin may evaluate (RFC 9111, 4.3.2).
func (r Request) forOrigin() bool {
	return r.Header[headerIfMatch] != nil || r.Header[headerIfUnmodifiedSince] != nil
}

// Safe reports whether a method is safe (RFC 9110, 9.2.1). An unknown method is not.
func Safe(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	return false
}

// Invalidates reports whether a response invalidates the stored responses for its URL (RFC 9111, 4.4).
func Invalidates(method string, status int) bool {
	return !Safe(method) && status >= 200 && status < 400
}

// Lifetimes is what a stored response permits.
type Lifetimes struct {
	// Fresh is the freshness lifetime.
	Fresh time.Duration
	// WhileRevalidate is the time after Fresh in which the response may be used while it is revalidated in the background
	// (RFC 5861, 3).
	WhileRevalidate time.Duration
	// IfError is the time after Fresh in which the response may be used when the origin answers with an error
	// (RFC 5861, 4).
	IfError time.Duration
	// IfUnreachable is the time after Fresh in which the response may be used when the origin does not answer at all
	// (RFC 9111, 4.2.4: a cache that is disconnected).
	IfUnreachable time.Duration
	// Validate means that each use needs a validation, even a fresh one (no-cache).
	Validate bool
	// MustRevalidate means that a stale response must not be used at all. When the origin does not answer, the client
	// gets 504 (RFC 9111, 5.2.2.2).
	MustRevalidate bool
}

// Stored is what the rules need to know about a stored response.
type Stored struct {
	Lifetimes
	// InitialAge is the age when the response was received.
	InitialAge time.Duration
	// Received is the time when the response was received.
	Received time.Time
}

// Age returns the current age (RFC 9111, 4.2.3).
func (s *Stored) Age(now time.Time) time.Duration {
	return s.InitialAge + max(0, now.Sub(s.Received))
}

// Remaining returns the rest of the freshness lifetime, negative for a stale response.
func (s *Stored) Remaining(now time.Time) time.Duration { return s.Fresh - s.Age(now) }

// UsableAfterError reports whether the response may be used instead of an error. A status of 0 means that the origin
// did not answer.
func (s *Stored) UsableAfterError(status int, now time.Time) bool {
	left := s.Remaining(now)
	switch {
	case s.Validate || s.MustRevalidate:
		return false
	case status == 0:
		return -left <= max(s.IfError, s.IfUnreachable)
	}
	return ServerError(status) && s.IfError > 0 && -left <= s.IfError
}

// ServerError reports whether a status counts as an error for stale-if-error (RFC 5861, 4).
func ServerError(status int) bool {
	return slices.Contains([]int{
		http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout,
	}, status)
}

// Action is what a cache does with a request.
type Action int

// The actions.
const (
	Bypass     Action = iota // forward the request; the stored responses play no role
	Miss                     // forward the request, and store the response if it may be stored
	Revalidate               // like Miss, but a stored response can be validated, or be used after an error
	Hit                      // answer with the stored response
	Stale                    // answer with the stored response and revalidate it in the background
)

// Decision is an Action and its reason.
type Decision struct {
	Action Action
	// Reason is the value of the parameter fwd of Cache-Status (RFC 9211, 2.2), "" for Hit and Stale. It does not
	// distinguish uri-miss from vary-miss, because Decide sees one stored response only.
	Reason string
}

// Reasons for forwarding a request, as Cache-Status has them.
const (
	ReasonBypass   = "bypass"
	ReasonMethod   = "method"
	ReasonMiss     = "miss"
	ReasonURIMiss  = "uri-miss"
	ReasonVaryMiss = "vary-miss"
	ReasonRequest  = "request"
	ReasonStale    = "stale"
)

// Decide says what to do with a request. stored is the stored response that its header selects; nil = there is none.
func Decide(r Request, stored *Stored, now time.Time) Decision {
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		return Decision{Bypass, ReasonMethod}
	case r.HasBody:
		// The answer may depend on the body, which is not part of the key.
		return Decision{Bypass, ReasonBypass}
	case stored == nil:
		return Decision{Miss, ReasonMiss}
	case r.forOrigin():
		return Decision{Miss, ReasonRequest}
	case stored.Validate:
		return Decision{Revalidate, ReasonStale}
	}
	left := stored.Remaining(now)
	switch age := stored.Age(now); {
	case left > 0 && r.control.refuses(age, left):
		return Decision{Revalidate, ReasonRequest}
	case left > 0:
		return Decision{Action: Hit}
	case stored.MustRevalidate || r.control.refuses(age, left):
		return Decision{Revalidate, ReasonStale}
	case r.control.maxStale > 0 && -left <= r.control.maxStale:
		return Decision{Action: Hit}
	case stored.WhileRevalidate > 0 && -left <= stored.WhileRevalidate:
		return Decision{Action: Stale}
	}
	return Decision{Revalidate, ReasonStale}
}
