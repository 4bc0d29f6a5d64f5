//go:build !race

package capacity_test

// raceEnabled: see race_on_test.go.
const raceEnabled = false
