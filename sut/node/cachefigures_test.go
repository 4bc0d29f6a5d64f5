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

// gathered is what a collector shows, by name without the prefix.
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
		name, ours := strings.CutPrefix(f.GetName(), "stagebench_cache_node_")
		if !ours || len(f.GetMetric()) != 1 {
			t.Fatalf("%s: %v", f.GetName(), f)
		}
		m := f.GetMetric()[0]
		values[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
	}
	return values
}

// described is the description of a Redis that is there already.
func described(t *testing.T, address string) *redis.Server {
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

// use stores three values of 1000 bytes and reads: six hits and five misses.
func use(t *testing.T, set, get func(key string) error) {
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

func useRESP(t *testing.T, address string) {
	t.Helper()
	client := resptest.Client(address)
	defer func() { _ = client.Close() }()
	use(t, func(key string) error {
		return client.Set(t.Context(), key, strings.Repeat("x", 1000), 0).Err()
	}, func(key string) error {
		if err := client.Get(t.Context(), key).Err(); !errors.Is(err, goredis.Nil) {
			return err
		}
		return nil
	})
}

func useMemcached(t *testing.T, address string) {
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
	use(t, func(key string) error {
		return do("set "+key+" 0 0 1000\r\n"+strings.Repeat("x", 1000)+"\r\n", "STORED\r\n")
	}, func(key string) error { return do("get "+key+"\r\n", "END\r\n") })
}

// Every engine is asked once, and says the same of the same requests.
func TestCacheCollector(t *testing.T) {
	t.Parallel()
	const limit = 64 << 20
	type asking = func(context.Context) (sut.CacheFigures, error)
	for name, begin := range map[string]func(t *testing.T) asking{
		"resp": func(t *testing.T) asking {
			server := resptest.Serve(t, resp.Config{MaxBytes: limit})
			useRESP(t, server.Addr().String())
			return func(context.Context) (sut.CacheFigures, error) { return server.Stats().CacheFigures, nil }
		},
		"redis": func(t *testing.T) asking {
			address := resptest.Redis(t, "--maxmemory", strconv.Itoa(limit))
			useRESP(t, address)
			return described(t, address).Stats
		},
		"memcached": func(t *testing.T) asking {
			server := memcachedtest.Start(t, limit)
			useMemcached(t, server.Address())
			return server.Stats
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ask, asked := begin(t), 0
			got := gathered(t, newCacheCollector(func(ctx context.Context) (sut.CacheFigures, error) { asked++; return ask(ctx) }))
			if asked != 1 {
				t.Errorf("asked %d times for one scrape", asked)
			}
			bytes := got["bytes"]
			delete(got, "bytes")
			want := map[string]float64{
				"hits_total": 6, "misses_total": 5, "evictions_total": 0, "expired_total": 0, "entries": 3, "limit_bytes": limit, "scrape_errors_total": 0,
			}
			if diff := cmp.Diff(want, got); diff != "" || bytes < 3000 || bytes > limit {
				t.Errorf("%v bytes; (-want +got)\n%s", bytes, diff)
			}
		})
	}
}

// A server that accepts and says nothing, and one that is gone, have no figures; each
// is an error, and the first is not waited for longer than it may take.
func TestCacheCollectorWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	server := described(t, silent.Addr().String())
	var bounded bool
	collector := newCacheCollector(func(ctx context.Context) (sut.CacheFigures, error) {
		until, has := ctx.Deadline()
		bounded = has && time.Until(until) <= cacheAnswer
		return server.Stats(ctx)
	})
	if got := gathered(t, collector); len(got) != 1 || got["scrape_errors_total"] != 1 || !bounded {
		t.Errorf("silent: %v, bounded %t", got, bounded)
	}
	_ = silent.Close()
	if got := gathered(t, collector); len(got) != 1 || got["scrape_errors_total"] != 2 {
		t.Errorf("gone: %v", got)
	}
	back := newCacheCollector(func(context.Context) (sut.CacheFigures, error) { return sut.CacheFigures{Hits: 7}, nil })
	if got := gathered(t, back); len(got) != 8 || got["hits_total"] != 7 {
		t.Errorf("back again: %v", got)
	}
	refused := newCacheCollector(func(context.Context) (sut.CacheFigures, error) {
		return sut.CacheFigures{Hits: 7}, errors.New("half an answer")
	})
	if got := gathered(t, refused); len(got) != 1 {
		t.Errorf("half an answer: %v", got)
	}
}
