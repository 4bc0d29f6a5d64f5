//go:build !race

package main

// raceDetector says whether the nodes of these tests are slowed down by it.
const raceDetector = false
