package session_test

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/session"
	"github.com/stagebench/stagebench/sut/session/sessiontest"
)

func TestMemoryConforms(t *testing.T) {
	sessiontest.Run(t, func(t *testing.T, now func() time.Time) sessiontest.Sessions {
		return newMemory(t, session.MemoryConfig{Now: now})
	})
}

// Repeated logins do not exhaust the memory of a host.
func TestMemoryIsBounded(t *testing.T) {
	const most = 100_000
	m := newMemory(t, session.MemoryConfig{})
	var tokens []string
	for user := photos.ID(1); user <= most+2; user++ {
		token, _, err := m.Start(t.Context(), user)
		if err != nil {
			t.Fatal(err)
		}
		tokens = append(tokens, token)
	}
	if m.Len() != most {
		t.Errorf("%d sessions are held, want %d", m.Len(), most)
	}
	for i, token := range tokens {
		_, err := m.User(t.Context(), token)
		if evicted := err != nil; evicted != (i < 2) {
			t.Errorf("session %d: evicted is %t, want the two oldest to be evicted", i+1, evicted)
		}
	}
}

func TestExpiredSessionsAreRemoved(t *testing.T) {
	at := time.Unix(1_000_000, 0)
	m := newMemory(t, session.MemoryConfig{Now: func() time.Time { return at }})
	for range 100 {
		for range 10 {
			if _, _, err := m.Start(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
		}
		at = at.Add(24 * time.Hour)
	}
	if m.Len() != 0 {
		t.Errorf("%d sessions are held after all have expired", m.Len())
	}
}

func TestBadConfig(t *testing.T) {
	if _, err := session.NewMemory(session.MemoryConfig{}); err == nil {
		t.Error("a config without a registry is accepted")
	}
}

func newMemory(t *testing.T, config session.MemoryConfig) *session.Memory {
	t.Helper()
	config.Registry = prometheus.NewRegistry()
	m, err := session.NewMemory(config)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func BenchmarkUser(b *testing.B) {
	m, err := session.NewMemory(session.MemoryConfig{Registry: prometheus.NewRegistry()})
	if err != nil {
		b.Fatal(err)
	}
	token, _, err := m.Start(b.Context(), 1)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := m.User(b.Context(), token); err != nil {
			b.Fatal(err)
		}
	}
}
