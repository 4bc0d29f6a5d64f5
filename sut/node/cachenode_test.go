package node_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stagebench/stagebench/internal/porttest"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/node"
	"github.com/stagebench/stagebench/sut/store"
)

// cacheTier is a cache tier whose hosts change, and the web nodes that use it.
type cacheTier struct {
	uses  map[sut.Role][]sut.Peer // database and blob nodes
	knobs sut.Knobs
	epoch int64
	hosts map[string]*running // cache nodes by name
	webs  []*running
}

// wiring returns a wiring of the next epoch with these active and draining cache hosts.
func (c *cacheTier) wiring(active, leaving []string, moving bool) sut.Wiring {
	c.epoch++
	w := sut.Wiring{Epoch: c.epoch, Rebalancing: moving, Uses: maps.Clone(c.uses)}
	for _, name := range slices.Concat(active, leaving) {
		peer := sut.Peer{Node: name, Address: "127.0.0.1:1", Draining: slices.Contains(leaving, name)}
		if host := c.hosts[name]; host != nil {
			peer.Address = host.ready.Address
		}
		w.Uses[sut.Cache] = append(w.Uses[sut.Cache], peer)
	}
	return w
}

func (c *cacheTier) startHost(t *testing.T, name string, w sut.Wiring) {
	t.Helper()
	engine := sut.Engine(c.knobs["cache.engine"])
	c.hosts[name] = start(t, sut.NodeConfig{
		Node: name, Role: sut.Cache, Engine: engine, Dir: t.TempDir(), Knobs: c.knobs, Wiring: w,
		Listen: porttest.Free(t).Addr().String(), // nobody takes the port of a native server before it starts
	})
}

// scale changes the cache hosts in the same steps as the harness.
func (c *cacheTier) scale(t *testing.T, from, to []string) {
	t.Helper()
	var leaving []string
	for _, name := range from {
		if !slices.Contains(to, name) {
			leaving = append(leaving, name)
		}
	}
	for _, name := range to {
		if !slices.Contains(from, name) {
			c.startHost(t, name, c.wiring(to, leaving, true))
		}
	}
	rewire := func(node *running, w sut.Wiring) {
		t.Helper()
		if status, text := node.rewire(t, w); status != http.StatusNoContent {
			t.Errorf("wiring %+v: %d %s", w, status, text)
		}
	}
	members := slices.Concat(to, leaving)
	for _, name := range members {
		rewire(c.hosts[name], c.wiring(to, leaving, true))
	}
	for _, web := range c.webs {
		rewire(web, c.wiring(to, leaving, false))
	}
	for _, name := range members {
		rewire(c.hosts[name], c.wiring(to, leaving, false))
	}
	for _, name := range leaving {
		for _, web := range c.webs {
			rewire(web, c.wiring(to, nil, false))
		}
		c.hosts[name].drain()
		if err := c.hosts[name].end(t); err != nil {
			t.Error(err)
		}
		delete(c.hosts, name)
	}
}

// Cache hosts are added and removed under load. No request fails, no acknowledged write
// is lost, and no stale value is read afterwards.
func TestCacheHostsChange(t *testing.T) {
	uses, _ := tiers(t)
	strategies := [][2]string{
		{"look_aside", "write_around"}, {"read_through", "write_through"}, {"read_through", "write_back"},
	}
	for _, engine := range []sut.Engine{sut.RESP, sut.Redis, sut.Memcached} {
		for _, strategy := range strategies {
			t.Run(fmt.Sprint(engine, " ", strategy[0], " ", strategy[1]), func(t *testing.T) {
				if err := node.Installed(engine); err != nil {
					t.Skipf("needs its server: %v", err)
				}
				cacheHostsChange(t, uses, sut.Knobs{
					"cache.engine": string(engine), "cache.read": strategy[0], "cache.write": strategy[1],
					"cache.flush_interval": "50ms", "cache.ttl": "1h",
				})
			})
		}
	}
}

const likedPhotos = 40

func cacheHostsChange(t *testing.T, uses map[sut.Role][]sut.Peer, knobs sut.Knobs) {
	c := &cacheTier{uses: uses, knobs: knobs, hosts: map[string]*running{}}
	one, three := []string{"cache-1"}, []string{"cache-1", "cache-2", "cache-3"}
	c.startHost(t, "cache-1", c.wiring(one, nil, false))
	for n := range 2 {
		c.webs = append(c.webs, web(t, fmt.Sprintf("web-%d", n+1), c.wiring(one, nil, false).Uses,
			func(config *sut.NodeConfig) { config.Knobs = knobs }))
	}
	stop := c.load(t)
	for range 2 {
		c.scale(t, one, three)
		c.scale(t, three, one)
	}
	stop()
	c.scale(t, one, three)
	for _, web := range c.webs { // the second web node changes photos that the first one has cached
		client := browser(t)
		web.service().logIn(t, client, 3)
		for photo := range likedPhotos {
			c.read(t, web, client, photo)
			c.like(t, web, client, photo)
		}
	}
	c.scale(t, three, one)
	records, err := store.Open(store.Config{Databases: uses[sut.DB], Password: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer records.Close()
	for _, web := range c.webs {
		client := browser(t)
		for photo := range likedPhotos {
			want, err := records.Photo(t.Context(), seededPhoto(1+photo))
			if err != nil {
				t.Fatal(err)
			}
			if got := c.read(t, web, client, photo); got != want.Version {
				t.Errorf("photo %d: version %d was read, want %d as in the database", photo, got, want.Version)
			}
		}
	}
}

// load likes and reads photos at all web nodes in the background. stop ends the load and
// checks that no acknowledged like is lost.
func (c *cacheTier) load(t *testing.T) (stop func()) {
	records, err := store.Open(store.Config{Databases: c.uses[sut.DB], Password: secret})
	if err != nil {
		t.Fatal(err)
	}
	likes := func() (sum int64) {
		for photo := range likedPhotos {
			p, err := records.Photo(t.Context(), seededPhoto(1+photo))
			if err != nil {
				t.Error(err)
			}
			sum += p.Likes
		}
		return sum
	}
	before := likes()
	ctx, cancel := context.WithCancel(t.Context())
	acknowledged := make([]int64, len(c.webs))
	var clients sync.WaitGroup
	for i, web := range c.webs {
		client := browser(t)
		web.service().logIn(t, client, 1+i)
		clients.Go(func() {
			// The web nodes like different photos. During a change they may use different
			// cache hosts for one photo, and with write-back two hosts would both hold
			// its likes.
			for photo := i; ctx.Err() == nil; photo += len(c.webs) {
				c.like(t, web, client, photo%likedPhotos)
				acknowledged[i]++
				c.read(t, web, client, (photo+7)%likedPhotos)
			}
		})
	}
	return func() {
		cancel()
		clients.Wait()
		defer records.Close()
		want := before + acknowledged[0] + acknowledged[1]
		eventually(t, "everything is written back", func() bool { return likes() >= want })
		if now := likes(); now != want {
			t.Errorf("%d likes, want %d: %d before the test and %v acknowledged", now, want, before, acknowledged)
		}
	}
}

func (c *cacheTier) like(t *testing.T, web *running, client *http.Client, photo int) {
	response, text := web.service().do(t, client, http.MethodPost, photoPath(1+photo)+"/like", "", nil)
	if response.StatusCode >= 300 || response.Header.Get("X-Degraded") != "" {
		t.Errorf("like photo %d: %s, degraded %q: %s", photo, response.Status, response.Header.Get("X-Degraded"), text)
	}
}

// read reads a photo and returns its version.
func (c *cacheTier) read(t *testing.T, web *running, client *http.Client, photo int) (version int64) {
	response, text := web.service().do(t, client, http.MethodGet, photoPath(1+photo), "", nil)
	version, err := strconv.ParseInt(response.Header.Get("X-Record-Version"), 10, 64)
	if response.StatusCode != http.StatusOK || err != nil {
		t.Errorf("read photo %d: %s %s", photo, response.Status, text)
	}
	return version
}

// Without the secret, lines that do not end cannot fill the memory of a memcached host, and nobody reads an entry.
func TestMemcachedIsBounded(t *testing.T) {
	if err := node.Installed(sut.Memcached); err != nil {
		t.Skip(err)
	}
	const memory = 100 << 20
	r := start(t, sut.NodeConfig{
		Node: "cache-1", Role: sut.Cache, Engine: sut.Memcached, Dir: t.TempDir(),
		Knobs: sut.Knobs{"cache.engine": "memcached"},
	})
	line := append([]byte("get "), bytes.Repeat([]byte("a"), 80<<20)...)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			conn, err := net.Dial("tcp", r.ready.Address)
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { _ = conn.Close() })
			_ = conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
			_, _ = conn.Write(line) // the server may close the connection
		})
	}
	all.Wait()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", r.ready.PIDs[0]))
	if err != nil {
		t.Fatal(err)
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(stat), &size, &resident); err != nil {
		t.Fatal(err)
	}
	resident *= int64(os.Getpagesize())
	t.Logf("%d MiB resident after 640 MiB of unfinished lines", resident>>20)
	if resident > memory {
		t.Errorf("%d bytes resident, want at most %d", resident, memory)
	}
	conn, err := net.Dial("tcp", r.ready.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if err := secret.ShowMemcached(conn); err != nil {
		t.Fatal(err)
	}
	_, _ = conn.Write([]byte("set a 0 0 1\r\nb\r\nget a\r\n"))
	answer := make([]byte, len("STORED\r\nVALUE a 0 1\r\nb\r\nEND\r\n"))
	if _, err := io.ReadFull(conn, answer); err != nil {
		t.Errorf("another client got %q: %v", answer, err)
	}
	stranger, err := net.Dial("tcp", r.ready.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stranger.Close() }()
	_ = stranger.SetDeadline(time.Now().Add(10 * time.Second))
	if err := sut.Secret("wrong").ShowMemcached(stranger); err == nil {
		t.Error("a wrong secret was accepted")
	}
}
