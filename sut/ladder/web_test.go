package ladder_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
)

// Conflicting knobs are refused with the reason.
func TestKnobsThatContradict(t *testing.T) {
	for text, want := range map[string]string{
		"lb.layer=l4 lb.sticky=true":                                "lb.sticky=true needs lb.layer=l7",
		"lb.layer=l4 web.split=true":                                "need lb.layer=l7",
		"lb.engine=haproxy lb.policy=least_response_time":           "needs lb.engine=balance",
		"web.split=true web.hosts=2 web.upload_hosts=2":             "needs more web.hosts",
		"blob.copies=2":                                             "needs blob.hosts of at least 2, not 0",
		"web.hosts=2 lb.routes=path=/img/*->web-3":                  "lb.routes names web-3, but the web hosts are web-1",
		"web.cpu=3,x":                                               "want a number from 0.5 to 32",
		"web.cpu=3,":                                                "want a number from 0.5 to 32",
		"web.autoscale=cpu web.split=true":                          "web.autoscale and web.split=true exclude each other",
		"web.autoscale=cpu web.autoscale_max=2":                     "keeps web.hosts from 1 to 2, not 3",
		"web.autoscale=cpu web.hosts=1 web.autoscale_min=2":         "keeps web.hosts from 2 to 16, not 1",
		"web.autoscale=cpu web.autoscale_min=3 web.autoscale_max=2": "web.autoscale_min (3) is more than",
		"web.autoscale=cpu web.autoscale_target=101":                "cannot use more than 100 % of its CPU",
		"web.autoscale=cpu web.autoscale_window=5":                  "is shorter than web.autoscale_interval (15s)",
		"web.autoscale=latency":                                     "want one of off, cpu, in_flight",
	} {
		knobs, err := ladder.ParseKnobs(strings.Fields(text))
		if err == nil {
			_, err = ladder.Build(sut.LB, knobs, 0.1)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one with %q", text, err, want)
		}
	}
}

// With web.split, uploads have hosts of their own. These use the other web hosts, which
// hold the sessions.
func TestSplitWebTier(t *testing.T) {
	topology, err := ladder.Build(sut.LB, sut.Knobs{
		"web.split": "true", "web.weights": "1,2", "web.cpu": "3,1",
		"lb.hosts": "2", "blob.hosts": "2", "blob.copies": "2",
	}, 0.1)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, n := range topology.Nodes {
		host, _ := topology.Host(n.Host)
		row := []string{n.Name, string(n.Service), strings.Join(n.Uses, "+")}
		got = append(got, strings.TrimSpace(strings.Join(row, " ")))
		if n.Name == "web-1" && (n.Weight != 1 || host.Units != 3) ||
			n.Name == "web-3" && (n.Weight != 2 || host.Units != 1) {
			t.Errorf("%s has weight %v on %v units", n.Name, n.Weight, host.Units)
		}
	}
	want := []string{
		"db-1", "blob-1", "blob-2",
		"web-2 reads db-1+blob-1+blob-2", "web-3 reads db-1+blob-1+blob-2", "web-1 uploads db-1+blob-1+blob-2+web-2+web-3",
		"lb-1  web-1+web-2+web-3", "lb-2  web-1+web-2+web-3",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("nodes (-want +got)\n%s", diff)
	}
	routes := []sut.Route{{Method: "POST", Path: "/api/photos", To: []string{"web-1"}}, {To: []string{"web-2", "web-3"}}}
	lb, _ := topology.Node("lb-2")
	if diff := cmp.Diff(routes, lb.Routes); diff != "" {
		t.Errorf("routes (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff([]string{"lb-1", "lb-2"}, topology.Frontends); diff != "" ||
		topology.Knobs["lb.sticky"] != "true" {
		t.Errorf("frontends %v, sticky %s", topology.Frontends, topology.Knobs["lb.sticky"])
	}
}

// Behind a layer 4 balancer the web hosts count the requests, because the balancer sees
// only connections.
func TestCountersAtLayer4(t *testing.T) {
	topology, err := ladder.Build(sut.LB, sut.Knobs{"lb.layer": "l4", "web.hosts": "2"}, 0.1)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"web-1", "web-2"}, topology.Counters); diff != "" ||
		topology.Knobs["lb.sticky"] != "false" {
		t.Errorf("counters %v, sticky %s", topology.Counters, topology.Knobs["lb.sticky"])
	}
}

// Autoscaling needs a balancer, and what it may do also binds an operator.
func TestAutoscaledWebTier(t *testing.T) {
	knobs := sut.Knobs{"web.autoscale": "in_flight", "web.autoscale_min": "2", "web.autoscale_max": "4"}
	if _, err := ladder.Build(sut.DBSplit, knobs, 0.1); err == nil ||
		!strings.Contains(err.Error(), "web.autoscale=in_flight needs a balancer, and stage db-split has none") {
		t.Errorf("stage db-split: error %v", err)
	}
	now, err := ladder.Build(sut.LB, knobs, 0.1)
	if err != nil {
		t.Fatal(err)
	}
	for hosts := 1; hosts <= 5; hosts++ {
		next, _, err := ladder.Scale(now, "web", hosts)
		within := hosts >= 2 && hosts <= 4
		if (err == nil) != within || within && ladder.WebOf(next.Knobs).Hosts != hosts {
			t.Errorf("%d hosts: error %v", hosts, err)
		}
		if err != nil && !strings.Contains(err.Error(), "web.autoscale keeps web.hosts from 2 to 4") {
			t.Errorf("%d hosts: error %v", hosts, err)
		}
	}
}
