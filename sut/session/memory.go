// Package session stores which user a session belongs to. Memory keeps sessions in the
// memory of one web host. Only that host knows its sessions, and they end with it. Shared
// keeps them in a Table outside the web hosts: RESP is that of a session host, and a
// database has another.
//
// Remote is for a web host without sessions. It asks the host that the token names, and
// the Handler of that host answers.
//
// A session is a token with 128 random bits. It identifies a user for 24 hours from its
// start. Its use does not prolong it, so a look-up writes nothing. The package does not
// know cookies. All methods may be called concurrently. A session that is unknown, ended
// or expired is photos.ErrNotFound. A store that does not answer is photos.ErrUnavailable,
// which says nothing about a session. Memory, Remote and Shared pass the conformance kit
// sessiontest.
package session

import (
	"container/list"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stagebench/stagebench/sut/photos"
)

// maxSessions is the maximum number of sessions, which take about 25 MB. When it is
// reached, a new session evicts the oldest one.
const maxSessions = 100_000

// ttl is the time from the start of a session to its expiry.
const ttl = 24 * time.Hour

// MemoryConfig is the configuration of the sessions of one host.
type MemoryConfig struct {
	// Now is the clock; nil = time.Now.
	Now func() time.Time
	// Host is the prefix of each token, followed by a dot. Other hosts find this host by
	// it; "" = no prefix.
	Host string
	// Registry gets stagebench_sessions_active and stagebench_sessions_evicted_total.
	Registry prometheus.Registerer
}

func (c MemoryConfig) withDefaults() (MemoryConfig, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Registry == nil {
		return c, errors.New("sessions: Registry is required")
	}
	return c, nil
}

// Memory is the sessions of one host.
type Memory struct {
	config  MemoryConfig
	evicted prometheus.Counter
	copied  prometheus.Counter

	mu sync.Mutex
	// byAge holds *entry from the oldest to the newest. All sessions have the same ttl,
	// so this is also the order in which they expire.
	byAge   *list.List
	byToken map[token]*list.Element
}

type token [16]byte

type entry struct {
	token   token
	user    photos.ID
	expires time.Time
	copied  bool // it is in the store, too
}

// NewMemory returns an empty table of sessions.
func NewMemory(c MemoryConfig) (*Memory, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	m := &Memory{config: c, byAge: list.New(), byToken: map[token]*list.Element{}}
	m.evicted = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "stagebench_sessions_evicted_total",
		Help: "Sessions that were evicted because the host had reached its maximum number.",
	})
	m.copied = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "stagebench_sessions_copied_total", Help: "Sessions of this host that were copied to a shared store.",
	})
	active := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "stagebench_sessions_active", Help: "Sessions that this host holds.",
	}, func() float64 { return float64(m.Len()) })
	for _, metric := range []prometheus.Collector{m.evicted, m.copied, active} {
		if err := c.Registry.Register(metric); err != nil {
			return nil, fmt.Errorf("sessions: %w", err)
		}
	}
	return m, nil
}

// Start logs a user in. A user may have any number of sessions.
func (m *Memory) Start(_ context.Context, user photos.ID) (string, time.Time, error) {
	now := m.config.Now()
	e := &entry{user: user, expires: now.Add(ttl)}
	// rand.Read never returns an error (since Go 1.24).
	_, _ = rand.Read(e.token[:])
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dropExpired(now)
	if m.byAge.Len() >= maxSessions {
		m.drop(m.byAge.Front())
		m.evicted.Inc()
	}
	m.byToken[e.token] = m.byAge.PushBack(e)
	return m.prefix() + hex.EncodeToString(e.token[:]), e.expires, nil
}

// User returns the user of a session.
func (m *Memory) User(_ context.Context, text string) (photos.ID, error) {
	now := m.config.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if element := m.find(text); element != nil {
		if e := element.Value.(*entry); now.Before(e.expires) {
			return e.user, nil
		}
	}
	return 0, fmt.Errorf("session: %w", photos.ErrNotFound)
}

// End logs a user out. An unknown session is not an error.
func (m *Memory) End(_ context.Context, text string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if element := m.find(text); element != nil {
		m.drop(element)
	}
	return nil
}

// Len returns the number of sessions that have not expired.
func (m *Memory) Len() int {
	now := m.config.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dropExpired(now)
	return m.byAge.Len()
}

// held is a session in memory.
type held struct {
	token   string
	user    photos.ID
	expires time.Time
}

func (m *Memory) heldOf(e *entry) held {
	return held{m.prefix() + hex.EncodeToString(e.token[:]), e.user, e.expires}
}

// held returns the session with a token, if it has not ended.
func (m *Memory) held(text string) (h held, found bool) {
	now := m.config.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	element := m.find(text)
	if element == nil || !now.Before(element.Value.(*entry).expires) {
		return h, false
	}
	return m.heldOf(element.Value.(*entry)), true
}

// all returns all sessions that have not ended, the oldest first.
func (m *Memory) all() []held {
	now := m.config.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dropExpired(now)
	all := make([]held, 0, m.byAge.Len())
	for element := m.byAge.Front(); element != nil; element = element.Next() {
		all = append(all, m.heldOf(element.Value.(*entry)))
	}
	return all
}

// noteCopied counts a session that was copied, once.
func (m *Memory) noteCopied(text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if element := m.find(text); element != nil && !element.Value.(*entry).copied {
		element.Value.(*entry).copied = true
		m.copied.Inc()
	}
}

// forget removes all sessions.
func (m *Memory) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.byAge.Init()
	clear(m.byToken)
}

// dropExpired removes expired sessions. The caller holds the lock.
func (m *Memory) dropExpired(now time.Time) {
	for oldest := m.byAge.Front(); oldest != nil && !now.Before(oldest.Value.(*entry).expires); oldest = m.byAge.Front() {
		m.drop(oldest)
	}
}

// drop removes one session. The caller holds the lock.
func (m *Memory) drop(element *list.Element) {
	delete(m.byToken, m.byAge.Remove(element).(*entry).token)
}

// prefix is the prefix of all tokens of this host.
func (m *Memory) prefix() string {
	if m.config.Host == "" {
		return ""
	}
	return m.config.Host + "."
}

// find returns the session of a token, or nil. The token may be any text, because a client
// sent it. The caller holds the lock.
func (m *Memory) find(text string) *list.Element {
	var t token
	text, ours := strings.CutPrefix(text, m.prefix())
	if !ours || len(text) != hex.EncodedLen(len(t)) {
		return nil
	}
	if _, err := hex.Decode(t[:], []byte(text)); err != nil {
		return nil
	}
	return m.byToken[t]
}
