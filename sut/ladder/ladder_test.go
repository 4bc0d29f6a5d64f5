package ladder_test

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
)

// Each stage has these hosts and units by default.
func TestDefaultHosts(t *testing.T) {
	for stage, want := range map[sut.Stage]struct {
		hosts string
		units float64
	}{
		sut.Single:  {"host-1", 1},
		sut.DBSplit: {"web-1 db-1", 2},
		sut.LB:      {"lb-1 web-1 web-2 web-3 db-1", 6},
	} {
		topology, err := ladder.Build(stage, nil, 0.1)
		if err != nil {
			t.Fatal(err)
		}
		var hosts []string
		for _, h := range topology.Hosts {
			hosts = append(hosts, h.Name)
		}
		if got := strings.Join(hosts, " "); got != want.hosts || topology.Units() != want.units {
			t.Errorf("%s: hosts %s with %v units, want %s with %v", stage, got, topology.Units(), want.hosts, want.units)
		}
		if math.Abs(topology.CPU()-want.units*0.1) > 1e-9 {
			t.Errorf("%s: %v cores, want %v", stage, topology.CPU(), want.units*0.1)
		}
	}
}

// Build never returns a topology that cannot be started.
func TestTopologiesAreStartable(t *testing.T) {
	for _, info := range ladder.Stages() {
		stage := info.Stage
		for _, knobs := range []sut.Knobs{
			nil,
			{"web.hosts": "1"},
			{"web.hosts": "16", "db.cpu": "4", "lb.engine": "haproxy", "db.engine": "postgres"},
		} {
			topology, err := ladder.Build(stage, knobs, 0.1)
			if err != nil {
				t.Fatal(err)
			}
			started := map[string]bool{}
			for _, n := range topology.Nodes {
				if _, found := topology.Host(n.Host); !found {
					t.Errorf("%s: node %s is on host %s, which does not exist", stage, n.Name, n.Host)
				}
				for _, used := range n.Uses {
					if !started[used] {
						t.Errorf("%s: node %s uses %s, which starts later or never", stage, n.Name, used)
					}
				}
				if started[n.Name] {
					t.Errorf("%s: two nodes are called %s", stage, n.Name)
				}
				started[n.Name] = true
			}
			for _, name := range append(slices.Clone(topology.Frontends), topology.Counters...) {
				if !started[name] {
					t.Errorf("%s: frontend or counter %s does not exist", stage, name)
				}
			}
		}
	}
}

// Stage single has no blob hosts, and its knobs must say so. Otherwise its one blob node
// would store only a part of the photos.
func TestSingleHoldsAllPhotos(t *testing.T) {
	topology, err := ladder.Build(sut.Single, sut.Knobs{"blob.hosts": "3", "blob.copies": "2"}, 0.1)
	if err != nil {
		t.Fatal(err)
	}
	if len(topology.Hosts) != 1 || ladder.BlobOf(topology.Knobs).Hosts != 0 || ladder.BlobOf(topology.Knobs).Copies != 1 {
		t.Errorf("%d hosts, blob.hosts=%s, blob.copies=%s", len(topology.Hosts), topology.Knobs["blob.hosts"],
			topology.Knobs["blob.copies"])
	}
}

// The cache tier has hosts of its own, from stage cache on.
func TestCacheHosts(t *testing.T) {
	for _, test := range []struct {
		stage sut.Stage
		knobs sut.Knobs
		hosts int
		units float64
	}{
		{sut.Caches, nil, 1, 9},
		{sut.Caches, sut.Knobs{"cache.hosts": "3", "cache.engine": "redis"}, 3, 11},
		{sut.Replicas, sut.Knobs{"cache.hosts": "3"}, 0, 8},
	} {
		topology, err := ladder.Build(test.stage, test.knobs, 0.1)
		if err != nil {
			t.Fatal(err)
		}
		hosts := 0
		for _, n := range topology.Nodes {
			if n.Role == sut.Cache {
				hosts++
			}
		}
		if hosts != test.hosts || topology.Units() != test.units || ladder.CacheOf(topology.Knobs).Hosts != test.hosts {
			t.Errorf("%s %v: %d cache hosts, %v units", test.stage, test.knobs, hosts, topology.Units())
		}
	}
	if _, err := ladder.Build(sut.Caches, sut.Knobs{"cache.ttl": "0s"}, 0.1); err == nil {
		t.Error("cache.ttl=0s was accepted")
	}
	for _, evict := range []string{"lru", "lfu", "fifo"} {
		_, err := ladder.Build(sut.Caches, sut.Knobs{"cache.engine": "memcached", "cache.evict": evict}, 0.1)
		if evict == "lru" && err != nil ||
			evict != "lru" && (err == nil || !strings.Contains(err.Error(), "needs cache.engine=resp or redis")) {
			t.Errorf("memcached with cache.evict=%s: %v", evict, err)
		}
	}
}

// The database knobs decide the number of hosts and primaries. Conflicts are refused.
func TestDatabaseTopologies(t *testing.T) {
	primaries := func(topology sut.Topology) (all []string) {
		for _, n := range topology.Nodes {
			if n.Replicated && len(n.Uses) == 0 {
				all = append(all, n.Name)
			}
		}
		return all
	}
	for _, test := range []struct {
		stage     sut.Stage
		knobs     sut.Knobs
		units     float64
		primaries int
		wrong     string
	}{
		{sut.Replicas, nil, 8, 1, ""},
		{sut.Replicas, sut.Knobs{"db.replicas": "0"}, 6, 0, ""},
		{sut.Replicas, sut.Knobs{"db.replicas": "1", "db.sync": "sync"}, 7, 1, ""},
		{sut.Replicas, sut.Knobs{"db.topology": "ring"}, 8, 3, ""},
		{sut.LB, sut.Knobs{"db.replicas": "5", "db.topology": "ring"}, 6, 0, ""},
		{sut.Replicas, sut.Knobs{"db.sync": "sync", "db.sync_copies": "3"}, 0, 0, "needs db.replicas of at least 3, not 2"},
		{sut.Replicas, sut.Knobs{"db.topology": "ring", "db.engine": "postgres"}, 0, 0, "needs db.engine=sqlite"},
		{sut.Single, sut.Knobs{"db.capacity_mb": "5", "db.engine": "postgres"}, 0, 0, "needs db.engine=sqlite"},
		{
			sut.Replicas,
			sut.Knobs{"db.sync": "sync", "db.sync_timeout": "1", "db.engine": "postgres"},
			0, 0,
			"needs db.engine=sqlite",
		},
		{sut.Replicas, sut.Knobs{"db.sync": "sync", "db.engine": "postgres"}, 8, 1, ""},
		{sut.Replicas, sut.Knobs{"db.topology": "multi-primary", "db.sync": "sync"}, 0, 0, "needs db.sync=async"},
		{sut.Replicas, sut.Knobs{"db.topology": "multi-primary", "db.replica_lag": "1s"}, 0, 0, "no replicas that could lag"},
		{sut.Replicas, sut.Knobs{"db.topology": "multi-primary", "db.replicas": "0"}, 0, 0, "there is only one database"},
	} {
		topology, err := ladder.Build(test.stage, test.knobs, 0.1)
		if test.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), test.wrong) {
				t.Errorf("%v: error %v, want %q", test.knobs, err, test.wrong)
			}
			continue
		}
		if err != nil || topology.Units() != test.units || len(primaries(topology)) != test.primaries ||
			topology.MultiPrimary() != (test.primaries > 1) {
			t.Errorf("%s %v: %v, %v units, primaries %v", test.stage, test.knobs, err, topology.Units(), primaries(topology))
		}
	}
}

func TestDigestIdentifiesTopology(t *testing.T) {
	seen := map[string]string{}
	for name, knobs := range map[string]sut.Knobs{
		"default": nil, "policy": {"lb.policy": "least_conn"},
		"hosts": {"web.hosts": "2"}, "size": {"web.cpu": "2"},
	} {
		topology, err := ladder.Build(sut.LB, knobs, 0.1)
		if err != nil {
			t.Fatal(err)
		}
		again, _ := ladder.Build(sut.LB, knobs, 0.1)
		if topology.Digest() != again.Digest() {
			t.Errorf("%s: one topology has two digests", name)
		}
		if other, found := seen[topology.Digest()]; found {
			t.Errorf("%s and %s have the same digest", name, other)
		}
		seen[topology.Digest()] = name
	}
}

func TestBadKnobsSayWhatIsAllowed(t *testing.T) {
	for setting, want := range map[string]string{
		"web.hosts=0":       "from 1 to 16",
		"web.hosts=many":    "whole number",
		"web.cpu=NaN":       "number from 0.5 to 32",
		"lb.policy=random":  "ip_hash, least_conn, least_response_time",
		"lb.polic=x":        "unknown knob",
		"db.engine=mysql":   "sqlite, postgres",
		"lb.sticky":         "name=value",
		"lb.sticky=perhaps": "auto, true, false",
		"db.replica_lag=5":  "for example 200ms",
		"db.replica_lag=1m": "from 0s to 10s",
	} {
		if _, err := ladder.ParseKnobs([]string{setting}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one with %q", setting, err, want)
		}
	}
	if _, err := ladder.ParseKnobs([]string{"web.hosts=1", "web.hosts=2"}); err == nil {
		t.Error("a knob that is set twice was accepted")
	}
	if _, err := ladder.Build("cluster", nil, 0.1); err == nil || !strings.Contains(err.Error(), "single, db-split, lb") {
		t.Errorf("unknown stage: %v", err)
	}
}

// The default of each knob is one of its allowed values.
func TestDefaultsAreAllowed(t *testing.T) {
	if err := ladder.Validate(ladder.Complete(nil)); err != nil {
		t.Error(err)
	}
	for _, k := range ladder.Catalogue() {
		if k.Doc == "" || k.Range == "" {
			t.Errorf("knob %s has no doc or range", k.Name)
		}
	}
}

// The unit is at least a tenth of a core.
func TestUnit(t *testing.T) {
	for _, c := range []struct {
		cores   int
		reserve float64
		want    float64
	}{{2, 0.5, 0.1}, {8, 0.5, 0.5}, {1, 0.25, 0.1}} {
		if got := ladder.UnitCPU(c.cores, c.reserve); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%d cores, %v in reserve: unit %v, want %v", c.cores, c.reserve, got, c.want)
		}
	}
}

func TestDataSizes(t *testing.T) {
	for _, size := range sut.DataSizes() {
		counts, known := sut.Data{Size: size}.Counts()
		if !known || counts.Users < 2 || counts.Photos < counts.Users {
			t.Errorf("%s: %+v", size, counts)
		}
	}
	if _, known := (sut.Data{Size: "huge"}).Counts(); known {
		t.Error("an unknown size has counts")
	}
}
