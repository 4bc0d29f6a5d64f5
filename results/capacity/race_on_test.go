//go:build race

package capacity_test

// raceEnabled says that the race detector is on. It makes single-threaded arithmetic ten
// times slower, and cannot find anything there.
const raceEnabled = true
