package sqlite

import "github.com/stagebench/stagebench/sut/sqlite/wire"

// What a catalogue of statements is made of.
type (
	Type      = wire.Type
	Column    = wire.Column
	Statement = wire.Statement
)

// The types that a catalogue may use.
const (
	BigInt = wire.BigInt
	Int    = wire.Int
	Text   = wire.Text
)
