package node

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	goredis "github.com/redis/go-redis/v9"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/memcached/memcachedtest"
	"github.com/stagebench/stagebench/sut/redis"
	"github.com/stagebench/stagebench/sut/resp"
	"github.com/stagebench/stagebench/sut/resp/resptest"
)

// gathered returns the metrics of a collector, by name without the prefix.
func gathered(t *testing.T, c prometheus.Collector) map[string]float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		name, prefixed := strings.CutPrefix(f.GetName(), "stagebench_cache_node_")
		if !prefixed || len(f.GetMetric()) != 1 {
			t.Fatalf("%s: %v", f.GetName(), f)
		}
		m := f.GetMetric()[0]
		values[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
	}
	return values
}

// redisAt describes a Redis that already runs at an address.
func redisAt(t *testing.T, address string) *redis.Server {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return redis.New(redis.Config{Listen: net.ParseIP(host), Port: number})
}

// fill stores three values of 1000 bytes, and reads keys with six hits and five misses.
func fill(t *testing.T, set, get func(key string) error) {
	t.Helper()
	for _, key := range []string{"a", "b", "c"} {
		if err := set(key); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range strings.Fields("a none a none a none a none a none b") {
		if err := get(key); err != nil {
			t.Fatal(err)
		}
	}
}

func fillRESP(t *testing.T, address string) {
	t.Helper()
	client := resptest.Client(address)
	defer func() { _ = client.Close() }()
	fill(t, func(key string) error {
		return client.Set(t.Context(), key, strings.Repeat("x", 1000), 0).Err()
	}, func(key string) error {
		if err := client.Get(t.Context(), key).Err(); !errors.Is(err, goredis.Nil) {
			return err
		}
		return nil
	})
}

func fillMemcached(t *testing.T, address string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	answers := bufio.NewReader(conn)
	do := func(command, end string) error {
		if _, err := io.WriteString(conn, command); err != nil {
			return err
		}
		for {
			line, err := answers.ReadString('\n')
			if err != nil || line == end {
				return err
			}
		}
	}
	fill(t, func(key string) error {
		return do("set "+key+" 0 0 1000\r\n"+strings.Repeat("x", 1000)+"\r\n", "STORED\r\n")
	}, func(key string) error { return do("get "+key+"\r\n", "END\r\n") })
}

// A scrape asks the server once. All engines report the same figures for the same
// requests.
func TestCacheCollector(t *testing.T) {
	t.Parallel()
	const limit = 64 << 20
	type statsFunc = func(context.Context) (sut.CacheFigures, error)
	for name, startServer := range map[string]func(t *testing.T) statsFunc{
		"resp": func(t *testing.T) statsFunc {
			server := resptest.Serve(t, resp.Config{MaxBytes: limit})
			fillRESP(t, server.Addr().String())
			return func(context.Context) (sut.CacheFigures, error) { return server.Stats().CacheFigures, nil }
		},
		"redis": func(t *testing.T) statsFunc {
			address := resptest.Redis(t, "--maxmemory", strconv.Itoa(limit))
			fillRESP(t, address)
			return redisAt(t, address).Stats
		},
		"memcached": func(t *testing.T) statsFunc {
			server := memcachedtest.Start(t, limit, "")
			fillMemcached(t, server.Address())
			return server.Stats
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stats, calls := startServer(t), 0
			got := gathered(t, newCacheCollector(func(ctx context.Context) (sut.CacheFigures, error) {
				calls++
				return stats(ctx)
			}))
			if calls != 1 {
				t.Errorf("%d requests for one scrape, want 1", calls)
			}
			bytes := got["bytes"]
			delete(got, "bytes")
			want := map[string]float64{
				"hits_total": 6, "misses_total": 5, "evictions_total": 0, "expired_total": 0,
				"entries": 3, "limit_bytes": limit, "scrape_errors_total": 0,
			}
			if diff := cmp.Diff(want, got); diff != "" || bytes < 3000 || bytes > limit {
				t.Errorf("%v bytes; (-want +got)\n%s", bytes, diff)
			}
		})
	}
}

// A server that does not answer, one that is down and one that reports an error have no
// figures. Each counts as a scrape error. The request to the server has a deadline.
func TestCacheCollectorWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	server := redisAt(t, silent.Addr().String())
	var bounded bool
	collector := newCacheCollector(func(ctx context.Context) (sut.CacheFigures, error) {
		until, has := ctx.Deadline()
		bounded = has && time.Until(until) <= figuresTimeout
		return server.Stats(ctx)
	})
	if got := gathered(t, collector); len(got) != 1 || got["scrape_errors_total"] != 1 || !bounded {
		t.Errorf("silent: %v, bounded %t", got, bounded)
	}
	_ = silent.Close()
	if got := gathered(t, collector); len(got) != 1 || got["scrape_errors_total"] != 2 {
		t.Errorf("down: %v", got)
	}
	up := newCacheCollector(func(context.Context) (sut.CacheFigures, error) { return sut.CacheFigures{Hits: 7}, nil })
	if got := gathered(t, up); len(got) != 8 || got["hits_total"] != 7 {
		t.Errorf("up: %v", got)
	}
	failing := newCacheCollector(func(context.Context) (sut.CacheFigures, error) {
		return sut.CacheFigures{Hits: 7}, errors.New("incomplete answer")
	})
	if got := gathered(t, failing); len(got) != 1 {
		t.Errorf("incomplete answer: %v", got)
	}
}
