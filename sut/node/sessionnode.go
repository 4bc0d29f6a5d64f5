package node

import (
	"context"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/node/process"
	"github.com/stagebench/stagebench/sut/redis"
)

// keyMemory is the memory of a server of keys and values.
type keyMemory struct {
	bytes int64
	evict string // which entry is evicted when memory is full
}

// keyMemoryOf returns the memory of a cache host or of a session host. A session host evicts nothing: an evicted
// session would log its user out.
func keyMemoryOf(config sut.NodeConfig) keyMemory {
	if config.Role == sut.Session {
		return keyMemory{ladder.SessionOf(config.Knobs).Bytes(), redis.NoEviction}
	}
	s := ladder.CacheOf(config.Knobs)
	return keyMemory{s.Bytes(), s.Evict}
}

// sessionNode adds metrics and the operator endpoints to the component of a session host. It calls no other node.
func sessionNode(
	n process.Node, c process.Component, stats func(context.Context) (sut.CacheFigures, error),
) process.Component {
	n.Registry.MustRegister(newSessionCollector(stats))
	c.Operators = n.Operators()
	return c
}
