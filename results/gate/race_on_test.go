//go:build race

package gate_test

// The race detector is slow, so there are few simulated gates: chance moves the shares of their verdicts.
const (
	gates = 100
	slack = 0.04
)
