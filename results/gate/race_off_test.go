//go:build !race

package gate_test

const (
	gates = 3000 // simulated gates
	slack = 0    // of the shares of their verdicts
)
