//go:build race

package gate_test

// gates is the number of simulated gates. The race detector is slow.
const gates = 100
