package app_test

import (
	"testing"

	"go.uber.org/goleak"
)

// Nothing that a request starts may outlive it.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
