package failover_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stagebench/stagebench/targets/failover"
)

// superviseWith is supervise with or without synchronous copies.
func superviseWith(t *testing.T, sync bool, test func(*testing.T, *databases, *failover.Supervisor)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := newDatabases(t)
		s := failover.New(failover.Config{
			Databases: c, Roles: failover.Roles{Epoch: 1, Primary: "db-1", Replicas: []string{"db-2", "db-3"}},
			Interval: 200 * time.Millisecond, Failures: 3, Silence: 2 * time.Second, Sync: sync,
			OnEvent: func(node, text string) { t.Logf("%v %s %s", time.Now().Format("05.000"), node, text) },
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { s.Run(ctx); close(done) }()
		advance(time.Second)
		test(t, c, s)
		cancel()
		<-done
	})
}
