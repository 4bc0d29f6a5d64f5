// Package session keeps who is logged in. Memory, the placement of the stages
// up to cdn, keeps it in the web host's own memory: a session is known to the
// host that started it and to no other, and dies with it.
//
// Remote is for a host that holds none: it asks the one that a token names, whose
// Handler answers.
//
// A session is a token, 128 random bits that nobody can guess, which stands for
// a user until it expires. The package knows no cookies. All methods may be
// called concurrently. A session that is not known, whether it
// never was, ended or expired, is photos.ErrNotFound. Every placement passes
// the conformance kit sessiontest.
package session

import (
	"cmp"
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

// MemoryConfig bounds the sessions of one host.
type MemoryConfig struct {
	// Max is how many sessions are kept, 0 = 100,000, which take about 25 MB.
	// One more takes the place of the oldest: a user who logs in is let in, and
	// the one who has been logged in longest must do so again.
	Max int
	// TTL is how long a session lasts from its start, 0 = 24 hours.
	TTL time.Duration
	// Now is the clock, nil = time.Now.
	Now func() time.Time
	// Host stands at the beginning of each token, "host.", so that others know
	// whom to ask; "" = it does not.
	Host string
	// Registry gets stagebench_sessions_active and stagebench_sessions_evicted_total.
	Registry prometheus.Registerer
}

func (c MemoryConfig) withDefaults() (MemoryConfig, error) {
	c.Max, c.TTL = cmp.Or(c.Max, 100_000), cmp.Or(c.TTL, 24*time.Hour)
	if c.Now == nil {
		c.Now = time.Now
	}
	switch {
	case c.Max < 0 || c.TTL < 0:
		return c, fmt.Errorf("sessions: max %d and ttl %s must not be negative", c.Max, c.TTL)
	case c.Registry == nil:
		return c, errors.New("sessions: a registry is needed")
	}
	return c, nil
}

// Memory is the sessions of one host.
type Memory struct {
	config  MemoryConfig
	evicted prometheus.Counter

	mu sync.Mutex
	// byAge holds *entry from the oldest to the newest, which is also the order
	// in which they expire: all live equally long.
	byAge   *list.List
	byToken map[token]*list.Element
}

type token [16]byte

type entry struct {
	token   token
	user    photos.ID
	expires time.Time
}

// NewMemory returns an empty table of sessions.
func NewMemory(c MemoryConfig) (*Memory, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	m := &Memory{config: c, byAge: list.New(), byToken: map[token]*list.Element{}}
	m.evicted = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "stagebench_sessions_evicted_total", Help: "Sessions that ended because the host had no room for more.",
	})
	active := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "stagebench_sessions_active", Help: "Sessions that this host holds.",
	}, func() float64 { return float64(m.Len()) })
	for _, metric := range []prometheus.Collector{m.evicted, active} {
		if err := c.Registry.Register(metric); err != nil {
			return nil, fmt.Errorf("sessions: %w", err)
		}
	}
	return m, nil
}

// Start logs a user in. A user may have any number of sessions.
func (m *Memory) Start(_ context.Context, user photos.ID) (string, time.Time, error) {
	now := m.config.Now()
	e := &entry{user: user, expires: now.Add(m.config.TTL)}
	// Since Go 1.24 it returns no error: the program ends if there is no
	// randomness.
	_, _ = rand.Read(e.token[:])
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dropExpired(now)
	if m.byAge.Len() >= m.config.Max {
		m.drop(m.byAge.Front())
		m.evicted.Inc()
	}
	m.byToken[e.token] = m.byAge.PushBack(e)
	return m.prefix() + hex.EncodeToString(e.token[:]), e.expires, nil
}

// User returns whose session it is.
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

// End logs a user out. It is no error if the session is not known: the outcome
// is the same.
func (m *Memory) End(_ context.Context, text string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if element := m.find(text); element != nil {
		m.drop(element)
	}
	return nil
}

// Len returns how many sessions are held, expired ones left out.
func (m *Memory) Len() int {
	now := m.config.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dropExpired(now)
	return m.byAge.Len()
}

// dropExpired forgets sessions that are over. The caller holds the lock.
func (m *Memory) dropExpired(now time.Time) {
	for oldest := m.byAge.Front(); oldest != nil && !now.Before(oldest.Value.(*entry).expires); oldest = m.byAge.Front() {
		m.drop(oldest)
	}
}

// drop forgets one session. The caller holds the lock.
func (m *Memory) drop(element *list.Element) {
	delete(m.byToken, m.byAge.Remove(element).(*entry).token)
}

// prefix is what all tokens of this host begin with.
func (m *Memory) prefix() string {
	if m.config.Host == "" {
		return ""
	}
	return m.config.Host + "."
}

// find returns the session of a token as a client sent it, or nil. The caller holds the
// lock.
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
