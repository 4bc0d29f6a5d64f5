package preset

import (
	"errors"
	"fmt"
	"math"
	"sort"

	"github.com/stagebench/stagebench/workloads"
)

// owner is a virtual user who owns photos.
type owner struct {
	user    int       // virtual user
	photos  []uint64  // ids, the most popular first
	weights []float64 // cumulative popularity of photos[0] to photos[i]
}

// findOwners returns the virtual users who own photos. It adds the photos of each in
// the order of their popularity.
func findOwners(w *service, photos int, ownerOf func(photo int) int) ([]owner, error) {
	byRank, ranked := w.photos.(ranking)
	if !ranked {
		return nil, errors.New("renames follow the popularity of photos: want photos with an order of popularity")
	}
	virtual := make(map[int]int, w.virtual) // user id -> virtual user
	for v := range w.virtual {
		virtual[w.userID(v)] = v
	}
	all := make([]owner, w.virtual)
	for rank := range photos {
		photo := 1 + byRank.KeyOfRank(rank)
		user := ownerOf(photo)
		if user < 1 || user > w.users {
			return nil, fmt.Errorf("the owner of photo %d is user %d: want 1 to %d", photo, user, w.users)
		}
		if v, found := virtual[user]; found {
			all[v].add(w.photoID(photo), math.Pow(float64(rank+1), -theta))
		}
	}
	var owners []owner
	for v, o := range all {
		if len(o.photos) > 0 {
			o.user = v
			owners = append(owners, o)
		}
	}
	if owners == nil {
		return nil, errors.New("no virtual user owns a photo, so renames are not possible: want more users or photos")
	}
	return owners, nil
}

func (o *owner) add(photo uint64, weight float64) {
	if len(o.weights) > 0 {
		weight += o.weights[len(o.weights)-1]
	}
	o.photos = append(o.photos, photo)
	o.weights = append(o.weights, weight)
}

// photo picks one of the owner's photos by popularity. So renames change the photos
// that are read most.
func (o *owner) photo(t turn) uint64 {
	x := workloads.Unit(t.draw(streamKey)) * o.weights[len(o.weights)-1]
	i := sort.SearchFloat64s(o.weights, x)
	return o.photos[min(i, len(o.photos)-1)]
}
