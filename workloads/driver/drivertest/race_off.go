//go:build !race

package drivertest

// raceDetector says that the test binary was built with the race detector.
const raceDetector = false
