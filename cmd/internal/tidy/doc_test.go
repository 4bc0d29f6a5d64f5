// Package tidy holds what this repository believes good code to be, as tests:
// which package may import which, what a package may be called, how long a
// function may be, where state may live, why each dependency is there.
//
// It is tests alone: it parses the repository and fails; it runs, builds and
// changes nothing. Every rule is data with its reason, in the file of its
// check, and every check is a function of a parsed tree, so that TestChecks can
// show that it finds what it is there to find. An exception is a line of data
// with its reason too; one that is no longer needed fails like a violation, so
// exceptions can only become fewer.
package tidy
