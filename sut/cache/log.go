package cache

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/redis/go-redis/v9"
)

// LogTo sends the log lines of the Redis client library to a log. Without it the
// library writes plain text to standard error. The setting is global to the process:
// call it once, before the first client is created.
func LogTo(log *slog.Logger) { redis.SetLogger(libraryLogger{log}) }

// libraryLogger implements the library's logger interface.
type libraryLogger struct{ log *slog.Logger }

// Printf logs at debug level, because callers also get the same errors as return
// values.
func (l libraryLogger) Printf(ctx context.Context, format string, values ...any) {
	l.log.DebugContext(ctx, fmt.Sprintf(format, values...), "source", "go-redis")
}
