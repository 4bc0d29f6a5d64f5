// Package preset holds the workloads that we ship, by name.
//
// They ask the photo service for what its users ask for, in fixed shares, so
// that figures can be compared across versions of everything: read-heavy,
// write-heavy and slow-upload do not change. FromTrace replays an access log of
// any site against the service. Photos are picked zipfian (theta 0.99, hot ones
// spread over all ids), users uniformly.
//
// The package sends nothing and knows nothing of how the data set was made: it
// is told how many users and photos there are, which ids photos have, who owns
// which and how a user logs in. A workload is pure in (Params, n) and safe for concurrent use. It
// also implements workloads.Login.
package preset

import (
	"errors"
	"fmt"
	"strings"

	"github.com/stagebench/stagebench/workloads"
)

// The classes of op that the workloads here consist of.
const (
	Page    workloads.Class = "page"
	Feed    workloads.Class = "feed"
	Photo   workloads.Class = "photo"
	Image   workloads.Class = "image"
	User    workloads.Class = "user"
	Me      workloads.Class = "me"
	Like    workloads.Class = "like"
	Comment workloads.Class = "comment"
	Rename  workloads.Class = "rename"
	Upload  workloads.Class = "upload"
	Follow  workloads.Class = "follow"
	Login   workloads.Class = "login" // in no mix: the driver logs users in when they need it
)

// Params describe the data set that a workload is about.
type Params struct {
	Seed   uint64
	Users  int // seeded users, whose ids are 1..Users; at least 2
	Photos int // seeded photos, whose indexes are 1..Photos; at least 1

	Login   func(user int) (login, password string) // of a seeded user, by id
	PhotoID func(photo int) uint64                  // of a seeded photo, by index
	Owner   func(photo int) (user int)              // of a seeded photo, by index: only the owner may rename
	Uploads [][]byte                                // JPEGs to upload, in turns; never written to
}

// mostVirtual is of how many seeded users at most all ops are: each of them has a browser,
// and with it a session. It is enough for every web host to hold many sessions, and few
// enough to log in within a second.
const mostVirtual = 256

// validate says what is wrong with parameters.
func (p Params) validate() error {
	switch {
	case p.Users < 2:
		return fmt.Errorf("%d users: want at least 2, for one to follow another", p.Users)
	case p.Photos < 1:
		return fmt.Errorf("%d photos: want at least 1", p.Photos)
	case p.Login == nil || p.PhotoID == nil || p.Owner == nil:
		return errors.New("no Login, no PhotoID or no Owner: want all of them")
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

// Shipped is one workload as the catalogue has it.
type Shipped struct {
	Name string
	Doc  string // what it consists of, in one line
	Mix  workloads.Mix
	line float64 // of users who upload, in bytes per second; 0 = as fast as can be
}

// slowLine is how fast the users of slow-upload send, in bytes per second: a
// picture of the default size takes about eight seconds.
const slowLine = 700

// Catalogue lists the workloads in the order in which they are shown.
func Catalogue() []Shipped {
	return []Shipped{
		{
			Name: "read-heavy",
			Doc:  "95 % reads: feeds, photos and images, now and then a like or an upload",
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
			Doc:  "50 % writes: likes and comments above all, then renames, follows and uploads",
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
		{
			Name: "slow-upload",
			Doc:  "80 % reads in the proportions of read-heavy, and uploads over slow lines (700 bytes/s), each of which holds a connection for about 8 s",
			Mix: workloads.Mix{
				{Class: Feed, Percent: 25},
				{Class: Photo, Percent: 21},
				{Class: Image, Percent: 24},
				{Class: User, Percent: 4.5},
				{Class: Me, Percent: 4.5},
				{Class: Page, Percent: 1},
				{Class: Upload, Percent: 20},
			},
			line: slowLine,
		},
	}
}

// New returns the workload of that name. One that renames asks for the owner of
// each photo once, which takes time in proportion to Photos.
func New(name string, p Params) (workloads.Workload, error) {
	var names []string
	for _, s := range Catalogue() {
		if s.Name != name {
			names = append(names, s.Name)
			continue
		}
		service, err := newService(s, p, mostVirtual)
		if err != nil {
			return nil, fmt.Errorf("workload %s: %w", name, err)
		}
		return service, nil
	}
	return nil, fmt.Errorf("unknown workload %q: want one of %s", name, strings.Join(names, ", "))
}
