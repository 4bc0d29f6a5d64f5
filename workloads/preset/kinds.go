package preset

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/stagebench/stagebench/workloads"
)

// kind describes the ops of one class.
type kind struct {
	method  string
	header  map[string]string // shared by all ops of the kind, never modified
	byOwner bool              // only the owner of a photo may send it
	// keyed: the op reads or changes one versioned record, whose name is the path up
	// to the id. It is false for users, because no op changes a user and so no answer
	// can be stale. It is false for uploads, because only the answer has the new id.
	keyed bool
	// The path is before, id and after. Without id it is before alone.
	before, after string
	id            func(*service, turn) uint64
	path          func(*service, turn) string // if set, returns the path instead
	body          func(*service, turn) []byte // nil = no body
}

// record returns the name of the record of an op of this kind, "" = none.
func (k *kind) record(path string) string {
	if !k.keyed {
		return ""
	}
	return strings.TrimSuffix(path, k.after)
}

// target returns the path of an op of this kind.
func (k *kind) target(w *service, t turn) string {
	switch {
	case k.path != nil:
		return k.path(w, t)
	case k.id == nil:
		return k.before
	}
	return numbered(k.before, k.id(w, t), k.after)
}

// kinds returns the kinds of op of the photo service by class.
func kinds() map[workloads.Class]kind {
	const get, post, patch = http.MethodGet, http.MethodPost, http.MethodPatch
	html, jpeg, json := acceptText("text/html"), accept("image/jpeg"), acceptText("application/json")
	sendJSON, sendJPEG := send("application/json"), send("image/jpeg")
	user, photo := (*service).anyUser, (*service).anyPhoto
	return map[workloads.Class]kind{
		Page:  {method: get, header: html, before: "/"},
		Feed:  {method: get, header: json, before: "/api/feed?user=", id: user, after: "&limit=20"},
		Photo: {method: get, header: json, keyed: true, before: "/api/photos/", id: photo},
		Image: {method: get, header: jpeg, path: (*service).imagePath},
		User:  {method: get, header: json, before: "/api/users/", id: user},
		Me:    {method: get, header: json, before: "/api/me"},
		Asset: {method: get, header: acceptText("*/*"), path: (*service).assetPath},
		Like:  {method: post, header: json, keyed: true, before: "/api/photos/", id: photo, after: "/like"},
		Comment: {
			method: post, header: sendJSON, keyed: true, before: "/api/photos/", id: photo, after: "/comments",
			body: (*service).comment,
		},
		Rename: {
			method: patch, header: sendJSON, byOwner: true, keyed: true, before: "/api/photos/", id: (*service).ownPhoto,
			body: (*service).title,
		},
		Upload: {method: post, header: sendJPEG, path: (*service).uploadPath, body: (*service).upload},
		Follow: {method: post, header: json, before: "/api/users/", id: (*service).otherUser, after: "/follow"},
		Logout: {method: post, header: json, before: "/api/logout"},
	}
}

func accept(mediaType string) map[string]string { return map[string]string{"Accept": mediaType} }

// acceptText returns the header of a request for text. Like a browser, it accepts
// compressed text.
func acceptText(mediaType string) map[string]string {
	return map[string]string{"Accept": mediaType, "Accept-Encoding": "gzip"}
}

// send returns the header of a request with a body. Its answer is always JSON.
func send(mediaType string) map[string]string {
	return map[string]string{"Accept": "application/json", "Content-Type": mediaType}
}

// imageVariants returns the shares of the image variants. Pages and feeds show
// thumbnails. The page of a photo shows the original or a processed variant.
func imageVariants() workloads.Mix {
	return workloads.Mix{
		{Class: "thumb", Percent: 70},
		{Class: "original", Percent: 15},
		{Class: "sharp", Percent: 10},
		{Class: "blur", Percent: 5},
	}
}

// imageSuffix returns the end of the path of an image, behind the id of its photo. With the version, the URL is the one
// that pages link, and caches may keep it for ever.
func imageSuffix(variant workloads.Class, version int) string {
	return "/" + string(variant) + ".jpg?v=" + strconv.Itoa(version)
}

// imagePath picks a photo and a variant, and returns the path of the image.
func (w *service) imagePath(t turn) string {
	return numbered("/img/", w.anyPhoto(t), w.suffixes[w.variants.Pick(t.draw(streamDetail))])
}

// assetNames lists the files of /static that the page links.
func assetNames() []string { return []string{"app.css", "app.js", "icon.svg"} }

// assetPath picks an asset uniformly and returns its path. It has no version, because the version is a hash that only
// the page knows. So a cache may keep the asset for a minute, and then has to revalidate it.
func (w *service) assetPath(t turn) string {
	return "/static/" + w.assets[t.pick(streamKey, len(w.assets))]
}
