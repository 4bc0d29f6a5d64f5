package preset

import (
	"strings"
	"testing"
)

// TestNewestPhotos checks the popularity of a workload in which new photos are the most popular ones, also for renames.
func TestNewestPhotos(t *testing.T) {
	p := smallParams()
	picker, err := newPicker(newest, p)
	if err != nil {
		t.Fatal(err)
	}
	counts := make([]int, p.Photos)
	for n := range uint64(10_000) {
		counts[picker.Key(turn{n: n}.draw(streamKey))]++
	}
	// The popularity of neighbours is 1, 1/2, 1/3, ...: far enough apart for 10,000 draws.
	for key := p.Photos - 1; key > p.Photos-4; key-- {
		if counts[key] <= counts[key-1] {
			t.Errorf("photo %d was picked %d times, and the one before it %d times", key+1, counts[key], counts[key-1])
		}
	}
	all := Catalogue()
	w, err := newService(Shipped{Name: "news", Mix: all[1].Mix, photos: newest}, p, 2)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range w.owners {
		for i := range o.photos[1:] {
			if o.photos[i] < o.photos[i+1] {
				t.Errorf("photos of an owner, the most popular first: %d, want the newest first", o.photos)
			}
		}
	}
}

// TestRenamesNeedARanking checks that a mix with renames is refused when photos have no order of popularity.
func TestRenamesNeedARanking(t *testing.T) {
	all := Catalogue()
	_, err := newService(Shipped{Name: "x", Mix: all[1].Mix, photos: hotUsers}, smallParams(), 2)
	if err == nil || !strings.Contains(err.Error(), "order of popularity") {
		t.Errorf("error %v, want one about the order of popularity", err)
	}
}

func smallParams() Params {
	return Params{
		Users: 2, Photos: 20, ImageVersion: 1, Celebrities: []int{1}, Uploads: [][]byte{{1}},
		Login:   func(int) (string, string) { return "", "" },
		PhotoID: func(photo int) uint64 { return uint64(photo) },
		Owner:   func(photo int) int { return 1 + photo%2 },
	}
}
