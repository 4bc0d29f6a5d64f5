package sut_test

import (
	"strings"
	"testing"

	"github.com/stagebench/stagebench/sut"
)

func TestBalancing(t *testing.T) {
	t.Parallel()
	peer := sut.Peer{Node: "web-1", Address: "127.0.0.1:80"}
	good := sut.Balancing{Node: "lb-1", Upstreams: sut.Upstreams{Peers: []sut.Peer{peer}}}
	if err := good.Complete().Validate(); err != nil {
		t.Fatal(err)
	}
	peers := func(list ...sut.Peer) func(*sut.Balancing) { return func(c *sut.Balancing) { c.Peers = list } }
	for name, test := range map[string]struct {
		change func(*sut.Balancing)
		want   string
	}{
		"no node":          {func(c *sut.Balancing) { c.Node = "" }, "node name"},
		"odd node":         {func(c *sut.Balancing) { c.Node = "lb 1" }, `node name "lb 1"`},
		"no upstreams":     {peers(), "no upstreams"},
		"odd upstream":     {peers(sut.Peer{Node: "web;1", Address: "127.0.0.1:80"}), "upstream name"},
		"same twice":       {peers(good.Peers[0], good.Peers[0]), "listed twice"},
		"no port":          {peers(sut.Peer{Node: "web-1", Address: "127.0.0.1"}), "want IP:port"},
		"port 0":           {peers(sut.Peer{Node: "web-1", Address: "127.0.0.1:0"}), "want IP:port"},
		"name for address": {peers(sut.Peer{Node: "web-1", Address: "example.org:80"}), "want IP:port"},
		"injection":        {peers(sut.Peer{Node: "web-1", Address: "127.0.0.1:80\nglobal"}), "want IP:port"},
		"policy": {
			func(c *sut.Balancing) { c.Policy = "random" },
			"want one of ip_hash, least_conn, least_response_time, round_robin, weighted_round_robin",
		},
		"interval": {func(c *sut.Balancing) { c.HealthInterval = -1 }, "health interval"},
	} {
		cfg := good
		test.change(&cfg)
		if err := cfg.Complete().Validate(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want one about %q", name, err, test.want)
		}
	}
}
