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

	"github.com/stagebench/stagebench/sut/photos"
)

// Cache-Control of images and assets. A URL with a version never shows anything
// else; one without is looked at again after a minute.
const (
	cacheForever = "public, max-age=31536000, immutable"
	cacheShortly = "public, max-age=60"
)

// imageVersion is the v of the image URLs that the page shows. The bytes of a
// photo never change after its upload; raise it when processing makes other
// variants of the same original.
const imageVersion = 1

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
		panic("app: the embedded assets are part of the program: " + err.Error())
	}
	return assets
}

// url is where an asset is, with its content as the version.
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
		return badRequest("use a decimal number, or leave it out", "v is not a version: %q", clip(version))
	}
	data, err := a.config.Blobs.Get(ctx, x.named, variant)
	if err != nil {
		return a.tierProblem(x, tierBlob, "the image", err)
	}
	serveBytes(x, data, etagOf(data), "image/jpeg", cacheControl(version))
	return nil
}

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

// serveBytes answers GET and HEAD of something that is in memory, with
// conditions and ranges.
func serveBytes(x *exchange, data []byte, etag, mediaType, cacheControl string) {
	header := x.Header()
	header.Set("Etag", etag)
	asked := x.r.Header
	if asked["Range"] == nil && asked["If-None-Match"] == nil && asked["If-Match"] == nil {
		// Nearly every request. http.ServeContent would do the same and allocate
		// a copy buffer for it.
		header.Set("Accept-Ranges", "bytes")
		// Also for HEAD, whose body the server leaves out: compression on the way
		// must see it, for the header to be the one that GET has.
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

// contentWriter turns the refusals of http.ServeContent, a line of text or
// nothing, into problems like all others.
type contentWriter struct {
	*exchange
	refused bool
}

// WriteHeader sends the status, or the whole refusal.
func (w *contentWriter) WriteHeader(status int) {
	if status < 400 {
		w.exchange.WriteHeader(status)
		return
	}
	w.refused = true
	body := `{"error":"the range lies outside of the content","hint":"Content-Range says how long it is"}`
	if status == http.StatusPreconditionFailed {
		body = `{"error":"the content is not the one in If-Match","hint":"read it again, Etag names the present one"}`
	}
	w.reply(status, "application/json", "no-store", []byte(body))
}

// Write sends a part of the body, unless a refusal has taken its place.
func (w *contentWriter) Write(p []byte) (int, error) {
	if w.refused {
		return len(p), nil
	}
	return w.exchange.Write(p)
}
