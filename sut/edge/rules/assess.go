package rules

import (
	"net/http"
	"slices"
	"time"
)

// Response is what the rules need to know about a response of the origin.
type Response struct {
	Status int
	Header http.Header
	// Requested and Received are the times when the request was sent and the header of the response arrived.
	Requested, Received time.Time
}

// Verdict says whether a response may be stored, and what it permits when it is.
type Verdict struct {
	Stored
	Store bool
	// Why says why a response may not be stored.
	Why string
}

// unreachableLimit bounds the time in which a stale response is used while the origin does not answer, when its header
// sets no limit.
const unreachableLimit = 24 * time.Hour

// Assess says whether a response may be stored, and with which lifetimes (RFC 9111, 3 and 4.2). ttl replaces the
// freshness lifetime of the origin, if that is more than 0 and the response may be stored; 0 = do not replace.
func Assess(request Request, response Response, ttl time.Duration) Verdict {
	v := Verdict{Stored: Stored{InitialAge: initialAge(response), Received: response.Received}}
	c, isTargeted := targeted(response.Header[headerCDNCacheControl])
	if !isTargeted {
		c = parseControl(response.Header[headerCacheControl])
	}
	if v.Why = refusal(request, response, c); v.Why != "" {
		return v
	}
	fresh, explicit := lifetime(response, c, isTargeted)
	if ttl > 0 && fresh > 0 {
		fresh = ttl
	}
	v.Lifetimes = Lifetimes{
		Fresh: fresh, Validate: c.noCache,
		// s-maxage implies proxy-revalidate (RFC 9111, 5.2.2.10).
		MustRevalidate: c.mustRevalidate || c.proxyRevalidate || c.sharedMaxAge.set,
	}
	if !v.Validate && !v.MustRevalidate {
		v.WhileRevalidate, v.IfError = c.whileRevalidate.value, c.ifError.value
		v.IfUnreachable = unreachableLimit
		if c.ifError.set {
			v.IfUnreachable = c.ifError.value
		}
	}
	validator := response.Header[headerETag] != nil || response.Header[headerLastModified] != nil
	switch {
	case !explicit && !c.noCache:
		v.Why = "the response gives no freshness lifetime"
	case c.noCache && !validator:
		v.Why = "the response needs a validation at each use, and has no validator"
	case v.Fresh <= v.InitialAge && !validator && v.WhileRevalidate == 0 && v.IfError == 0:
		v.Why = "the response is stale already"
	default:
		v.Store = true
	}
	return v
}

// refusal returns why a response must not be stored, whatever its lifetime; "" = it may be.
func refusal(request Request, response Response, c control) string {
	_, any := ParseVary(response.Header)
	_, groups := Groups(response.Header)
	known := understood(response.Status)
	switch {
	case request.Method != http.MethodGet || request.HasBody:
		return "only responses to GET are stored"
	case request.control.noStore:
		return "the request has no-store"
	case response.Status < 200, response.Status == http.StatusPartialContent, response.Status == http.StatusNotModified:
		return "the status is not that of a complete response"
	case c.mustUnderstand && !known:
		return "the response has must-understand, and its status is not known"
	case c.noStore && !(c.mustUnderstand && known): // RFC 9111, 5.2.2.3
		return "the response has no-store"
	case c.private:
		return "the response has private"
	case response.Header[headerSetCookie] != nil:
		return "the response sets a cookie"
	case any:
		return "the response varies on everything"
	case !groups:
		return "the groups of the response exceed the limits"
	case request.Header[headerAuthorization] != nil && !c.public && !c.mustRevalidate && !c.sharedMaxAge.set:
		return "the request has Authorization" // RFC 9111, 3.5
	}
	return ""
}

// understood reports whether the caching rules of a status are known, for must-understand.
func understood(status int) bool {
	return slices.Contains([]int{
		200, 203, 204, 300, 301, 302, 303, 307, 308, 400, 401, 403, 404, 405, 410, 414, 421, 451, 500, 501, 502, 503, 504,
	}, status)
}

// lifetime returns the freshness lifetime (RFC 9111, 4.2.1), and whether the response gives one. With
// CDN-Cache-Control, Expires does not count (RFC 9213, 2.2).
func lifetime(response Response, c control, isTargeted bool) (fresh time.Duration, explicit bool) {
	switch expires := response.Header[headerExpires]; {
	case c.sharedMaxAge.set:
		return c.sharedMaxAge.value, true
	case c.maxAge.set:
		return c.maxAge.value, true
	case isTargeted || len(expires) == 0:
		return 0, false
	case len(expires) > 1:
		return 0, true // which one counts is not defined, so the response is stale
	default:
		at, valid := ParseDate(expires[0], response.Received)
		if !valid {
			return 0, true // RFC 9111, 5.3: such as "0", means already expired
		}
		return min(max(0, at.Sub(dateOf(response))), MaxDelta), true
	}
}

// dateOf returns the Date of a response, or the time when it was received.
func dateOf(response Response) time.Time {
	if date, valid := ParseDate(first(response.Header, headerDate), response.Received); valid {
		return date
	}
	return response.Received
}

// initialAge returns the corrected initial age (RFC 9111, 4.2.3). Date has whole seconds, so the time of receipt is cut
// to seconds before they are compared. A difference of one second says nothing: a second may begin on the way.
func initialAge(response Response) time.Duration {
	apparent := response.Received.Truncate(time.Second).Sub(dateOf(response))
	if apparent <= time.Second {
		apparent = 0
	}
	delay := max(0, response.Received.Sub(response.Requested))
	return min(max(apparent, ParseAge(response.Header)+delay), MaxDelta)
}
