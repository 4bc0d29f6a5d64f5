//go:build long

package sqlite_test

// scale multiplies the rounds and transactions of the tests that kill nodes under load.
const scale = 4
