package store_test

import (
	"testing"

	"github.com/stagebench/stagebench/sut/store/storetest"
)

func TestPostgres(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) *storetest.Store {
		return storetest.Open(t, startPostgres(t).Address())
	})
}

func TestPostgresFaults(t *testing.T) {
	t.Parallel()
	storetest.Faults(t, startPostgres(t))
}
