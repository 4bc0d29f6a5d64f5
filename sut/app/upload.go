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

	"golang.org/x/sync/semaphore"

	"github.com/stagebench/stagebench/sut/photos"
)

const (
	// maxFormBytes bounds a multipart form: the picture and 64 KiB for boundaries, headers
	// of parts and the title.
	maxFormBytes = maxUploadBytes + 64<<10

	// untitled is the title of a photo that was uploaded without one.
	untitled = "Untitled"

	uploadHint = "send a JPEG as the body with Content-Type: image/jpeg, " +
		"or as the field photo of a multipart/form-data form"

	// cleanupTimeout bounds the removal of the bytes of a photo without a record.
	cleanupTimeout = 2 * time.Second
)

// picture is an upload as it was sent.
type picture struct {
	original []byte
	title    string
}

// upload answers POST /api/photos. It processes the picture, stores the bytes, and then
// the record. The record comes last because it makes the photo visible.
//
// With workers, it stores the original and the record in the state StateProcessing, and then puts the job into the
// queue. The record is the outbox: whatever happens after it was stored, the photo is found there and put again.
//
// If the record cannot be stored, upload removes the bytes. If the database did commit
// and only its response was lost, a record without bytes remains. The client got 503,
// and its retry creates another photo.
func (a *App) upload(_ context.Context, x *exchange) error {
	release, err := a.reserve(x)
	if err != nil {
		return err
	}
	defer release()
	sent, err := readPicture(x)
	if err != nil {
		return err
	}
	// The context passed to upload may have expired while a slow client was sending.
	ctx, cancel := bound(x)
	defer cancel()
	variants, err := a.process(ctx, x, sent.original)
	if err != nil {
		return err
	}
	now := a.config.Now().UnixMicro()
	photo := photos.Photo{
		ID: a.config.IDs.Next(photos.BucketOf(x.user)), UserID: x.user, Title: sent.title, State: photos.StateReady,
		Width: variants.Width, Height: variants.Height, Bytes: int64(len(sent.original)),
		CreatedUS: now, DoneUS: now, Version: 1,
	}
	if a.config.Jobs != nil {
		photo.State, photo.DoneUS = photos.StateProcessing, 0
	}
	images := variants.Images()
	images[photos.VariantOriginal] = sent.original
	if err := photos.PutImages(ctx, a.config.Blobs, photo.ID, images); err != nil {
		_ = a.removeBlobs(x, photo.ID) // it logs its error
		return a.tierProblem(x, tierBlob, "the photo", err)
	}
	if err := a.config.Store.AddPhoto(ctx, photo); err != nil {
		_ = a.removeBlobs(x, photo.ID) // it logs its error
		return a.tierProblem(x, tierDB, "the photo", err)
	}
	if a.config.Jobs != nil {
		if err := a.config.Jobs.Put(ctx, photo.ID); err != nil {
			a.noteOutage(x, tierQueue, err) // the photo stays in processing, and is put again
		}
	}
	a.metrics.uploads.Inc()
	a.metrics.uploadBytes.Add(float64(photo.Bytes))
	x.Header().Set("Location", "/api/photos/"+strconv.FormatInt(int64(photo.ID), 10))
	a.send(x, http.StatusCreated, photo.Version, &photo)
	return nil
}

// memory is the shares of the host's memory that clients may fill. Each is a bound of its
// own: slow clients hold their uploads and images for a minute or two, and must not
// prevent others from being processed.
type memory struct {
	uploads      *semaphore.Weighted // bytes of uploads that are being read, processed or stored
	images       *semaphore.Weighted // bytes of images that are being sent
	processing   *semaphore.Weighted // bytes that pictures in processing take
	processBytes int64               // the bound of processing
}

// freeBytes is the part of an upload or of an image that is not counted. So small ones are
// served although slow clients hold all the counted memory. The limit of connections bounds
// their sum.
const freeBytes = 64 << 10

// PictureMemory returns the share of a host's memory that is for pictures in processing, on web hosts and workers.
func PictureMemory(total int64) int64 { return total * 2 / 5 }

// newMemory divides the memory of a host: an eighth for uploads, a sixteenth for images, two fifths for pictures in
// processing. On a host of 512 MiB, that is 64 MiB, 32 MiB and a progressive JPEG of 12 million pixels. The rest is for
// connections, records and the program.
func newMemory(total int64) memory {
	m := memory{processBytes: PictureMemory(total)}
	m.uploads = semaphore.NewWeighted(max(total/8, maxFormBytes))
	m.images = semaphore.NewWeighted(max(total/16, maxImageBytes))
	m.processing = semaphore.NewWeighted(m.processBytes)
	return m
}

// reserve reserves memory for an upload before any byte of it is read. Without it, many
// large uploads at once would exhaust the memory of the host. An upload that does not fit
// is refused at once: the others may be slow, so waiting would rarely help.
func (a *App) reserve(x *exchange) (release func(), err error) {
	bytes := x.r.ContentLength
	if bytes > maxFormBytes {
		return nil, tooLarge(maxUploadBytes, "the photo")
	}
	if bytes < 0 {
		bytes = maxFormBytes
	}
	bytes = max(bytes-freeBytes, 0)
	if !a.memory.uploads.TryAcquire(bytes) {
		return nil, busy("too many uploads at once")
	}
	return func() { a.memory.uploads.Release(bytes) }, nil
}

// readPicture reads an upload: a plain JPEG or a multipart form.
func readPicture(x *exchange) (picture, error) {
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
		sent.original, err = readBody(x, maxUploadBytes)
	case "multipart/form-data":
		err = readForm(x, parameters["boundary"], &sent)
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

// readForm reads a multipart form part by part. It keeps only the picture and the
// title, and writes nothing to disk.
func readForm(x *exchange, boundary string, sent *picture) error {
	if boundary == "" {
		return badRequest(uploadHint, "the content type has no boundary")
	}
	body := x.body(maxFormBytes)
	form := multipart.NewReader(body, boundary)
	for {
		part, err := form.NextPart()
		if err == io.EOF {
			// Bytes after the last boundary have no meaning.
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
				return badRequest("upload one photo per request", "the form has the field photo twice")
			}
			sent.original, err = readPart(part, x.r.ContentLength, maxUploadBytes, "the photo")
		case "title":
			var title []byte
			title, err = readPart(part, 0, 4*maxTitleRunes, "the title")
			sent.title = string(title)
		default:
			return badRequest("send only the fields photo and title",
				"the form has the unknown field %q", clip(part.FormName()))
		}
		if err != nil {
			return err
		}
	}
}

// readPart reads one field of a form. size is its expected size, -1 = unknown: a buffer that
// grows would take a multiple of the memory that is reserved.
func readPart(part *multipart.Part, size, limit int64, what string) ([]byte, error) {
	var value bytes.Buffer
	if size < 0 || size > limit {
		size = limit
	}
	value.Grow(int(size) + bytes.MinRead)
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

// process waits for one of the slots and for memory, and makes the variants. It waits,
// because pictures in processing free their memory soon, whatever clients do. With workers,
// it only checks the header, and returns the size without variants.
func (a *App) process(ctx context.Context, x *exchange, original []byte) (photos.Variants, error) {
	header, err := a.config.Inspect(original)
	if err != nil {
		return photos.Variants{}, pictureProblem(original, err)
	}
	bytes := header.Memory
	if limit := cmp.Or(a.config.WorkerMemory, a.memory.processBytes); bytes > limit {
		return photos.Variants{}, refusal(http.StatusRequestEntityTooLarge,
			fmt.Sprintf("processing the photo takes %d MB of memory, the limit is %d MB", bytes/1e6, limit/1e6),
			"scale the picture down before uploading it, or save it without the progressive format")
	}
	if a.config.Jobs != nil {
		return photos.Variants{Width: header.Width, Height: header.Height}, nil
	}
	select {
	case a.slots <- struct{}{}:
		defer func() { <-a.slots }()
		err = a.memory.processing.Acquire(ctx, bytes)
	case <-ctx.Done():
		err = ctx.Err()
	}
	switch {
	case err == nil:
		defer a.memory.processing.Release(bytes)
	case x.r.Context().Err() != nil:
		return photos.Variants{}, clientGone(err)
	default:
		return photos.Variants{}, busy("too many uploads at once")
	}
	variants, err := a.config.Process(original)
	if err != nil {
		return variants, pictureProblem(original, err)
	}
	return variants, nil
}

// pictureProblem says why a picture could not be processed.
func pictureProblem(original []byte, err error) error {
	switch {
	case errors.Is(err, photos.ErrTooManyPixels):
		return refusal(http.StatusRequestEntityTooLarge, err.Error(),
			"scale the picture down before uploading it")
	case errors.Is(err, photos.ErrTruncated):
		return badRequest("send the whole file", "%v", err)
	case errors.Is(err, photos.ErrNotJPEG):
		return unsupported(err.Error(), "save the picture as a JPEG")
	}
	return fmt.Errorf("process an upload of %d bytes: %w", len(original), err)
}

// removeBlobs removes the bytes of a photo without a record. It continues after the
// client disconnects. It logs a failure. The bytes that remain then only take up space,
// because no record refers to them.
func (a *App) removeBlobs(x *exchange, id photos.ID) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(&x.ctx), cleanupTimeout)
	defer cancel()
	err := photos.DeleteImages(ctx, a.config.Blobs, id, photos.AllVariants())
	if err != nil {
		a.config.Log.Warn("cannot remove the bytes of a photo", "request_id", x.id(), "photo", id, "error", err)
	}
	return err
}
