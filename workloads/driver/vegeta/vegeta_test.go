package vegeta_test

import (
	"testing"

	"github.com/stagebench/stagebench/workloads/driver/drivertest"
	"github.com/stagebench/stagebench/workloads/driver/vegeta"
)

func TestMain(m *testing.M) { drivertest.Main(m, vegeta.Driver{}) }

func TestConformance(t *testing.T) { drivertest.Run(t, vegeta.Driver{}) }
