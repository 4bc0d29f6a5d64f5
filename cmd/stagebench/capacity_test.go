package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stagebench/stagebench/cmd/internal/exit"
)

// The capacity of a fast service lies above the highest rate, and a service that is not there has none.
func TestCapacityOfAnyService(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(server.Close)
	stdout, stderr, status := commandOutput(t, "capacity", server.URL, "--quick", "--max", "100", "--verbose")
	if status != exit.Done && status != exit.Invalid || !strings.Contains(stdout, "target  get") ||
		!strings.Contains(stderr, "capacity 100 rps") || !strings.Contains(stderr, "The run is in runs/") {
		t.Errorf("exit status %d\n%s%s", status, stdout, stderr)
	}
	server.Close()
	_, stderr, status = commandOutput(t, "capacity", server.URL, "--quick")
	if status != exit.Missed || !strings.Contains(stderr, "nothing succeeded: connection refused") {
		t.Errorf("exit status %d, want %d\n%s", status, exit.Missed, stderr)
	}
	for _, args := range [][]string{
		{"--max", "-5"}, {"--min", "nan"}, {"--quick", "--full"}, {"--min", "10", "--max", "5"},
	} {
		_, stderr, status = commandOutput(t, append([]string{"capacity", server.URL}, args...)...)
		if status != exit.WrongUsage {
			t.Errorf("%v: exit status %d, want %d\n%s", args, status, exit.WrongUsage, stderr)
		}
	}
}
