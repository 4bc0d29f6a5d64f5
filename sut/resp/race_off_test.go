//go:build !race

package resp

// raced: see race_on_test.go.
const raced = false
