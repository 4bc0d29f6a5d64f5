package app

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/stagebench/stagebench/sut/photos"
)

// Cache-Control of images and assets. The content of a URL with a version never
// changes. A URL without a version is revalidated after a minute. Meanwhile, and for a
// day without the service, caches may answer with the old content (RFC 5861). The
// lifetimes are sut.VersionedLifetime and sut.UnversionedLifetime.
const (
	cacheForever = "public, max-age=31536000, immutable"
	cacheShortly = "public, max-age=60, stale-while-revalidate=60, stale-if-error=86400"
)

// maxImageBytes is the size of the largest image, that of the largest object of the blob tier.
const maxImageBytes = 16 << 20

//go:embed static
var static embed.FS

// asset is a file of /static.
type asset struct {
	data      []byte
	etag      string
	mediaType string
}

// loadAssets reads the embedded files, by name.
func loadAssets() map[string]asset {
	mediaTypes := map[string]string{
		"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml",
	}
	assets := map[string]asset{}
	entries, err := static.ReadDir("static")
	for _, entry := range entries {
		var data []byte
		if data, err = static.ReadFile("static/" + entry.Name()); err != nil {
			break
		}
		_, extension, _ := strings.Cut(entry.Name(), ".")
		assets[entry.Name()] = asset{data: data, etag: etagOf(data), mediaType: mediaTypes[extension]}
	}
	if err != nil {
		panic("app: cannot read the embedded assets: " + err.Error())
	}
	return assets
}

// url is the path of an asset, with the hash of its content as the version.
func (a asset) url(name string) string { return "/static/" + name + "?v=" + strings.Trim(a.etag, `"`) }

// showAsset answers GET /static/{file}. It needs no other tier.
func (a *App) showAsset(_ context.Context, x *exchange) error {
	asset, found := a.assets[x.r.PathValue("file")]
	if !found {
		return notFound("there is no such asset", "assets are linked from the page at /")
	}
	values, err := query(x)
	if err != nil {
		return err
	}
	serveBytes(x, asset.data, asset.etag, asset.mediaType, cacheControl(values.Get("v")))
	return nil
}

// showImage answers GET /img/{id}/{variant}.jpg?v=N. It needs no database.
func (a *App) showImage(ctx context.Context, x *exchange) error {
	name, isJPEG := strings.CutSuffix(x.r.PathValue("file"), ".jpg")
	variant := photos.Variant(name)
	if !isJPEG || !variant.Valid() {
		return notFound("there is no such variant", "use original.jpg, thumb.jpg, sharp.jpg or blur.jpg")
	}
	values, err := query(x)
	if err != nil {
		return err
	}
	version := values.Get("v")
	if _, err := strconv.ParseUint(version, 10, 63); version != "" && err != nil {
		return badRequest("send a decimal number as v, or leave v out", "v is not a version: %q", clip(version))
	}
	data, err := a.config.Blobs.Get(ctx, x.named, variant)
	if err != nil {
		return a.tierProblem(x, tierBlob, "the image", err)
	}
	x.Header().Set("Cache-Groups", groupOf(x.named))
	serveBytes(x, data, etagOf(data), "image/jpeg", cacheControl(version))
	return nil
}

// groupOf returns the group of all images of a photo in the caches of HTTP responses, as the value of Cache-Groups and
// Cache-Group-Invalidation (RFC 9875).
func groupOf(photo photos.ID) string { return `"photo-` + strconv.FormatInt(int64(photo), 10) + `"` }

// reservation is the memory of the image that answers a request. A client that reads slowly holds it.
type reservation struct {
	of   *semaphore.Weighted
	held int64
}

// imageKey is the key of the reservation in a request's context.
type imageKey struct{}

// ReserveImage reserves memory for an image that answers the request of a context, until the end of the request. The
// client of the blob tier calls it when it knows the size of an image. Its error is for the client of this host.
func ReserveImage(ctx context.Context, bytes int64) error {
	r, ok := ctx.Value(imageKey{}).(*reservation)
	if !ok {
		return nil // no request of a client
	}
	bytes = max(bytes-freeBytes, 0)
	if !r.of.TryAcquire(bytes) {
		return busy("too many large images are being sent")
	}
	r.held += bytes
	return nil
}

func (r *reservation) release() { r.of.Release(r.held) }

func cacheControl(version string) string {
	if version != "" {
		return cacheForever
	}
	return cacheShortly
}

// etagOf is a strong entity tag: it changes with any byte.
func etagOf(data []byte) string {
	sum := sha256.Sum256(data)
	return `"` + hex.EncodeToString(sum[:12]) + `"`
}

// serveBytes answers GET and HEAD with data from memory. It supports conditional
// requests and ranges.
func serveBytes(x *exchange, data []byte, etag, mediaType, cacheControl string) {
	header := x.Header()
	header.Set("Etag", etag)
	asked := x.r.Header
	if asked["Range"] == nil && asked["If-None-Match"] == nil && asked["If-Match"] == nil {
		// Nearly every request takes this path. http.ServeContent would do the same,
		// but it would allocate a copy buffer.
		header.Set("Accept-Ranges", "bytes")
		// HEAD writes the body, too, and the server drops it. Otherwise a compressing
		// writer would send other headers for HEAD than for GET.
		x.reply(http.StatusOK, mediaType, cacheControl, data)
		return
	}
	header.Set("Content-Type", mediaType)
	header.Set("Cache-Control", cacheControl)
	r := x.r
	if r.Method == http.MethodHead {
		asGet := *r
		asGet.Method = http.MethodGet
		r = &asGet
	}
	http.ServeContent(&contentWriter{exchange: x}, r, "", time.Time{}, bytes.NewReader(data))
}

// contentWriter replaces the error responses of http.ServeContent, which are plain
// text or empty, by JSON.
type contentWriter struct {
	*exchange
	refused bool
}

// WriteHeader sends the status. For an error it sends the complete response.
func (w *contentWriter) WriteHeader(status int) {
	if status < 400 {
		w.exchange.WriteHeader(status)
		return
	}
	w.refused = true
	body := `{"error":"the range lies outside of the content","hint":"read its length in Content-Range"}`
	if status == http.StatusPreconditionFailed {
		body = `{"error":"the content does not match If-Match","hint":"read it again and use its current Etag"}`
	}
	w.reply(status, "application/json", "no-store", []byte(body))
}

// Write sends a part of the body. After an error response it drops the data.
func (w *contentWriter) Write(p []byte) (int, error) {
	if w.refused {
		return len(p), nil
	}
	return w.exchange.Write(p)
}
