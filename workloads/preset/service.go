package preset

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	"github.com/stagebench/stagebench/workloads"
)

// service is a workload for the photo service.
//
// Virtual user v is the seeded user with id 1 + v*users/virtual. So virtual users are
// spread evenly over the ids. They are a fair sample of all users, also when the data
// set orders users, for example by their number of photos.
type service struct {
	name    string
	seed    uint64
	mix     workloads.Mix
	kinds   []kind // of the shares of the mix, in the same order
	logout  kind
	users   int // number of seeded users
	virtual int // number of virtual users

	photos   picker
	photoID  func(photo int) uint64
	variants workloads.Mix  // of images
	suffixes []string       // end of the path of an image, by index in variants
	assets   []string       // names of assets
	owners   []owner        // virtual users who own photos; nil when the mix needs no owner
	logins   []workloads.Op // by virtual user
	texts
	uploads    [][]byte
	uploadRate float64 // bytes per second of an upload; 0 = no limit
}

var (
	_ workloads.Workload = (*service)(nil)
	_ workloads.Login    = (*service)(nil)
)

// newService returns a workload with at most maxVirtual virtual users.
func newService(s Shipped, p Params, maxVirtual int) (*service, error) {
	if err := p.validate(); err != nil {
		return nil, err
	}
	if err := s.Mix.Validate(); err != nil {
		return nil, err
	}
	photos, err := newPicker(s.photos, p)
	if err != nil {
		return nil, err
	}
	w := &service{
		name: s.Name, seed: p.Seed, mix: s.Mix,
		users: p.Users, virtual: min(maxVirtual, p.Users),
		photoID:  p.PhotoID,
		photos:   photos,
		variants: imageVariants(), assets: assetNames(),
		texts: newTexts(), uploads: p.Uploads, uploadRate: s.uploadRate,
	}
	for _, v := range w.variants {
		w.suffixes = append(w.suffixes, imageSuffix(v.Class, p.ImageVersion))
	}
	all := kinds()
	w.logout = all[Logout]
	for _, share := range s.Mix {
		k, known := all[share.Class]
		if !known {
			return nil, fmt.Errorf("class %s: the photo service has no such op", share.Class)
		}
		w.kinds = append(w.kinds, k)
	}
	if slices.ContainsFunc(w.kinds, func(k kind) bool { return k.byOwner }) {
		if w.owners, err = findOwners(w, p.Photos, p.Owner); err != nil {
			return nil, err
		}
	}
	return w, w.prepareLogins(p.Login)
}

// Name returns the name of the workload.
func (w *service) Name() string { return w.name }

// Users returns the number of virtual users.
func (w *service) Users() int { return w.virtual }

// Classes lists the classes of the ops, without Login.
func (w *service) Classes() (classes []workloads.Class) {
	for _, share := range w.mix {
		classes = append(classes, share.Class)
	}
	return classes
}

// Op returns the n-th op.
func (w *service) Op(n uint64) workloads.Op {
	i := w.mix.Pick(workloads.Draw(w.seed, n, streamClass))
	k := &w.kinds[i]
	t := turn{seed: w.seed, n: n}
	if k.byOwner {
		t.owner = t.pick(streamUser, len(w.owners))
		t.user = w.owners[t.owner].user
	} else {
		t.user = t.pick(streamUser, w.virtual)
	}
	return w.op(w.mix[i].Class, k, t)
}

// op returns the op of a class and its kind.
func (w *service) op(class workloads.Class, k *kind, t turn) workloads.Op {
	op := workloads.Op{
		Index: t.n, Class: class, Write: workloads.Writes(k.method),
		Method: k.method, Path: k.target(w, t), Header: k.header, User: t.user,
	}
	op.Record = k.record(op.Path)
	if k.body != nil {
		op.Body = k.body(w, t)
	}
	if op.Class == Upload {
		op.BodyRate = w.uploadRate
	}
	return op
}

// LoginOp returns the op that logs in a virtual user.
func (w *service) LoginOp(user int) workloads.Op { return w.logins[user] }

// prepareLogins builds the login ops in advance. Users log in again whenever a web
// host with their sessions dies.
func (w *service) prepareLogins(credentials func(user int) (login, password string)) error {
	header := send("application/json")
	for v := range w.virtual {
		var c struct {
			Login    string `json:"login"`
			Password string `json:"password"`
		}
		c.Login, c.Password = credentials(w.userID(v))
		body, err := json.Marshal(c)
		if err != nil {
			return fmt.Errorf("login of user %d: %w", w.userID(v), err)
		}
		w.logins = append(w.logins, workloads.Op{
			Class: Login, Write: true, Method: http.MethodPost, Path: "/api/login", Header: header, Body: body, User: v,
		})
	}
	return nil
}

// userID returns the id of the seeded user of a virtual user.
func (w *service) userID(virtual int) int { return 1 + virtual*w.users/w.virtual }

// anyUser picks the id of a user uniformly.
func (w *service) anyUser(t turn) uint64 { return uint64(1 + t.pick(streamKey, w.users)) }

// otherUser picks the id of a user other than the sender of the op, uniformly.
func (w *service) otherUser(t turn) uint64 {
	id := 1 + t.pick(streamKey, w.users-1)
	if id >= w.userID(t.user) {
		id++
	}
	return uint64(id)
}

// anyPhoto picks the id of a photo by popularity.
func (w *service) anyPhoto(t turn) uint64 { return w.photoID(1 + w.photos.Key(t.draw(streamKey))) }

// ownPhoto picks the id of a photo that the sender of the op owns.
func (w *service) ownPhoto(t turn) uint64 { return w.owners[t.owner].photo(t) }

// upload picks the bytes of an upload.
func (w *service) upload(t turn) []byte { return w.uploads[t.pick(streamKey, len(w.uploads))] }

// turn identifies an op while it is built: its index in the workload, and its sender.
type turn struct {
	seed, n uint64
	user    int // virtual user that sends the op
	owner   int // index of that user in service.owners, if only an owner may send the op
}

// The streams of random numbers. Each decides one property of an op, or of a journey.
const (
	streamOrder       = iota // once per workload: which photos are popular
	streamClass              // class
	streamUser               // sender
	streamKey                // photo, user, JPEG or asset
	streamDetail             // image variant or text
	streamLength             // number of steps of a journey
	streamKind               // whether a journey logs in and out
	streamJourneyUser        // user of a journey
	streamThink              // think time before an op
)

func (t turn) draw(stream uint64) uint64 { return workloads.Draw(t.seed, t.n, stream) }

func (t turn) pick(stream uint64, n int) int { return workloads.Below(t.draw(stream), n) }

// numbered returns a path that contains a number. It allocates once.
func numbered(before string, number uint64, after string) string {
	var buffer [96]byte
	text := append(buffer[:0], before...)
	text = strconv.AppendUint(text, number, 10)
	return string(append(text, after...))
}
