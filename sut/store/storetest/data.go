package storetest

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
	"sync/atomic"

	"github.com/stagebench/stagebench/sut/photos"
)

// data is a small data set with cases that are easy to get wrong: photos of the same
// microsecond, users without photos, users without followers, and more rows than one
// statement of a bulk load inserts.
type data struct {
	users    []photos.User
	photos   []photos.Photo
	comments []photos.Comment
	follows  []photos.Follow
}

const (
	testUsers     = 120
	photosPerUser = 3
)

func newData() *data {
	d := &data{}
	for i := range testUsers {
		d.users = append(d.users, photos.User{
			ID: photos.ID(i + 1), Login: fmt.Sprintf("user-%d", i+1), Name: fmt.Sprintf("Üser %d", i+1),
			Password: "salt$digest", CreatedUS: int64(1_700_000_000_000_000 + i), Version: 1,
		})
	}
	for i := range testUsers * photosPerUser {
		user := &d.users[i%(testUsers-10)] // the last ten users have no photos
		user.Photos++
		d.photos = append(d.photos, photos.Photo{
			ID: photoID(i+1, user.ID), UserID: user.ID, Title: fmt.Sprintf("photo %d", i+1), State: photos.StateReady,
			Width: 160, Height: 120, Bytes: int64(5000 + i), CreatedUS: int64(1_700_000_100_000_000 + i/4), Version: 1,
			DoneUS: int64(1_700_000_100_000_000 + i),
		})
	}
	for i := range 170 {
		photo := &d.photos[i%50]
		photo.Comments++
		photo.Version++
		d.comments = append(d.comments, photos.Comment{
			ID: photoID(i+1, photo.UserID), PhotoID: photo.ID, UserID: photos.ID(i%testUsers + 1),
			Text: fmt.Sprintf("comment %d", i+1), CreatedUS: int64(1_700_000_200_000_000 + i),
		})
	}
	for follower := range 60 {
		for step := range 1 + follower%9 {
			d.follow(follower+1, (follower+7*step+1)%testUsers+1)
		}
	}
	return d
}

func (d *data) follow(follower, followee int) {
	d.users[follower-1].Following++
	d.users[followee-1].Followers++
	d.follows = append(d.follows, photos.Follow{
		Follower: photos.ID(follower), Followee: photos.ID(followee),
		CreatedUS: int64(1_700_000_300_000_000 + len(d.follows)),
	})
}

// Users, Photos, Comments and Follows implement store.Data.
func (d *data) Users() iter.Seq[photos.User]       { return slices.Values(d.users) }
func (d *data) Photos() iter.Seq[photos.Photo]     { return slices.Values(d.photos) }
func (d *data) Comments() iter.Seq[photos.Comment] { return slices.Values(d.comments) }
func (d *data) Follows() iter.Seq[photos.Follow]   { return slices.Values(d.follows) }

// newestFirst is the model of a feed: the photos for which keep is true, newest first.
// Photos of the same microsecond are in descending order of id.
func newestFirst(all []photos.Photo, limit int, keep func(photos.Photo) bool) []photos.Photo {
	var list []photos.Photo
	for _, p := range all {
		if keep(p) {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b photos.Photo) int {
		return cmp.Or(cmp.Compare(b.CreatedUS, a.CreatedUS), cmp.Compare(b.ID, a.ID))
	})
	if limit = max(0, min(limit, len(list))); limit == 0 {
		return nil
	}
	return list[:limit]
}

// photoID returns an id of a photo of a user, or of a comment on one. It has the bucket of the user. Ids grow with n.
func photoID(n int, owner photos.ID) photos.ID {
	return photos.ID(n)<<22 | photos.ID(photos.BucketOf(owner))<<12
}

// ids generates ids that no loaded record has.
type ids struct{ last atomic.Int64 }

// next returns an id for a comment. Its bucket has no meaning.
func (i *ids) next() photos.ID { return photos.ID(1<<40 + i.last.Add(1)) }

// photo returns an id for a photo of a user.
func (i *ids) photo(owner photos.ID) photos.ID { return photoID(int(1<<19+i.last.Add(1)), owner) }
