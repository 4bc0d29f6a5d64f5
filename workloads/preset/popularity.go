package preset

import (
	"errors"
	"fmt"
	"slices"

	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/keys"
)

// popularity is the way in which the ops of a workload pick photos.
type popularity int

const (
	// scattered is zipfian, and the popular photos are spread over all ids.
	scattered popularity = iota
	// newest is zipfian, and newer photos are more popular. The newest photo is the last seeded one: an op must not
	// depend on the answers to other ops, so no op knows the id of a photo that the workload has uploaded.
	newest
	// hotUsers sends celebrityShare of the ops to the photos of Params.Celebrities, and the rest to all other photos.
	// Within both groups, all photos are equally likely.
	hotUsers
)

// theta is the zipfian exponent of the popularity of photos, the one of YCSB.
const theta = 0.99

// celebrityShare is the share of the ops for photos that go to the photos of celebrities.
const celebrityShare = 0.7

// picker converts random bits to a photo. A key is the index of the photo - 1.
type picker interface {
	Key(random uint64) int
}

// ranking is a picker whose photos have an order of popularity, with the exponent theta.
type ranking interface {
	picker
	KeyOfRank(rank int) int // rank 0 is the most popular photo
}

// newPicker returns the picker of a popularity.
func newPicker(by popularity, p Params) (picker, error) {
	ranks, err := keys.NewZipfian(p.Photos, theta)
	if err != nil {
		return nil, fmt.Errorf("photos: %w", err)
	}
	switch by {
	case scattered:
		return keys.NewScrambled(ranks, workloads.Draw(p.Seed, 0, streamOrder)), nil
	case newest:
		return keys.NewLatest(ranks), nil
	case hotUsers:
		return newCelebrityPhotos(p)
	}
	return nil, fmt.Errorf("no popularity %d", by)
}

// celebrityPhotos picks photos by hotUsers.
type celebrityPhotos struct {
	places keys.Hotspot
	photos []int // by place: index of the photo - 1; those of celebrities first
}

func newCelebrityPhotos(p Params) (*celebrityPhotos, error) {
	if len(p.Celebrities) == 0 {
		return nil, errors.New("no celebrities: want a data set with more users")
	}
	var hot, others []int
	for key := range p.Photos {
		if slices.Contains(p.Celebrities, p.Owner(key+1)) {
			hot = append(hot, key)
		} else {
			others = append(others, key)
		}
	}
	if len(hot) == 0 {
		return nil, fmt.Errorf("celebrities %v own no photo: want users with photos", p.Celebrities)
	}
	places, err := keys.NewHotspot(p.Photos, len(hot), celebrityShare)
	if err != nil {
		return nil, fmt.Errorf("photos: %w", err)
	}
	return &celebrityPhotos{places, append(hot, others...)}, nil
}

// Key converts random bits to a photo.
func (c *celebrityPhotos) Key(random uint64) int { return c.photos[c.places.Key(random)] }
