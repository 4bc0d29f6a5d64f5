// Package preset holds the built-in workloads, by name.
//
// They send the requests of users of the photo service, in fixed shares. The
// workloads never change, so that results of different versions stay comparable.
// FromTrace replays the access log of any site against the photo service. Users
// are picked uniformly. The popularity of photos is zipfian (theta 0.99, popular
// photos are spread over all ids), but not in ycsb-d, where newer photos are more popular, and
// not in celebrity: there, 70 % of the ops that read, like or comment a photo go to the photos of a few users.
//
// The package sends nothing and does not know how the data set was generated.
// Params has all that it needs: the numbers of users and photos, the ids and
// owners of photos, and the credentials of users. A workload is a pure function of
// (Params, n), is safe for concurrent use and implements workloads.Login.
package preset

import (
	"errors"
	"fmt"
	"strings"

	"github.com/stagebench/stagebench/workloads"
)

// The classes of the ops.
const (
	Page    workloads.Class = "page"
	Feed    workloads.Class = "feed"
	Photo   workloads.Class = "photo"
	Image   workloads.Class = "image"
	User    workloads.Class = "user"
	Me      workloads.Class = "me"
	Asset   workloads.Class = "asset"
	Like    workloads.Class = "like"
	Comment workloads.Class = "comment"
	Rename  workloads.Class = "rename"
	Upload  workloads.Class = "upload"
	Follow  workloads.Class = "follow"
	Login   workloads.Class = "login" // only journeys have it in their mix: the driver logs in a user when necessary
	Logout  workloads.Class = "logout"
)

// Params describe the data set of a workload.
type Params struct {
	Seed   uint64
	Users  int // number of seeded users, with the ids 1..Users; at least 2
	Photos int // number of seeded photos, with the indexes 1..Photos; at least 1

	Login   func(user int) (login, password string) // credentials of a seeded user, by id
	PhotoID func(photo int) uint64                  // id of a seeded photo, by index
	Owner   func(photo int) (user int)              // owner of a seeded photo, by index: only the owner may rename
	Uploads [][]byte                                // JPEGs to upload, picked at random; never modified

	// Celebrities are the users who own the hot photos of workload celebrity, by id. The others do not use it.
	Celebrities []int

	ImageVersion int // version in the URLs of images, as in those that pages link; at least 1
}

// maxVirtualUsers is the maximum number of seeded users that send ops. Each has a
// session. 256 users give every web host many sessions, and log in within a second.
const maxVirtualUsers = 256

// validate returns an error when a parameter is missing or out of range.
func (p Params) validate() error {
	switch {
	case p.Users < 2:
		return fmt.Errorf("%d users: want at least 2, because users follow each other", p.Users)
	case p.Photos < 1:
		return fmt.Errorf("%d photos: want at least 1", p.Photos)
	case p.Login == nil || p.PhotoID == nil || p.Owner == nil:
		return errors.New("no Login, no PhotoID or no Owner: want all of them")
	case p.ImageVersion < 1:
		return fmt.Errorf("image version %d: want at least 1", p.ImageVersion)
	case len(p.Uploads) == 0:
		return errors.New("no JPEGs to upload: want at least one")
	}
	for i, jpeg := range p.Uploads {
		if len(jpeg) == 0 {
			return fmt.Errorf("upload %d is empty: want a JPEG", i)
		}
	}
	return nil
}

// Shipped is a built-in workload.
type Shipped struct {
	Name       string
	Doc        string // description in one line
	Mix        workloads.Mix
	photos     popularity // how ops pick photos
	uploadRate float64    // bytes per second of an upload; 0 = no limit
	journeys   bool       // the ops come in journeys
}

// slowUploadRate is the rate of the uploads of slow-upload, in bytes per second. An
// upload of the default size takes about eight seconds.
const slowUploadRate = 700

// Catalogue lists the built-in workloads in display order.
func Catalogue() []Shipped {
	return append([]Shipped{
		{
			Name: "read-heavy",
			Doc:  "95 % reads: feeds, photos and images; few likes and uploads",
			Mix: workloads.Mix{
				{Class: Feed, Percent: 30},
				{Class: Photo, Percent: 25},
				{Class: Image, Percent: 29},
				{Class: User, Percent: 5},
				{Class: Me, Percent: 5},
				{Class: Page, Percent: 1},
				{Class: Like, Percent: 3},
				{Class: Comment, Percent: 1.4},
				{Class: Upload, Percent: 0.1},
				{Class: Follow, Percent: 0.5},
			},
		},
		{
			Name: "write-heavy",
			Doc:  "50 % writes: mostly likes and comments, and also renames, follows and uploads",
			Mix: workloads.Mix{
				{Class: Feed, Percent: 15},
				{Class: Photo, Percent: 15},
				{Class: Image, Percent: 15},
				{Class: Me, Percent: 5},
				{Class: Like, Percent: 24},
				{Class: Comment, Percent: 19},
				{Class: Rename, Percent: 3},
				{Class: Upload, Percent: 1},
				{Class: Follow, Percent: 3},
			},
		},
		slowUpload(),
		uploadHeavy(),
		{
			Name: "static-heavy",
			Doc:  "88 % static content: images and some assets, with pages and a few reads of the API; no writes",
			Mix: workloads.Mix{
				{Class: Image, Percent: 80},
				{Class: Asset, Percent: 8},
				{Class: Page, Percent: 2},
				{Class: Feed, Percent: 4},
				{Class: Photo, Percent: 4},
				{Class: Me, Percent: 2},
			},
		},
		sessionHeavy(),
		celebrity(),
	}, ycsb()...)
}

func slowUpload() Shipped {
	return Shipped{
		Name: "slow-upload",
		Doc: "80 % reads as in read-heavy, and uploads over slow lines (700 bytes/s): " +
			"each occupies a connection for about 8 s",
		Mix: workloads.Mix{
			{Class: Feed, Percent: 25},
			{Class: Photo, Percent: 21},
			{Class: Image, Percent: 24},
			{Class: User, Percent: 4.5},
			{Class: Me, Percent: 4.5},
			{Class: Page, Percent: 1},
			{Class: Upload, Percent: 20},
		},
		uploadRate: slowUploadRate,
	}
}

func uploadHeavy() Shipped {
	return Shipped{
		Name: "upload-heavy",
		Doc:  "20 % uploads, whose processing takes most of the CPU, with feeds, photos and images",
		Mix: workloads.Mix{
			{Class: Feed, Percent: 20},
			{Class: Photo, Percent: 20},
			{Class: Image, Percent: 25},
			{Class: User, Percent: 5},
			{Class: Me, Percent: 5},
			{Class: Like, Percent: 5},
			{Class: Upload, Percent: 20},
		},
	}
}

// sessionHeavy has the shares of journeys: those of logins and logouts are the ones of a block.
func sessionHeavy() Shipped {
	return Shipped{
		Name: "session-heavy",
		Doc: "journeys of users: log in or continue, about 10 requests with think times of 1 s on average, " +
			"sometimes log out",
		Mix: workloads.Mix{
			{Class: Feed, Percent: 24},
			{Class: Photo, Percent: 20},
			{Class: Image, Percent: 22},
			{Class: Me, Percent: 12},
			{Class: User, Percent: 3},
			{Class: Like, Percent: 7},
			{Class: Comment, Percent: 3.5},
			{Class: Follow, Percent: 1},
			{Class: Login, Percent: 5},
			{Class: Logout, Percent: 2.5},
		},
		journeys: true,
	}
}

// celebrity has nearly the shares of write-heavy. 45 of the 50 % writes are likes and comments. 70 % of these go to the
// photos of celebrities: 63 % of all writes. If all celebrities are on one of four shards, and the other writes are
// spread evenly, this shard gets 63 + 37/4 = 72 % of the writes, 2.9 times the mean. With each celebrity on a shard of
// its own, every shard gets the mean. There are no renames: only owners rename, and few of the virtual users are
// celebrities.
func celebrity() Shipped {
	return Shipped{
		Name: "celebrity",
		Doc: "50 % writes, mostly likes and comments: 70 % of them, and of the reads of photos and images, " +
			"are for photos of four users, who are on one shard with shard.by=modulo",
		Mix: workloads.Mix{
			{Class: Feed, Percent: 15},
			{Class: Photo, Percent: 15},
			{Class: Image, Percent: 15},
			{Class: Me, Percent: 5},
			{Class: Like, Percent: 25},
			{Class: Comment, Percent: 20},
			{Class: Upload, Percent: 1},
			{Class: Follow, Percent: 4},
		},
		photos: hotUsers,
	}
}

// New returns the workload of that name. For a workload with renames or celebrities it
// calls Owner for each photo, which takes time in proportion to Photos.
func New(name string, p Params) (workloads.Workload, error) {
	var names []string
	for _, s := range Catalogue() {
		if s.Name != name {
			names = append(names, s.Name)
			continue
		}
		var w workloads.Workload
		var err error
		if s.journeys {
			w, err = newJourneys(s, p, maxVirtualUsers)
		} else {
			w, err = newService(s, p, maxVirtualUsers)
		}
		if err != nil {
			return nil, fmt.Errorf("workload %s: %w", name, err)
		}
		return w, nil
	}
	return nil, fmt.Errorf("unknown workload %q: want one of %s", name, strings.Join(names, ", "))
}
