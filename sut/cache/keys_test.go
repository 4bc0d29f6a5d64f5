package cache_test

import (
	"math"
	"strings"
	"testing"

	"github.com/stagebench/stagebench/sut/cache"
)

func TestKeys(t *testing.T) {
	t.Parallel()
	for text, key := range map[string]cache.Key{
		"photo:1":                    cache.PhotoKey(1),
		"photo:9223372036854775807":  cache.PhotoKey(math.MaxInt64),
		"photo:-9223372036854775808": cache.PhotoKey(math.MinInt64),
		"user:7":                     cache.UserKey(7),
		"feed:7:20":                  {Kind: cache.Feed, ID: 7, Limit: 20},
		"newest:20":                  {Kind: cache.Newest, Limit: 20},
	} {
		if got := key.String(); got != text {
			t.Errorf("String of %+v: got %q, want %q", key, got, text)
		}
		if got, err := cache.ParseKey(text); err != nil || got != key {
			t.Errorf("ParseKey of %q: got %+v, %v, want %+v", text, got, err, key)
		}
	}
	for _, text := range []string{
		"", ":", "photo", "photo:", "photo:1:2", "photo:01", "photo:+1", "photo: 1", "photo:1 ",
		"photo:9223372036854775808", "photo:0x1", "Photo:1", "feed:1", "feed:1:2:3", "feed::20",
		"newest", "newest:1:2", "comment:1", "1", "photo:1\n", strings.Repeat("photo:", 100_000),
	} {
		if key, err := cache.ParseKey(text); err == nil {
			t.Errorf("ParseKey accepted %.40q as %+v", text, key)
		} else if len(err.Error()) > 1000 {
			t.Errorf("ParseKey of %.40q: the error has %d bytes, want at most 1,000", text, len(err.Error()))
		}
	}
}

// FuzzParseKey: each key has only one text.
func FuzzParseKey(f *testing.F) {
	for _, text := range []string{"photo:1", "user:-2", "feed:3:20", "newest:20", "photo:01", "feed::", "\xff:1"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if key, err := cache.ParseKey(text); err == nil && key.String() != text {
			t.Errorf("ParseKey accepted %q as %+v, whose text is %q", text, key, key)
		}
	})
}
