package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/cookiejar"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// commenters write comments through the web tier and remember which of them were
// acknowledged: each has an id of its own, so that what is lost can be named.
type commenters struct {
	base string
	stop context.CancelFunc
	all  sync.WaitGroup

	first atomic.Int64 // unix ns of the first acknowledgement after mark
	mark  atomic.Int64 // unix ns; 0 = none

	mu    sync.Mutex
	acked map[string]time.Time // by the id of the comment
	fails map[string]int       // by cause
}

// comment starts writers, each of whom is a user with a session, on so many photos.
func comment(t *testing.T, base string, writers, photos int) *commenters {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := &commenters{base: base, stop: cancel, acked: map[string]time.Time{}, fails: map[string]int{}}
	t.Cleanup(c.end)
	for i := range writers {
		jar, err := cookiejar.New(nil)
		if err != nil {
			t.Fatal(err)
		}
		transport := &http.Transport{}
		client := &http.Client{Jar: jar, Timeout: 10 * time.Second, Transport: transport}
		login := fmt.Sprintf(`{"login":%q,"password":%q}`, sut.SeedLogin(i+1), sut.SeedPassword)
		if code, text := c.post(ctx, client, "/api/login", login); code != http.StatusOK {
			t.Fatalf("login: %d %s", code, text)
		}
		c.all.Go(func() {
			defer transport.CloseIdleConnections()
			for n := 0; ctx.Err() == nil; n++ {
				c.one(ctx, client, login, photoPath((i*131+n)%photos+1)+"/comments")
				pause()
			}
		})
	}
	return c
}

// one writes one comment. It does not end with ctx, or its fate would be open.
func (c *commenters) one(ctx context.Context, client *http.Client, login, path string) {
	code, text := c.post(context.WithoutCancel(ctx), client, path, `{"text":"well done"}`)
	now := time.Now()
	var answer struct {
		Comment json.Number `json:"comment_id"`
	}
	if code == http.StatusUnauthorized { // its session died with a web host
		c.post(context.WithoutCancel(ctx), client, "/api/login", login)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if code/100 != 2 || json.Unmarshal([]byte(text), &answer) != nil || answer.Comment == "" {
		c.fails[fmt.Sprintf("%d %.120s", code, text)]++
		return
	}
	c.acked[answer.Comment.String()] = now
	if mark := c.mark.Load(); mark > 0 && now.UnixNano() > mark {
		c.first.CompareAndSwap(0, now.UnixNano())
	}
}

func (c *commenters) post(ctx context.Context, client *http.Client, path, body string) (int, string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+path, bytes.NewReader([]byte(body)))
	if err != nil {
		return 0, err.Error()
	}
	req.Header.Set("Content-Type", "application/json")
	response, err := client.Do(req)
	if err != nil {
		return 0, "no answer"
	}
	defer func() { _ = response.Body.Close() }() // read to its end
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, "half an answer"
	}
	return response.StatusCode, string(text)
}

// awaitCount waits until so many comments were acknowledged.
func (c *commenters) awaitCount(t *testing.T, want int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); c.count() < want; pause() {
		if time.Now().After(deadline) {
			t.Fatalf("within a minute %d comments were acknowledged, want %d; fails %v", c.count(), want, c.failures())
		}
	}
}

// failures counts what was not acknowledged by its cause.
func (c *commenters) failures() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.fails)
}

// count is how many comments were acknowledged.
func (c *commenters) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.acked)
}

func (c *commenters) end() {
	c.stop()
	c.all.Wait()
}

// missing lists the acknowledged comments that a reading of a store does not find.
func (c *commenters) missing(held map[string]bool) (lost []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.acked {
		if !held[id] {
			lost = append(lost, id)
		}
	}
	slices.Sort(lost)
	return lost
}
