package haproxy_test

import (
	"testing"

	"github.com/stagebench/stagebench/internal/servertest"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/balance/balancetest"
)

// BenchmarkHAProxy measures both layers. BenchmarkBalancer in sut/balance does the same.
func BenchmarkHAProxy(b *testing.B) {
	upstreams := balancetest.BenchHosts(b)
	for _, layer := range []string{sut.Layer7, sut.Layer4} {
		b.Run(layer, func(b *testing.B) {
			h := newHAProxy(b, haproxyInstalled(b), balancetest.BenchConfig(layer, upstreams))
			balancetest.Bench(b, h.Address(), servertest.Start(b, h, h.HandleLogLine).PID())
		})
	}
}
