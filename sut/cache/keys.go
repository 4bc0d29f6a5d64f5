package cache

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/stagebench/stagebench/sut/photos"
)

// Key identifies a cached record or list.
type Key struct {
	Kind  Kind
	ID    photos.ID // of the photo or the user; 0 for the newest photos
	Limit int       // of a list: the maximum number of photos
}

// Kind is the kind of a cached record or list.
type Kind string

// The kinds of cached records and lists.
const (
	PhotoRecord Kind = "photo"
	UserRecord  Kind = "user"
	Feed        Kind = "feed"   // the newest photos of the users that a user follows
	Newest      Kind = "newest" // the newest photos of all users
)

// PhotoKey returns the key of a photo's record.
func PhotoKey(id photos.ID) Key { return Key{Kind: PhotoRecord, ID: id} }

// UserKey returns the key of a user's record.
func UserKey(id photos.ID) Key { return Key{Kind: UserRecord, ID: id} }

// String returns the key as it is sent to cache hosts.
func (k Key) String() string {
	switch k.Kind {
	case Feed:
		return string(Feed) + ":" + strconv.FormatInt(int64(k.ID), 10) + ":" + strconv.Itoa(k.Limit)
	case Newest:
		return string(Newest) + ":" + strconv.Itoa(k.Limit)
	}
	return string(k.Kind) + ":" + strconv.FormatInt(int64(k.ID), 10)
}

// ParseKey is the reverse of String. It accepts only texts that String can return.
func ParseKey(text string) (k Key, err error) {
	fields := strings.Split(text, ":")
	numbers := make([]int64, len(fields)-1)
	for i, field := range fields[1:] {
		if numbers[i], err = strconv.ParseInt(field, 10, 64); err != nil {
			return Key{}, fmt.Errorf("cache key %.100q: %w", text, err)
		}
	}
	k.Kind = Kind(fields[0])
	switch {
	case (k.Kind == PhotoRecord || k.Kind == UserRecord) && len(numbers) == 1:
		k.ID = photos.ID(numbers[0])
	case k.Kind == Feed && len(numbers) == 2:
		k.ID, k.Limit = photos.ID(numbers[0]), int(numbers[1])
	case k.Kind == Newest && len(numbers) == 1:
		k.Limit = int(numbers[0])
	default:
		return Key{}, fmt.Errorf("cache key %.100q: want photo:ID, user:ID, feed:USER:LIMIT or newest:LIMIT", text)
	}
	if k.String() != text {
		return Key{}, fmt.Errorf("cache key %.100q: want %s", text, k)
	}
	return k, nil
}
