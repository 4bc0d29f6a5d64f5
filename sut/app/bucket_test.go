package app_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"testing"

	"github.com/stagebench/stagebench/sut/app"
	"github.com/stagebench/stagebench/sut/photos"
)

// An uploaded photo and all comments on it have the bucket of the photo's owner.
func TestIDsCarryTheBucketOfTheOwner(t *testing.T) {
	t.Parallel()
	const uploads, users = 10_000, 5_000 // package photos checks the ids of 100,000 users
	s := newService(t, func(c *app.Config) {
		c.Process = func([]byte) (photos.Variants, error) { return photos.Variants{Width: 1, Height: 1}, nil }
		c.Blobs, c.Log = noBlobs{}, slog.New(slog.DiscardHandler)
	})
	commenter := s.cookie
	var cookies []string
	for user := range photos.ID(users) {
		token, _, err := s.sessions.Start(t.Context(), user+1)
		if err != nil {
			t.Fatal(err)
		}
		cookies = append(cookies, app.SessionCookie+"="+token)
	}
	seen := map[photos.ID]bool{}
	for n := range uploads {
		owner := photos.ID(n%users + 1)
		s.cookie = cookies[owner-1]
		var made struct {
			Photo   photos.ID `json:"id"`
			Comment photos.ID `json:"comment_id"`
		}
		if w := s.do(uploadOf([]byte("a picture"))); w.Code != 201 || json.Unmarshal(w.Body.Bytes(), &made) != nil {
			t.Fatalf("upload: %d %s", w.Code, w.Body)
		}
		s.cookie = commenter
		w := s.do(request{method: "POST", path: fmt.Sprintf("/api/photos/%d/comments", made.Photo), body: `{"text": "x"}`})
		if w.Code != 201 || json.Unmarshal(w.Body.Bytes(), &made) != nil {
			t.Fatalf("comment: %d %s", w.Code, w.Body)
		}
		want := photos.BucketOf(owner)
		if made.Photo.Bucket() != want || made.Comment.Bucket() != want || seen[made.Photo] || seen[made.Comment] {
			t.Fatalf("photo %d, comment %d: buckets %d, %d, want bucket %d of user %d and new ids",
				made.Photo, made.Comment, made.Photo.Bucket(), made.Comment.Bucket(), want, owner)
		}
		seen[made.Photo], seen[made.Comment] = true, true
	}
}

// noBlobs accepts objects and stores nothing.
type noBlobs struct{ app.Blobs }

func (noBlobs) Put(context.Context, photos.ID, photos.Variant, []byte) error { return nil }
