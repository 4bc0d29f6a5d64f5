package cacheproxy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/stagebench/stagebench/sut/cache"
)

// Command is one RESP command. The argument counts do not include the command's name.
type Command struct {
	MinArgs, MaxArgs int
	// Run returns the reply: nil for a null reply, []byte, int64, true for OK, an error,
	// or a list of these as []any.
	Run func(args [][]byte) any
}

// Commands returns the commands of the proxy by name. GET, SET and DEL are those of
// Redis, for look-aside clients. FETCH loads a record, and APPLY writes one.
func (p *Proxy) Commands() map[string]Command {
	return map[string]Command{
		"get": p.command(1, 1, func(ctx context.Context, args []string) (any, error) {
			value, found, err := p.Get(ctx, args[0])
			if err != nil || !found {
				return nil, err
			}
			return value, nil
		}),
		"set": p.command(2, 4, p.set),
		"del": p.command(1, 1, func(ctx context.Context, args []string) (any, error) {
			return int64(1), p.Delete(ctx, args[0])
		}),
		cache.FetchCommand: p.command(1, 1, func(ctx context.Context, args []string) (any, error) {
			value, hit, err := p.Fetch(ctx, args[0])
			if err != nil {
				return nil, err
			}
			return []any{toInt(hit), value}, nil
		}),
		cache.ApplyCommand: p.command(2, 2, p.apply),
	}
}

func toInt(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// command returns a command that runs with the timeout of the proxy and encodes its
// error.
func (p *Proxy) command(minArgs, maxArgs int, run func(ctx context.Context, args []string) (any, error)) Command {
	return Command{MinArgs: minArgs, MaxArgs: maxArgs, Run: func(args [][]byte) any {
		ctx, cancel := context.WithTimeout(context.Background(), p.config.Timeout)
		defer cancel()
		texts := make([]string, len(args))
		for i, arg := range args {
			texts[i] = string(arg)
		}
		value, err := run(ctx, texts)
		if err != nil {
			return cache.EncodeError(err)
		}
		return value
	}}
}

// set implements SET key value [PX milliseconds].
func (p *Proxy) set(ctx context.Context, args []string) (any, error) {
	ttl := p.config.TTL
	switch {
	case len(args) == 4 && strings.EqualFold(args[2], "px"):
		ms, err := strconv.ParseInt(args[3], 10, 32)
		if err != nil || ms <= 0 {
			return nil, fmt.Errorf("PX %.20q: want milliseconds, more than 0", args[3])
		}
		ttl = time.Duration(ms) * time.Millisecond
	case len(args) != 2:
		return nil, errors.New("want SET key value [PX milliseconds]")
	}
	if _, err := cache.ParseKey(args[0]); err != nil {
		return nil, err
	}
	return true, p.Set(ctx, args[0], []byte(args[1]), ttl)
}

// apply implements APPLY key write.
func (p *Proxy) apply(ctx context.Context, args []string) (any, error) {
	var w cache.Write
	decoder := json.NewDecoder(bytes.NewReader([]byte(args[1])))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&w); err != nil {
		return nil, fmt.Errorf("decode write: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("decode write: unexpected data after the JSON document")
	}
	return p.Apply(ctx, args[0], w)
}
