package cache

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/redis/go-redis/v9"
)

// LogTo has the client library write what it says of connections to a log instead
// of to standard error as plain text. It is for the whole process: whoever owns the
// process calls it before the first client is made.
func LogTo(log *slog.Logger) { redis.SetLogger(printed{log}) }

// printed is a log as the library sees it.
type printed struct{ log *slog.Logger }

// Printf implements the library's logger. What it reports, callers get as errors,
// too.
func (p printed) Printf(ctx context.Context, format string, values ...any) {
	p.log.DebugContext(ctx, fmt.Sprintf(format, values...), "source", "go-redis")
}
