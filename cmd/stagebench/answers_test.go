package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/workloads"
)

// The same ops, one at a time, lead to the same answers and the same records at every stage and with every engine: to
// those of one host with the embedded database. Tiers and engines change how fast and how safe a record is, never what
// it is.
func TestEveryStageGivesTheSameAnswers(t *testing.T) {
	t.Parallel()
	var want *conversation
	t.Run("reference", func(t *testing.T) {
		want = converse(t, sut.Single, engines()["embedded"])
		want.read(t)
	})
	if want == nil {
		t.Fatal("there is nothing to compare with")
	}
	for name, knobs := range engines() {
		for _, info := range ladder.Stages() {
			if name == "embedded" && info.Stage == sut.Single {
				continue
			}
			t.Run(name+"/"+string(info.Stage), func(t *testing.T) {
				t.Parallel()
				got := converse(t, info.Stage, knobs)
				if diff := cmp.Diff(want.answers, got.answers); diff != "" {
					t.Errorf("answers (-one host +here)\n%s", diff)
				}
				// Replicas apply the last writes, caches forget older records, and workers finish their jobs.
				var diff string
				settled := func() bool {
					got.read(t)
					diff = cmp.Diff(want.records, got.records)
					return diff == ""
				}
				defer func() {
					if diff != "" {
						t.Errorf("records (-one host +here)\n%s", diff)
					}
				}()
				eventually(t, "the records are those of one host", settled)
			})
		}
	}
}

// conversation is what a system answered to a sequence of ops, and the records that they read or changed.
type conversation struct {
	base    string
	clients map[int]*http.Client // by user
	answers []string             // of the ops that write
	paths   []string             // of the records
	records map[string]any       // by path; photos that the ops made have their number instead of their id
}

// converse brings a stage up and sends ops, one at a time.
func converse(t *testing.T, stage sut.Stage, knobs sut.Knobs) *conversation {
	t.Helper()
	r := bringUpSized(t, stage, with(knobs, sut.Knobs{
		"web.hosts": "2", "db.replicas": "1", "cache.ttl": "1s", "cache.feed_ttl": "0s",
	}), roomy)
	c := &conversation{base: r.Endpoints()[0], clients: map[int]*http.Client{}}
	seen, made := map[string]bool{}, 0
	for _, part := range []struct {
		workload string
		ops      uint64
	}{{"write-heavy", 200}, {"upload-heavy", 50}} {
		w := shipped(t, part.workload)
		for n := range part.ops {
			op := w.Op(n)
			c.logIn(t, op.User, w.(workloads.Login).LoginOp(op.User))
			response, _ := c.send(t, op.User, op)
			record := op.Record
			if op.Class == "upload" {
				record = response.Header.Get("Location")
				made++
			}
			if record != "" && !seen[record] {
				seen[record], c.paths = true, append(c.paths, record)
			}
			if op.Write {
				c.answers = append(c.answers, fmt.Sprintf("%s %d %s: %d, version %s", part.workload, n, op.Class,
					response.StatusCode, response.Header.Get("X-Record-Version")))
			}
		}
	}
	if made == 0 {
		t.Error("no op uploads")
	}
	for user := 1; user <= 20; user++ {
		c.paths = append(c.paths, fmt.Sprintf("/api/users/%d", user), fmt.Sprintf("/api/feed?user=%d&limit=20", user))
	}
	return c
}

// logIn logs a user in, once.
func (c *conversation) logIn(t *testing.T, user int, login workloads.Op) {
	t.Helper()
	if c.clients[user] != nil {
		return
	}
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	c.clients[user] = &http.Client{Jar: jar, Timeout: testTimeout}
	c.send(t, user, login)
}

// send sends an op of a user.
func (c *conversation) send(t *testing.T, user int, op workloads.Op) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), op.Method, c.base+op.Path, bytes.NewReader(op.Body))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range op.Header {
		if name != "Accept-Encoding" { // the client decompresses only what it asked for itself
			req.Header.Set(name, value)
		}
	}
	response, err := c.clients[user].Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }() // read to its end
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, body
}

// read reads the records.
func (c *conversation) read(t *testing.T) {
	t.Helper()
	c.records = map[string]any{}
	made := 0
	for _, path := range c.paths {
		response, body := c.send(t, anyUser(c.clients), workloads.Op{Method: http.MethodGet, Path: path})
		var record any
		decoder := json.NewDecoder(bytes.NewReader(body))
		decoder.UseNumber()
		if err := decoder.Decode(&record); err != nil || response.StatusCode != http.StatusOK {
			record = fmt.Sprintf("%s: %s, %v", response.Status, body, err)
		}
		name := path
		if id, isPhoto := strings.CutPrefix(path, "/api/photos/"); isPhoto && !seeded(json.Number(id)) {
			made++
			name = fmt.Sprintf("upload %d", made)
		}
		c.records[name] = timeless(record)
	}
}

func anyUser(clients map[int]*http.Client) int {
	for user := range clients {
		return user
	}
	return 0
}

func seeded(id json.Number) bool {
	n, err := id.Int64()
	return err == nil && photos.ID(n).Seeded()
}

// timeless returns a record without what depends on times: the times themselves, and the ids of new photos. The end of
// their processing is a change of its own, so it is a version more if workers do it.
func timeless(record any) any {
	switch r := record.(type) {
	case []any:
		for i := range r {
			r[i] = timeless(r[i])
		}
	case map[string]any:
		if id, isID := r["id"].(json.Number); isID && r["title"] != nil && !seeded(id) {
			delete(r, "id")
			delete(r, "version")
			delete(r, "created_us")
		}
		delete(r, "done_us")
		for name := range r {
			r[name] = timeless(r[name])
		}
	}
	return record
}
