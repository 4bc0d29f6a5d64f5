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

// Command is one command of RESP: how many arguments it has, its name left out, and
// what it answers: nil for nothing, []byte, int64, true for OK, an error, or []any of
// those.
type Command struct {
	MinArgs, MaxArgs int
	Run              func(args [][]byte) any
}

// Commands lists what a front answers, by name: GET, SET and DEL as Redis has them, for
// look-aside, and the two that have it load and write.
func (f *Proxy) Commands() map[string]Command {
	return map[string]Command{
		"get": f.command(1, 1, func(ctx context.Context, args []string) (any, error) {
			value, found, err := f.Get(ctx, args[0])
			if err != nil || !found {
				return nil, err
			}
			return value, nil
		}),
		"set": f.command(2, 4, f.set),
		"del": f.command(1, 1, func(ctx context.Context, args []string) (any, error) {
			return int64(1), f.Delete(ctx, args[0])
		}),
		cache.FetchCommand: f.command(1, 1, func(ctx context.Context, args []string) (any, error) {
			value, hit, err := f.Fetch(ctx, args[0])
			if err != nil {
				return nil, err
			}
			return []any{truth(hit), value}, nil
		}),
		cache.ApplyCommand: f.command(2, 2, f.apply),
	}
}

func truth(yes bool) int64 {
	if yes {
		return 1
	}
	return 0
}

// command bounds a command in time, and answers what it says.
func (f *Proxy) command(least, most int, run func(ctx context.Context, args []string) (any, error)) Command {
	return Command{MinArgs: least, MaxArgs: most, Run: func(args [][]byte) any {
		ctx, cancel := context.WithTimeout(context.Background(), f.config.Timeout)
		defer cancel()
		texts := make([]string, len(args))
		for i, arg := range args {
			texts[i] = string(arg)
		}
		value, err := run(ctx, texts)
		if err != nil {
			return cache.Refuse(err)
		}
		return value
	}}
}

// set is SET key value PX milliseconds.
func (f *Proxy) set(ctx context.Context, args []string) (any, error) {
	ttl := f.config.TTL
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
	return true, f.Set(ctx, args[0], []byte(args[1]), ttl)
}

// apply is APPLY key write.
func (f *Proxy) apply(ctx context.Context, args []string) (any, error) {
	var w cache.Write
	text := json.NewDecoder(bytes.NewReader([]byte(args[1])))
	text.DisallowUnknownFields()
	if err := text.Decode(&w); err != nil {
		return nil, fmt.Errorf("write: %w", err)
	}
	if _, err := text.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("write: something comes after it")
	}
	return f.Apply(ctx, args[0], w)
}
