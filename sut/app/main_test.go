package app_test

import (
	"testing"

	"go.uber.org/goleak"
)

// No goroutine of a request may outlive it.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
