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

// commenters write comments through the web tier and record which were acknowledged. Every
// comment has its own id, so a test can name the lost ones.
type commenters struct {
	base string
	stop context.CancelFunc
	all  sync.WaitGroup

	first atomic.Int64 // unix ns of the first acknowledgement after mark
	mark  atomic.Int64 // unix ns; 0 = none

	acknowledged chan struct{} // has a value after each acknowledgement; capacity 1

	mu    sync.Mutex
	acked map[string]time.Time // time of the acknowledgement, by id of the comment
	fails map[string]int       // comments without acknowledgement, by cause
}

// commentInterval is the smallest time between two comments of one writer.
const commentInterval = 10 * time.Millisecond

// comment starts this number of writers. Each is a user with a session, and comments on the
// first photos in turn.
func comment(t *testing.T, base string, writers, photos int) *commenters {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := &commenters{
		base: base, stop: cancel, acknowledged: make(chan struct{}, 1),
		acked: map[string]time.Time{}, fails: map[string]int{},
	}
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
			interval := time.NewTicker(commentInterval)
			defer interval.Stop()
			for n := 0; ctx.Err() == nil; n++ {
				c.write(ctx, client, login, photoPath((i*131+n)%photos+1)+"/comments")
				<-interval.C
			}
		})
	}
	return c
}

// write writes one comment. It does not stop when ctx ends: otherwise nobody would know
// whether the comment was acknowledged.
func (c *commenters) write(ctx context.Context, client *http.Client, login, path string) {
	code, text := c.post(context.WithoutCancel(ctx), client, path, `{"text":"well done"}`)
	now := time.Now()
	var answer struct {
		Comment json.Number `json:"comment_id"`
	}
	if code == http.StatusUnauthorized { // the session was on a killed web host
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
	select {
	case c.acknowledged <- struct{}{}:
	default:
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
		return 0, "no response"
	}
	defer func() { _ = response.Body.Close() }() // read to its end
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, "incomplete response"
	}
	return response.StatusCode, string(text)
}

// awaitCount waits until this number of comments has been acknowledged.
func (c *commenters) awaitCount(t *testing.T, want int) {
	t.Helper()
	for deadline := time.After(testTimeout); c.count() < want; {
		select {
		case <-c.acknowledged:
		case <-deadline:
			t.Fatalf("%d comments were acknowledged within %v, want %d; fails %v",
				c.count(), testTimeout, want, c.failures())
		}
	}
}

// failures returns the number of comments that were not acknowledged, by cause.
func (c *commenters) failures() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.fails)
}

// count returns the number of acknowledged comments.
func (c *commenters) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.acked)
}

// end stops the writers and waits for their last comments.
func (c *commenters) end() {
	c.stop()
	c.all.Wait()
}

// missing lists the acknowledged comments that are not held.
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
