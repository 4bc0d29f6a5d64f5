package edge

import "github.com/stagebench/stagebench/sut"

// Differences lists the cases of the kit edgetest that the embedded edge does not pass, with their reasons.
func Differences() []sut.Difference {
	return []sut.Difference{{
		Reason: "net/http removes the field Connection of a response that closes the connection, with the names in it",
		Cases:  []string{"headers-omit-headers-listed-in-Connection"},
	}}
}
