package app

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/stagebench/stagebench/sut/photos"
)

const (
	// formOverhead is what a multipart form may have besides the picture:
	// boundaries, headers of parts, the title.
	formOverhead = 64 << 10

	// untitled is the title of a photo whose owner gave none.
	untitled = "Untitled"

	uploadHint = "send a JPEG as the body with Content-Type: image/jpeg, " +
		"or as the field photo of a multipart/form-data form"

	// cleanupTimeout bounds the removal of bytes that nobody will ask for.
	cleanupTimeout = 2 * time.Second
)

// picture is an upload as it was sent.
type picture struct {
	original []byte
	title    string
}

// upload answers POST /api/photos: process, store the bytes, then the record.
// The record comes last because it is what makes the photo visible.
//
// When the record could not be stored the bytes are removed. If the database
// did commit and only its answer got lost, a record without bytes stays: the
// client was told 503, and its next attempt makes a photo of its own.
func (a *App) upload(_ context.Context, x *exchange) error {
	release, err := a.reserve(x)
	if err != nil {
		return err
	}
	defer release()
	sent, err := a.readPicture(x)
	if err != nil {
		return err
	}
	// The context that came with the request has been running while a slow
	// client was sending.
	ctx, cancel := a.bound(x)
	defer cancel()
	variants, err := a.process(ctx, x, sent.original)
	if err != nil {
		return err
	}
	photo := photos.Photo{
		ID: a.config.IDs.Next(photos.BucketOf(x.user)), UserID: x.user, Title: sent.title, State: photos.StateReady,
		Width: variants.Width, Height: variants.Height, Bytes: int64(len(sent.original)),
		CreatedUS: a.config.Now().UnixMicro(), Version: 1,
	}
	if err := a.storeBlobs(ctx, photo.ID, sent.original, variants); err != nil {
		_ = a.removeBlobs(x, photo.ID) // logged
		return a.tierProblem(x, tierBlob, "the photo", err)
	}
	if err := a.config.Store.AddPhoto(ctx, photo); err != nil {
		_ = a.removeBlobs(x, photo.ID) // logged
		return a.tierProblem(x, tierDB, "the photo", err)
	}
	a.metrics.uploads.Inc()
	a.metrics.uploadBytes.Add(float64(photo.Bytes))
	x.Header().Set("Location", "/api/photos/"+strconv.FormatInt(int64(photo.ID), 10))
	a.send(x, http.StatusCreated, photo.Version, &photo)
	return nil
}

// reserve sets memory for an upload aside before a byte of it is read. Without
// it, many large uploads at once would take the host down for everybody.
func (a *App) reserve(x *exchange) (release func(), err error) {
	most := a.config.MaxUploadBytes + formOverhead
	bytes := x.r.ContentLength
	if bytes > most {
		return nil, tooLarge(a.config.MaxUploadBytes, "the photo")
	}
	if bytes < 0 {
		bytes = most
	}
	if !a.memory.TryAcquire(bytes) {
		return nil, busy("too many uploads at once")
	}
	return func() { a.memory.Release(bytes) }, nil
}

// readPicture reads an upload in either of its forms.
func (a *App) readPicture(x *exchange) (picture, error) {
	mediaType, parameters, err := mime.ParseMediaType(x.r.Header.Get("Content-Type"))
	if err != nil {
		return picture{}, unsupported("the content type is missing or malformed", uploadHint)
	}
	if err := checkEncoding(x); err != nil {
		return picture{}, err
	}
	values, err := query(x)
	if err != nil {
		return picture{}, err
	}
	sent := picture{title: values.Get("title")}
	switch mediaType {
	case "image/jpeg":
		sent.original, err = readBody(x, a.config.MaxUploadBytes)
	case "multipart/form-data":
		err = a.readForm(x, parameters["boundary"], &sent)
	default:
		err = unsupported(fmt.Sprintf("the content type is %q", clip(mediaType)), uploadHint)
	}
	if err != nil {
		return picture{}, err
	}
	if len(sent.original) == 0 {
		return picture{}, badRequest(uploadHint, "there is no picture in the request")
	}
	sent.title, err = cleanText("title", cmp.Or(sent.title, untitled), maxTitleRunes, false)
	return sent, err
}

// readForm reads a multipart form part by part. Nothing but the picture and
// the title is kept, and nothing is written to disk.
func (a *App) readForm(x *exchange, boundary string, sent *picture) error {
	if boundary == "" {
		return badRequest(uploadHint, "the content type has no boundary")
	}
	body := x.body(a.config.MaxUploadBytes + formOverhead)
	form := multipart.NewReader(body, boundary)
	for {
		part, err := form.NextPart()
		if err == io.EOF {
			// What may follow the last boundary means nothing.
			if _, err := io.Copy(io.Discard, body); err != nil {
				return formProblem(err)
			}
			x.bodyRead()
			return nil
		}
		if err != nil {
			return formProblem(err)
		}
		switch part.FormName() {
		case "photo":
			if sent.original != nil {
				return badRequest("upload one photo per request", "the field photo comes twice")
			}
			sent.original, err = readPart(part, a.config.MaxUploadBytes, "the photo")
		case "title":
			var title []byte
			title, err = readPart(part, 4*maxTitleRunes, "the title")
			sent.title = string(title)
		default:
			return badRequest("send the fields photo and title, and no others",
				"the form has the unknown field %q", clip(part.FormName()))
		}
		if err != nil {
			return err
		}
	}
}

// readPart reads one field of a form.
func readPart(part *multipart.Part, limit int64, what string) ([]byte, error) {
	var value bytes.Buffer
	n, err := io.Copy(&value, io.LimitReader(part, limit+1))
	switch {
	case err != nil:
		return nil, formProblem(err)
	case n > limit:
		return nil, tooLarge(limit, what)
	}
	return value.Bytes(), nil
}

// formProblem says why a form could not be read.
func formProblem(err error) error {
	err = bodyProblem(err)
	if p, ok := err.(*problem); ok && p.status == http.StatusBadRequest {
		return badRequest(uploadHint, "the form is malformed or ends early")
	}
	return err
}

// process makes the variants when it is this upload's turn.
func (a *App) process(ctx context.Context, x *exchange, original []byte) (photos.Variants, error) {
	select {
	case a.slots <- struct{}{}:
		defer func() { <-a.slots }()
	case <-ctx.Done():
		if x.r.Context().Err() != nil {
			return photos.Variants{}, clientGone(ctx.Err())
		}
		return photos.Variants{}, busy("too many uploads at once")
	}
	variants, err := a.config.Process(original)
	switch {
	case err == nil:
		return variants, nil
	case errors.Is(err, photos.ErrTooManyPixels):
		return variants, refusal(http.StatusRequestEntityTooLarge, err.Error(),
			"scale the picture down before uploading it")
	case errors.Is(err, photos.ErrTruncated):
		return variants, badRequest("send the whole file", "%v", err)
	case errors.Is(err, photos.ErrNotJPEG):
		return variants, unsupported(err.Error(), "save the picture as a JPEG")
	}
	return variants, fmt.Errorf("process an upload of %d bytes: %w", len(original), err)
}

// storeBlobs stores the original and its variants.
func (a *App) storeBlobs(ctx context.Context, id photos.ID, original []byte, made photos.Variants) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, object := range []struct {
		v    photos.Variant
		data []byte
	}{
		{photos.VariantOriginal, original},
		{photos.VariantThumb, made.Thumb},
		{photos.VariantSharp, made.Sharp},
		{photos.VariantBlur, made.Blur},
	} {
		group.Go(func() error { return a.config.Blobs.Put(ctx, id, object.v, object.data) })
	}
	return group.Wait()
}

// removeBlobs removes the bytes of a photo that is no more. It goes on when the
// client is gone, and a failure is logged and no more: the bytes cannot be
// reached by anybody, they take up space.
func (a *App) removeBlobs(x *exchange, id photos.ID) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(&x.ctx), cleanupTimeout)
	defer cancel()
	var group errgroup.Group
	for _, v := range photos.AllVariants() {
		group.Go(func() error {
			if err := a.config.Blobs.Delete(ctx, id, v); err != nil && !errors.Is(err, photos.ErrNotFound) {
				return err
			}
			return nil
		})
	}
	err := group.Wait()
	if err != nil {
		a.config.Log.Warn("bytes of a photo are left behind", "request_id", x.id(), "photo", id, "error", err)
	}
	return err
}
