package redis

import (
	"context"
	"fmt"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// scanCount is the approximate number of keys that one SCAN visits.
const scanCount = 1000

// Drop deletes the keys for which drop returns true, and returns their number. It may
// miss keys that are added while it runs.
func (s *Server) Drop(ctx context.Context, drop func(key string) bool) (dropped int, err error) {
	client := redis.NewClient(&redis.Options{
		Addr: s.Address(), Password: string(s.cfg.Secret), Protocol: 2, DisableIdentity: true,
		ContextTimeoutEnabled: true, PoolSize: 1,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
	defer func() { _ = client.Close() }() // the results are complete without it
	for cursor := uint64(0); ; {
		var keys, matching []string
		if keys, cursor, err = client.Scan(ctx, cursor, "", scanCount).Result(); err != nil {
			return dropped, fmt.Errorf("redis: SCAN: %w", err)
		}
		for _, key := range keys {
			if drop(key) {
				matching = append(matching, key)
			}
		}
		if len(matching) > 0 {
			n, err := client.Del(ctx, matching...).Result()
			if err != nil {
				return dropped, fmt.Errorf("redis: DEL: %w", err)
			}
			dropped += int(n)
		}
		if cursor == 0 {
			return dropped, nil
		}
	}
}
