package process

import (
	"slices"
	"testing"
)

func TestNodeVariables(t *testing.T) {
	t.Parallel()
	got := nodeVariables([]string{"PATH=/bin", "STAGEBENCH_GROUP=/tree/db-1", "HOME=/root", "NOT_STAGEBENCH_=1"})
	if !slices.Equal(got, []string{"STAGEBENCH_GROUP=/tree/db-1"}) {
		t.Errorf("got %v", got)
	}
}
