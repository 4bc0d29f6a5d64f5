//go:build !race

package main

// raceDetector reports whether the tests run under the race detector, which makes nodes
// slower.
const raceDetector = false
