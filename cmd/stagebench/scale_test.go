package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets"
)

// scaled is a system with one web host and one cache host. Every scrape of it counts three
// more hits and one more miss.
type scaled struct {
	url   string
	moved *int64
	held  *int64
	fails error
}

func (s scaled) Status(context.Context) ([]targets.NodeStatus, error) {
	admin := strings.TrimPrefix(s.url, "http://")
	return []targets.NodeStatus{
		{Node: "web-1", Role: sut.Web, Admin: admin},
		{Node: "cache-1", Role: sut.Cache, Admin: admin},
	}, nil
}

func (s scaled) Scale(_ context.Context, tier string, hosts int) (targets.Scaled, error) {
	done := targets.Scaled{Tier: tier, Hosts: hosts, TookNS: 412_400_000, Moved: s.moved, Held: s.held}
	if tier == ladder.ScaleShards {
		done.Resharded = &targets.Resharded{
			Buckets: 344, Least: 341 * (hosts % 2), Rows: *s.moved, PauseP50NS: 8_714_000, PauseMaxNS: 62_090_000,
		}
	}
	return done, s.fails
}

func TestScaleOutput(t *testing.T) {
	var scrapes atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n := scrapes.Add(1)
		fmt.Fprintf(w, "process_start_time_seconds 1\nstagebench_cache_node_hits_total 0\n"+
			"stagebench_cache_reads_total{result=\"hit\"} %d\nstagebench_cache_reads_total{result=\"miss\"} %d\n", 3*n, n)
	}))
	defer server.Close()
	moved, held := int64(2113), int64(3180)
	for _, test := range []struct {
		tier  string
		hosts int
		watch time.Duration
		moved *int64
		want  string
	}{
		{
			"cache", 3, time.Millisecond, &moved,
			"cache has 3 hosts after 412ms: 2,113 of 3,180 keys moved to other hosts\n" +
				"hit ratio of the web hosts: 0.75 in the 1ms before, 0.75 in the 1ms after\n",
		},
		{"cache", 1, 0, nil, "cache has 1 host after 412ms: an unknown number of 3,180 keys moved to other hosts\n"},
		{"blob", 3, time.Second, &moved, "blob has 3 hosts after 412ms: 2,113 objects moved to other hosts\n"},
		{
			"shard", 1, 0, &moved,
			"the database has 1 shard after 412ms: 344 buckets of users moved, 1.01 times the fewest possible, " +
				"with 2,113 rows\nwrites of a bucket waited for its move: median 8.7ms, longest 62.1ms\n",
		},
		{
			"shard", 2, 0, &moved, "the database has 2 shards after 412ms: 344 buckets of users moved, with 2,113 rows\n" +
				"writes of a bucket waited for its move: median 8.7ms, longest 62.1ms\n",
		},
		{"replica", 2, time.Second, nil, "replica has 2 hosts after 412ms\n"},
	} {
		var out bytes.Buffer
		system := scaled{url: server.URL, moved: test.moved, held: &held}
		if test.tier == "blob" {
			system.held = nil // blob hosts do not count them
		}
		if err := scale(t.Context(), &out, system, test.tier, test.hosts, test.watch); err != nil {
			t.Error(err)
		}
		if out.String() != test.want {
			t.Errorf("%s: %q, want %q", test.tier, out.String(), test.want)
		}
	}
	var out bytes.Buffer
	refusal := errors.New("another change is in progress")
	err := scale(t.Context(), &out, scaled{url: server.URL, fails: refusal}, "cache", 3, time.Millisecond)
	if !errors.Is(err, refusal) || out.Len() > 0 {
		t.Errorf("error %v, output %q, want %v and no output", err, out.String(), refusal)
	}
}
