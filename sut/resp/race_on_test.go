//go:build race

package resp

// raced says that the race detector is on, which makes arithmetic in one goroutine
// take ten times as long, and finds nothing in it.
const raced = true
