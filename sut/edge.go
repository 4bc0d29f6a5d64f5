package sut

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// EdgeConfig is the configuration of an edge, an HTTP cache for users of one region. It is the same for every engine.
// The zero value of a field means its default, where one is given.
type EdgeConfig struct {
	// Node is the edge's own name. Its responses have it in Cache-Status (RFC 9211) and Via.
	Node string
	// Origins are the servers that have the content. Requests go to each in turn. At least one.
	Origins []Peer
	// Site is the authority (host or host:port) of all requests that this edge serves. It becomes the Host header at the
	// origin. "" = the edge forwards the Host header of the client, and the key of an entry begins with it.
	Site string
	// TTL replaces the freshness lifetime that the origin gives to a response that may be stored; 0 = as the origin says.
	TTL time.Duration
	// MaxBytes is the memory budget of the entries: bodies, headers, keys and index.
	MaxBytes int64
	// Admit is AdmitAll (default) or AdmitSecondHit.
	Admit string
}

// SharedPaths lists the prefixes of paths whose responses are the same for all users. An edge drops the cookies of
// requests for them, and a balancer does not set its own: a shared cache must not store a response with a cookie.
func SharedPaths() []string { return []string{"/img/", "/static/"} }

// Shared reports whether the responses for a path are the same for all users.
func Shared(path string) bool {
	return slices.ContainsFunc(SharedPaths(), func(prefix string) bool { return strings.HasPrefix(path, prefix) })
}

// How long a cache may answer with an image or an asset without asking for it again, by Cache-Control: the content of a
// URL with a version never changes.
const (
	VersionedLifetime   = 365 * 24 * time.Hour
	UnversionedLifetime = time.Minute
)

// Admission policies of an edge.
const (
	AdmitAll       = "all"        // every response that may be stored is stored
	AdmitSecondHit = "second_hit" // a response is stored from the second request for its key on
)

// Complete returns a copy in which fields that are not set have their defaults.
func (c EdgeConfig) Complete() EdgeConfig {
	if c.Admit == "" {
		c.Admit = AdmitAll
	}
	return c
}

// Validate returns the first error in an EdgeConfig that Complete returned.
func (c EdgeConfig) Validate() error {
	switch {
	case !nodeName.MatchString(c.Node):
		return fmt.Errorf("node name %q: want letters, digits, '_', '.' and '-'", c.Node)
	case strings.ContainsAny(c.Site, "/ \t\r\n\"\\{};"):
		return fmt.Errorf("site %q: want a host, or host:port", c.Site)
	case c.TTL < 0:
		return fmt.Errorf("ttl %v: want 0 or more", c.TTL)
	case c.MaxBytes < 1<<20:
		return fmt.Errorf("memory budget of %d bytes: want at least 1 MiB", c.MaxBytes)
	case !slices.Contains([]string{AdmitAll, AdmitSecondHit}, c.Admit):
		return fmt.Errorf("admit %q: want %s or %s", c.Admit, AdmitAll, AdmitSecondHit)
	}
	return ValidateOrigins(c.Origins)
}

// ValidateOrigins returns the first error in the origins of an edge.
func ValidateOrigins(origins []Peer) error {
	if len(origins) == 0 {
		return errors.New("no origins: an edge needs at least one")
	}
	for _, peer := range origins {
		if address, err := netip.ParseAddrPort(peer.Address); err != nil || address.Port() == 0 {
			return fmt.Errorf("origin %s: address %q: want IP:port", peer.Node, peer.Address)
		}
	}
	return nil
}

// EdgeServer is what a running edge of any engine can do. All methods may be called concurrently.
type EdgeServer interface {
	// SetOrigins replaces the origins. It returns when no request uses a removed one any more. An error that wraps
	// ErrWiring means that nothing changed.
	SetOrigins(ctx context.Context, origins []Peer) error
	// Purge removes entries. A response that was requested from the origin before is not stored afterwards. An error
	// that wraps ErrPurge means that this engine cannot purge so, and that nothing was removed.
	Purge(ctx context.Context, p Purge) error
	// Figures returns the counters since the start, and the contents.
	Figures(ctx context.Context) (EdgeFigures, error)
}

// Purge selects the entries that an edge removes. A running edge takes it as a POST of its JSON to PurgePath at its
// admin address: 204 = purged; 400 = the document is invalid; 501 = the engine cannot purge so.
type Purge struct {
	// URLs are paths with their query, such as /img/17/thumb.jpg?v=1. All variants of a URL are removed.
	URLs []string `json:"urls,omitempty"`
	// Groups are members of the field Cache-Groups of the stored responses (RFC 9875).
	Groups []string `json:"groups,omitempty"`
}

// PurgePath is the path of purges at the admin address of an edge.
const PurgePath = "/purge"

// ErrPurge means that an engine cannot purge in the requested way.
var ErrPurge = errors.New("this engine cannot purge so")

// Difference is what an engine does otherwise than the kit for edges asks, with its reason.
type Difference struct {
	Reason string
	Cases  []string // ids of the cases of the kit that fail for this reason
}
