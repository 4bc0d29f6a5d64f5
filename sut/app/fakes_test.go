package app_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"image"
	"image/jpeg"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/app"
	"github.com/stagebench/stagebench/sut/blob/blobtest"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/session/sessiontest"
)

var (
	_ photos.Records = (*fakeStore)(nil)
	_ app.Blobs      = (*fakeBlobs)(nil)
	_ app.Sessions   = (*fakeSessions)(nil)
)

// broken is the error that a tier returns at present; nil = the tier works.
type broken struct{ err atomic.Pointer[error] }

func (b *broken) breakWith(err error) { b.err.Store(&err) }

func (b *broken) now(ctx context.Context) error {
	if err := b.err.Load(); err != nil && *err != nil {
		if errors.Is(*err, errHangs) {
			<-ctx.Done()
			return fmt.Errorf("fake: %w", ctx.Err())
		}
		return fmt.Errorf("fake: %w", *err)
	}
	return ctx.Err()
}

// errHangs makes a tier wait until the caller gives up.
var errHangs = errors.New("hangs")

// fakeStore is a Store in memory. It has the users 1 to 9. Each owns the photo with the
// same id and follows the next user.
type fakeStore struct {
	broken
	mu       sync.Mutex
	users    map[photos.ID]photos.User
	photos   map[photos.ID]photos.Photo
	comments []photos.Comment
	follows  map[[2]photos.ID]bool
	onDelete func() // called after a photo was deleted
}

func newFakeStore() *fakeStore {
	s := &fakeStore{
		users: map[photos.ID]photos.User{}, photos: map[photos.ID]photos.Photo{},
		follows: map[[2]photos.ID]bool{},
	}
	for id := photos.ID(1); id <= 9; id++ {
		login := sut.SeedLogin(int(id))
		s.users[id] = photos.User{
			ID: id, Login: login, Name: "Ada Weber",
			Password: photos.HashPassword(login, sut.SeedPassword), Version: 1,
		}
		s.photos[id] = photos.Photo{
			ID: id, UserID: id, Title: fmt.Sprintf("Photo %d", id), State: photos.StateReady, Width: 160, Height: 120,
			CreatedUS: photos.SeedEpochUS + int64(id), Likes: int64(id), Comments: 2, Version: int64(id),
		}
		s.follows[[2]photos.ID{id, id%9 + 1}] = true
	}
	return s
}

func (s *fakeStore) lock(ctx context.Context) (unlock func(), err error) {
	if err := s.now(ctx); err != nil {
		return func() {}, err
	}
	s.mu.Lock()
	return s.mu.Unlock, nil
}

func (s *fakeStore) User(ctx context.Context, id photos.ID) (photos.User, error) {
	unlock, err := s.lock(ctx)
	defer unlock()
	user, found := s.users[id]
	return user, cmp.Or(err, missing(found))
}

func (s *fakeStore) UserByLogin(ctx context.Context, login string) (photos.User, error) {
	unlock, err := s.lock(ctx)
	defer unlock()
	for _, user := range s.users {
		if user.Login == login {
			return user, err
		}
	}
	return photos.User{}, cmp.Or(err, missing(false))
}

func (s *fakeStore) Follow(ctx context.Context, follow photos.Follow) error {
	unlock, err := s.lock(ctx)
	defer unlock()
	_, found := s.users[follow.Followee]
	if err := cmp.Or(err, missing(found)); err != nil {
		return err
	}
	s.follows[[2]photos.ID{follow.Follower, follow.Followee}] = true
	return nil
}

func (s *fakeStore) Photo(ctx context.Context, id photos.ID) (photos.Photo, error) {
	unlock, err := s.lock(ctx)
	defer unlock()
	photo, found := s.photos[id]
	photo.Cached = photo.Cached && !sut.WantsFresh(ctx)
	return photo, cmp.Or(err, missing(found))
}

func (s *fakeStore) Feed(ctx context.Context, user photos.ID, limit int) ([]photos.Photo, error) {
	return s.list(ctx, limit, func(p photos.Photo) bool { return s.follows[[2]photos.ID{user, p.UserID}] })
}

func (s *fakeStore) Newest(ctx context.Context, limit int) ([]photos.Photo, error) {
	return s.list(ctx, limit, func(photos.Photo) bool { return true })
}

func (s *fakeStore) list(ctx context.Context, limit int, keep func(photos.Photo) bool) ([]photos.Photo, error) {
	unlock, err := s.lock(ctx)
	defer unlock()
	if err != nil {
		return nil, err
	}
	newest := slices.SortedFunc(maps.Values(s.photos),
		func(a, b photos.Photo) int { return cmp.Compare(b.CreatedUS, a.CreatedUS) })
	newest = slices.DeleteFunc(newest, func(p photos.Photo) bool { return !keep(p) })
	return newest[:min(limit, len(newest))], nil
}

func (s *fakeStore) AddPhoto(ctx context.Context, photo photos.Photo) error {
	unlock, err := s.lock(ctx)
	defer unlock()
	if err == nil {
		s.photos[photo.ID] = photo
	}
	return err
}

func (s *fakeStore) RenamePhoto(ctx context.Context, id, owner photos.ID, title string) (int64, error) {
	return s.change(ctx, id, owner, func(p *photos.Photo) { p.Title = title })
}

func (s *fakeStore) DeletePhoto(ctx context.Context, id, owner photos.ID) error {
	_, err := s.change(ctx, id, owner, func(*photos.Photo) {})
	if err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.photos, id)
		if s.onDelete != nil {
			s.onDelete()
		}
	}
	return err
}

func (s *fakeStore) Like(ctx context.Context, photo, _ photos.ID) (int64, error) {
	return s.change(ctx, photo, 0, func(p *photos.Photo) { p.Likes++ })
}

func (s *fakeStore) FinishPhoto(ctx context.Context, end photos.Processed) (int64, error) {
	return s.change(ctx, end.Photo, 0, func(p *photos.Photo) { p.State, p.DoneUS = end.State, end.DoneUS })
}

func (s *fakeStore) Comment(ctx context.Context, comment photos.Comment) (int64, error) {
	return s.change(ctx, comment.PhotoID, 0, func(p *photos.Photo) {
		p.Comments++
		s.comments = append(s.comments, comment)
	})
}

// change changes a photo. It checks the owner unless that is 0.
func (s *fakeStore) change(ctx context.Context, id, owner photos.ID, do func(*photos.Photo)) (int64, error) {
	unlock, err := s.lock(ctx)
	defer unlock()
	photo, found := s.photos[id]
	if err := cmp.Or(err, missing(found)); err != nil {
		return 0, err
	}
	if owner != 0 && photo.UserID != owner {
		return 0, fmt.Errorf("fake: %w", photos.ErrForbidden)
	}
	do(&photo)
	photo.Version++
	s.photos[id] = photo
	return photo.Version, nil
}

func missing(found bool) error {
	if !found {
		return fmt.Errorf("fake: %w", photos.ErrNotFound)
	}
	return nil
}

// fakeBlobs is a Blobs in memory.
type fakeBlobs struct {
	broken
	objects sync.Map                    // object -> []byte
	onGet   func(context.Context) error // called by Get; nil = nothing
}

type object struct {
	id photos.ID
	v  photos.Variant
}

func (b *fakeBlobs) Put(ctx context.Context, id photos.ID, v photos.Variant, data []byte) error {
	err := b.now(ctx)
	if err == nil {
		b.objects.Store(object{id, v}, data)
	}
	return err
}

func (b *fakeBlobs) Get(ctx context.Context, id photos.ID, v photos.Variant) ([]byte, error) {
	data, found := b.objects.Load(object{id, v})
	err := cmp.Or(b.now(ctx), missing(found))
	if err == nil && b.onGet != nil {
		err = b.onGet(ctx)
	}
	if err != nil {
		return nil, err
	}
	return data.([]byte), nil
}

func (b *fakeBlobs) Head(ctx context.Context, id photos.ID, v photos.Variant) (int64, error) {
	data, err := b.Get(ctx, id, v)
	return int64(len(data)), err
}

func (b *fakeBlobs) Delete(ctx context.Context, id photos.ID, v photos.Variant) error {
	if err := b.now(ctx); err != nil {
		return err
	}
	_, found := b.objects.LoadAndDelete(object{id, v})
	return missing(found)
}

func (b *fakeBlobs) count() (n int) {
	b.objects.Range(func(any, any) bool { n++; return true })
	return n
}

// fakeSessions is a Sessions in memory.
type fakeSessions struct {
	broken
	clock  func() time.Time
	mu     sync.Mutex
	last   int
	tokens map[string]fakeSession
}

type fakeSession struct {
	user    photos.ID
	expires time.Time
}

func newFakeSessions(now func() time.Time) *fakeSessions {
	return &fakeSessions{clock: now, tokens: map[string]fakeSession{}}
}

func (s *fakeSessions) Start(ctx context.Context, user photos.ID) (string, time.Time, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.now(ctx); err != nil {
		return "", time.Time{}, err
	}
	s.last++
	token, expires := fmt.Sprintf("%032x", s.last), s.clock().Add(time.Hour)
	s.tokens[token] = fakeSession{user, expires}
	return token, expires, nil
}

func (s *fakeSessions) User(ctx context.Context, token string) (photos.ID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	session, found := s.tokens[token]
	return session.user, cmp.Or(s.now(ctx), missing(found && s.clock().Before(session.expires)))
}

func (s *fakeSessions) End(ctx context.Context, token string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tokens, token)
	return s.now(ctx)
}

// fakeProcess decodes like the real processing and copies the original.
func fakeProcess(original []byte) (photos.Variants, error) {
	config, err := jpeg.DecodeConfig(bytes.NewReader(original))
	switch {
	case err == nil && config.Width*config.Height > 1_000_000:
		return photos.Variants{}, fmt.Errorf("%w: it is %dx%d", photos.ErrTooManyPixels, config.Width, config.Height)
	case err == nil:
		_, err = jpeg.Decode(bytes.NewReader(original))
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return photos.Variants{}, photos.ErrTruncated
	}
	if err != nil {
		return photos.Variants{}, fmt.Errorf("%w: %w", photos.ErrNotJPEG, err)
	}
	return photos.Variants{
		Thumb: original, Sharp: original, Blur: original, Width: config.Width, Height: config.Height,
	}, nil
}

// fakeInspect accepts everything, and leaves it to fakeProcess.
func fakeInspect([]byte) (photos.Header, error) { return photos.Header{Memory: 1 << 20}, nil }

// fakeJobs keeps the jobs that were put.
type fakeJobs struct {
	mu   sync.Mutex
	put  []photos.ID
	fail error
}

func (j *fakeJobs) Put(_ context.Context, id photos.ID) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.fail != nil {
		return j.fail
	}
	j.put = append(j.put, id)
	return nil
}

// sampleJPEG is a small picture.
func sampleJPEG(width, height int) []byte {
	picture := image.NewGray(image.Rect(0, 0, width, height))
	for i := range picture.Pix {
		picture.Pix[i] = uint8(i * 7)
	}
	var out bytes.Buffer
	if err := jpeg.Encode(&out, picture, nil); err != nil {
		panic(err)
	}
	return out.Bytes()
}

// bombJPEG is a small file that declares 65535x65535 pixels.
func bombJPEG() []byte {
	bomb := sampleJPEG(16, 16)
	frame := bytes.Index(bomb, []byte{0xff, 0xc0})
	copy(bomb[frame+5:], []byte{0xff, 0xff, 0xff, 0xff})
	return bomb
}

// The fakes pass the conformance kits of the tiers that they replace.
func TestFakesConform(t *testing.T) {
	blobtest.Run(t, func(*testing.T) blobtest.Store { return &fakeBlobs{} })
	sessiontest.Run(t, func(_ *testing.T, now func() time.Time) sessiontest.Sessions { return newFakeSessions(now) })
}
