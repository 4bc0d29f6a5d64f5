//go:build !race

package gate_test

// gates is the number of simulated gates.
const gates = 3000
