//go:build race

package capacity_test

// raceEnabled says that the race detector is on. It makes single-threaded arithmetic ten times slower and finds nothing
// in it.
const raceEnabled = true
