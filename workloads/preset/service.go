package preset

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/keys"
)

// theta is the exponent of the popularity of photos: YCSB's.
const theta = 0.99

// service is a workload for the photo service.
//
// Virtual user v is the seeded user with id 1 + v*users/virtual: they are
// spread evenly over the ids, so that they follow and own what users in general
// do, however the data set orders them.
type service struct {
	name    string
	seed    uint64
	mix     workloads.Mix
	kinds   []kind // the kind of op of each share of the mix
	users   int
	virtual int

	photos   keys.Scrambled // keys are indexes - 1
	photoID  func(photo int) uint64
	variants workloads.Mix  // of images
	suffixes []string       // the end of an image's path, by position in variants
	owners   []owner        // the virtual users who own photos; nil when no op asks for one
	logins   []workloads.Op // by virtual user
	texts
	uploads [][]byte
	line    float64 // of users who upload, in bytes per second; 0 = as fast as can be
}

var (
	_ workloads.Workload = (*service)(nil)
	_ workloads.Login    = (*service)(nil)
)

// newService returns a workload whose ops are those of so many users at most.
func newService(s Shipped, p Params, virtual int) (*service, error) {
	if err := p.validate(); err != nil {
		return nil, err
	}
	if err := s.Mix.Validate(); err != nil {
		return nil, err
	}
	ranks, err := keys.NewZipfian(p.Photos, theta)
	if err != nil {
		return nil, fmt.Errorf("photos: %w", err)
	}
	w := &service{
		name: s.Name, seed: p.Seed, mix: s.Mix,
		users: p.Users, virtual: min(virtual, p.Users),
		photoID:  p.PhotoID,
		photos:   keys.NewScrambled(ranks, workloads.Draw(p.Seed, 0, streamOrder)),
		variants: imageVariants(),
		texts:    newTexts(), uploads: p.Uploads, line: s.line,
	}
	for _, v := range w.variants {
		w.suffixes = append(w.suffixes, "/"+string(v.Class)+".jpg")
	}
	all := kinds()
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

// Name is the name that New was called with.
func (w *service) Name() string { return w.name }

// Users is the number of virtual users.
func (w *service) Users() int { return w.virtual }

// Classes lists the classes of its ops, without the login's.
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
		t.by = t.pick(streamUser, len(w.owners))
		t.user = w.owners[t.by].user
	} else {
		t.user = t.pick(streamUser, w.virtual)
	}
	op := workloads.Op{
		Index: n, Class: w.mix[i].Class, Write: workloads.Writes(k.method),
		Method: k.method, Path: k.target(w, t), Header: k.header, User: t.user,
	}
	op.Record = k.record(op.Path)
	if k.body != nil {
		op.Body = k.body(w, t)
	}
	if op.Class == Upload {
		op.BodyRate = w.line
	}
	return op
}

// LoginOp returns the op that logs a virtual user in.
func (w *service) LoginOp(user int) workloads.Op { return w.logins[user] }

// prepareLogins makes the login ops: they are needed again and again when a web
// host takes its sessions with it.
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

// userID is the id of the seeded user that a virtual user is.
func (w *service) userID(virtual int) int { return 1 + virtual*w.users/w.virtual }

// anyUser picks a user, all equally often.
func (w *service) anyUser(t turn) uint64 { return uint64(1 + t.pick(streamKey, w.users)) }

// otherUser picks a user who is not the one whose turn it is.
func (w *service) otherUser(t turn) uint64 {
	id := 1 + t.pick(streamKey, w.users-1)
	if id >= w.userID(t.user) {
		id++
	}
	return uint64(id)
}

// anyPhoto picks the id of a photo by popularity.
func (w *service) anyPhoto(t turn) uint64 { return w.photoID(1 + w.photos.Key(t.draw(streamKey))) }

// ownPhoto picks the id of a photo of the owner whose turn it is.
func (w *service) ownPhoto(t turn) uint64 { return w.owners[t.by].photo(t) }

// upload picks the bytes of an upload.
func (w *service) upload(t turn) []byte { return w.uploads[t.pick(streamKey, len(w.uploads))] }

// turn is one op in the making: its place in the workload, and who does it.
type turn struct {
	seed, n uint64
	user    int // virtual user
	by      int // position of that user among the owners, for ops that only an owner may do
}

// The streams of random numbers of one op.
const (
	streamOrder  = iota // once per workload: which photos are popular
	streamClass         // what is done
	streamUser          // by whom
	streamKey           // to what
	streamDetail        // how: the variant, the text, the bytes
)

func (t turn) draw(stream uint64) uint64 { return workloads.Draw(t.seed, t.n, stream) }

func (t turn) pick(stream uint64, n int) int { return workloads.Below(t.draw(stream), n) }

// numbered is a path with an id or the number of an op in it, made by one allocation.
func numbered(before string, number uint64, after string) string {
	var buffer [96]byte
	text := append(buffer[:0], before...)
	text = strconv.AppendUint(text, number, 10)
	return string(append(text, after...))
}
