package vegeta_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/stagebench/stagebench/workloads/driver/drivertest"
	"github.com/stagebench/stagebench/workloads/driver/vegeta"
)

func TestMain(m *testing.M) {
	if endpoint := os.Getenv(benchVariable); endpoint != "" {
		if err := sendForBench(endpoint); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	drivertest.Main(m, vegeta.Driver{})
}

func TestConformance(t *testing.T) { drivertest.Run(t, vegeta.Driver{}) }
