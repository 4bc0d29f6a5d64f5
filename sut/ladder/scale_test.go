package ladder_test

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
)

// Scaled up and scaled out, a tier has the same CPU. Of a shard with a replica, both hosts become larger.
func TestUpAndOut(t *testing.T) {
	for _, test := range []struct {
		stage sut.Stage
		knobs sut.Knobs
		name  string
		want  string // hosts x units
		wrong string
	}{
		{sut.LB, nil, "web", "web 1x1 1x3 3x1", ""},
		{sut.LB, sut.Knobs{"web.cpu": "1.5"}, "web", "web 1x1.5 1x4.5 3x1.5", ""},
		{sut.LB, sut.Knobs{"web.cpu": "0.5"}, "web", "", "web.cpu=0.5 is 0.05 cores"},
		{sut.Replicas, nil, "replica", "db 1x1 1x3 3x1", ""},
		{sut.Sharded, nil, "shard", "db 2x1 2x3 6x1", ""},
		{sut.CDN, nil, "edge", "edge 1x2 1x6 3x2", ""},
		{sut.Queued, nil, "worker", "worker 1x1 1x3 3x1", ""},
		{sut.DBSplit, sut.Knobs{"blob.hosts": "1"}, "blob", "blob 1x1 1x3 3x1", ""},
		{sut.DBSplit, nil, "web", "", "no balancer"},
		{sut.LB, nil, "lb", "", "want one of"},
		{sut.LB, sut.Knobs{"web.cpu": "2,1"}, "web", "", "web.cpu=2,1: want one size"},
		{sut.LB, sut.Knobs{"web.cpu": "20"}, "web", "", "32"},
	} {
		now, err := ladder.Build(test.stage, test.knobs, 0.1)
		if err != nil {
			t.Fatal(err)
		}
		sizes, role, err := ladder.UpAndOut(now, test.name, 3)
		if test.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), test.wrong) {
				t.Errorf("%s %v: %s: error %v, want %q", test.stage, test.knobs, test.name, err, test.wrong)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		got := string(role)
		for _, s := range sizes {
			got += fmt.Sprintf(" %dx%g", s.Hosts, s.Units)
		}
		if got != test.want || math.Abs(sizes[1].CPU()-sizes[2].CPU()) > 1e-9 {
			t.Errorf("%s %v: %s, want %s; %v and %v cores in sum", test.stage, test.knobs, got, test.want,
				sizes[1].CPU(), sizes[2].CPU())
		}
	}
}

func TestScale(t *testing.T) {
	for _, test := range []struct {
		stage sut.Stage
		knobs sut.Knobs
		name  string
		hosts int
		delta string // added and removed hosts, with + or -
		wrong string
	}{
		{sut.LB, nil, "web", 4, "+web-4", ""},
		{sut.LB, nil, "web", 2, "-web-3", ""},
		{sut.LB, nil, "web", 17, "", "from 1 to 16"},
		{sut.DBSplit, nil, "web", 2, "", "stage db-split has no balancer"},
		{sut.Caches, nil, "cache", 3, "+cache-2 +cache-3", ""},
		{sut.Replicas, nil, "cache", 3, "", "stage replicas has no cache hosts"},
		{sut.LB, sut.Knobs{"blob.hosts": "1"}, "blob", 3, "+blob-2 +blob-3", ""},
		{sut.LB, nil, "blob", 3, "", "on the database host"},
		{sut.LB, sut.Knobs{"blob.hosts": "2", "blob.copies": "2"}, "blob", 1, "", "needs blob.hosts of at least 2, not 1"},
		{sut.Replicas, nil, "replica", 3, "+db-4", ""},
		{sut.Replicas, nil, "replica", 1, "-db-3", ""},
		{
			sut.Replicas,
			sut.Knobs{"db.sync": "sync", "db.sync_copies": "2"},
			"replica", 1, "",
			"needs db.replicas of at least 2, not 1",
		},
		{sut.Replicas, sut.Knobs{"db.topology": "ring"}, "replica", 3, "", "every database is a primary"},
		{sut.LB, nil, "replica", 3, "", "without replicas"},
		{sut.Sharded, nil, "shard", 3, "+db-5 +db-6", ""},
		{sut.Sharded, sut.Knobs{"shard.count": "3", "shard.replicas": "0"}, "shard", 2, "-db-3", ""},
		{sut.Queued, nil, "shard", 3, "", "stage queue has no shards"},
		{sut.Sharded, nil, "replica", 2, "", "replicas of a shard cannot change"},
		{sut.LB, nil, "lb", 2, "", "want one of: edge, web, replica, shard, blob, cache"},
	} {
		now, err := ladder.Build(test.stage, test.knobs, 0.1)
		if err != nil {
			t.Fatal(err)
		}
		next, role, err := ladder.Scale(now, test.name, test.hosts)
		if test.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), test.wrong) {
				t.Errorf("%s: %s to %d: error %v, want %q", test.stage, test.name, test.hosts, err, test.wrong)
			}
			continue
		}
		var delta []string
		for _, h := range next.Hosts {
			if _, had := now.Host(h.Name); !had {
				delta = append(delta, "+"+h.Name)
			}
		}
		for _, h := range now.Hosts {
			if _, has := next.Host(h.Name); !has {
				delta = append(delta, "-"+h.Name)
			}
		}
		if got := strings.Join(delta, " "); err != nil || got != test.delta {
			t.Errorf("%s: %s to %d: %v, %q %s, want %q", test.stage, test.name, test.hosts, err, got, role, test.delta)
		}
	}
}
