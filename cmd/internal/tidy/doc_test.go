// Package tidy checks the code rules of this repository in tests: which package may import
// which, names of packages, sizes of functions and files, global state, dependencies.
//
// It contains tests only. It parses the repository; it runs, builds and changes nothing. Each
// rule is data with a reason, in the file of its check. Each check is a function of a parsed
// tree, so TestChecks can show on small trees that it finds violations. An exception to a rule
// is data with a reason, too. An exception that is no longer needed fails the test, so the
// number of exceptions can only fall.
package tidy
