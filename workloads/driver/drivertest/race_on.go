//go:build race

package drivertest

// raceDetector reports that the test binary was built with the race detector.
const raceDetector = true
