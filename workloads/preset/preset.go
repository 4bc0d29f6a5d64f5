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

	// VirtualUsers is the number of seeded users who have a browser, and with it
	// a session: all ops are theirs. 0 = 256, or all users where there are fewer.
	VirtualUsers int

	Login   func(user int) (login, password string) // of a seeded user, by id
	PhotoID func(photo int) uint64                  // of a seeded photo, by index
	Owner   func(photo int) (user int)              // of a seeded photo, by index: only the owner may rename
	Uploads [][]byte                                // JPEGs to upload, in turns; never written to
}

// defaultVirtualUsers is enough for every web host to hold many sessions, and
// few enough to log in within a second.
const defaultVirtualUsers = 256

// withDefaults fills in what may be left out.
func (p Params) withDefaults() Params {
	if p.VirtualUsers == 0 {
		p.VirtualUsers = min(defaultVirtualUsers, p.Users)
	}
	return p
}

// validate says what is wrong with parameters that are complete.
func (p Params) validate() error {
	switch {
	case p.Users < 2:
		return fmt.Errorf("%d users: want at least 2, for one to follow another", p.Users)
	case p.Photos < 1:
		return fmt.Errorf("%d photos: want at least 1", p.Photos)
	case p.VirtualUsers < 1 || p.VirtualUsers > p.Users:
		return fmt.Errorf("%d virtual users: want 1 to %d, the number of users", p.VirtualUsers, p.Users)
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

// shipped is one workload as the catalogue has it.
type shipped struct {
	name string
	doc  string
	mix  workloads.Mix
	line float64 // of users who upload, in bytes per second; 0 = as fast as can be
}

// slowLine is how fast the users of slow-upload send, in bytes per second: a
// picture of the default size takes about eight seconds.
const slowLine = 700

func catalogue() []shipped {
	return []shipped{
		{
			name: "read-heavy",
			doc:  "95 % reads: feeds, photos and images, now and then a like or an upload",
			mix: workloads.Mix{
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
			name: "write-heavy",
			doc:  "50 % writes: likes and comments above all, then renames, follows and uploads",
			mix: workloads.Mix{
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
			name: "slow-upload",
			doc:  "80 % reads in the proportions of read-heavy, and uploads over slow lines (700 bytes/s), each of which holds a connection for about 8 s",
			mix: workloads.Mix{
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

// Names lists the workloads in the order in which they are shown.
func Names() []string {
	var names []string
	for _, s := range catalogue() {
		names = append(names, s.name)
	}
	return names
}

// Doc says in one line what a workload consists of; "" for an unknown name.
func Doc(name string) string {
	s, _ := find(name)
	return s.doc
}

// Shares returns the mix of a workload; nil for an unknown name.
func Shares(name string) workloads.Mix {
	s, _ := find(name)
	return s.mix
}

// New returns the workload of that name. One that renames asks for the owner of
// each photo once, which takes time in proportion to Photos.
func New(name string, p Params) (workloads.Workload, error) {
	s, known := find(name)
	if !known {
		return nil, fmt.Errorf("unknown workload %q: want one of %s", name, strings.Join(Names(), ", "))
	}
	p = p.withDefaults()
	if err := p.validate(); err != nil {
		return nil, fmt.Errorf("workload %s: %w", name, err)
	}
	service, err := newService(s, p)
	if err != nil {
		return nil, fmt.Errorf("workload %s: %w", name, err)
	}
	return service, nil
}

func find(name string) (shipped, bool) {
	for _, s := range catalogue() {
		if s.name == name {
			return s, true
		}
	}
	return shipped{}, false
}
