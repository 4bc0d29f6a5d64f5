package sqlite

import (
	"github.com/stagebench/stagebench/sut/sqlite/engine"
	"github.com/stagebench/stagebench/sut/sqlite/wire"
)

// Types of other packages that the tests use.
type (
	EngineConfig = engine.Config
	WireConfig   = wire.Config
)

// Adjust returns c with other limits than those that New sets.
func (c Config) Adjust(limits func(*EngineConfig, *WireConfig)) Config {
	c.adjust = limits
	return c
}

// Synchronous returns c with SQLite's pragma synchronous: full, or normal, which does not wait for the disk.
func (c Config) Synchronous(pragma string) Config {
	return c.Adjust(func(e *EngineConfig, _ *WireConfig) { e.Synchronous = pragma })
}
