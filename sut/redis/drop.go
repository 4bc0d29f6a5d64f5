package redis

import (
	"context"
	"fmt"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// scanned is how many keys are looked at in one round trip, about.
const scanned = 1000

// Drop removes the keys that drop says yes to, of those that are there when it begins,
// and returns how many there were.
func (s *Server) Drop(ctx context.Context, drop func(key string) bool) (dropped int, err error) {
	client := redis.NewClient(&redis.Options{
		Addr: s.Address(), Protocol: 2, DisableIdentity: true, ContextTimeoutEnabled: true, PoolSize: 1,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
	defer func() { _ = client.Close() }() // all that was wanted is done
	for cursor := uint64(0); ; {
		var keys, moved []string
		if keys, cursor, err = client.Scan(ctx, cursor, "", scanned).Result(); err != nil {
			return dropped, fmt.Errorf("redis: SCAN: %w", err)
		}
		for _, key := range keys {
			if drop(key) {
				moved = append(moved, key)
			}
		}
		if len(moved) > 0 {
			n, err := client.Del(ctx, moved...).Result()
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
