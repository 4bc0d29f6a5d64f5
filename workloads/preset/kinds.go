package preset

import (
	"net/http"
	"strings"

	"github.com/stagebench/stagebench/workloads"
)

// kind is how an op of one class is made.
type kind struct {
	method  string
	header  map[string]string // shared by all ops of the kind, never written to
	byOwner bool              // done by the owner of the photo, not by any virtual user
	// keyed says that the op is about one record with versions: the path without
	// what comes after the id. A user's profile has a version too, but nothing here
	// changes it, so that no answer about it could be told to be stale; the record
	// of an upload is named by the answer.
	keyed bool
	// before and after are the path around the id; without id, before is all of it.
	before, after string
	id            func(*service, turn) uint64
	path          func(*service, turn) string // in the place of the three
	body          func(*service, turn) []byte // nil = none
}

// record is the record that an op of this kind with that path is about.
func (k *kind) record(path string) string {
	if !k.keyed {
		return ""
	}
	return strings.TrimSuffix(path, k.after)
}

// target is the path of an op of this kind.
func (k *kind) target(w *service, t turn) string {
	switch {
	case k.path != nil:
		return k.path(w, t)
	case k.id == nil:
		return k.before
	}
	return numbered(k.before, k.id(w, t), k.after)
}

// kinds is what the photo service can be asked for, by class.
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
	}
}

func accept(mediaType string) map[string]string { return map[string]string{"Accept": mediaType} }

// acceptText takes texts compressed, as every browser does.
func acceptText(mediaType string) map[string]string {
	return map[string]string{"Accept": mediaType, "Accept-Encoding": "gzip"}
}

// send is the header of a request with a body; every answer to one is JSON.
func send(mediaType string) map[string]string {
	return map[string]string{"Accept": "application/json", "Content-Type": mediaType}
}

// imageVariants is how often each variant of an image is asked for: pages and
// feeds show thumbnails, a photo's own page the original or a treatment of it.
func imageVariants() workloads.Mix {
	return workloads.Mix{
		{Class: "thumb", Percent: 70},
		{Class: "original", Percent: 15},
		{Class: "sharp", Percent: 10},
		{Class: "blur", Percent: 5},
	}
}

// imagePath picks a photo and the variant of it.
func (w *service) imagePath(t turn) string {
	return numbered("/img/", w.anyPhoto(t), w.suffixes[w.variants.Pick(t.draw(streamDetail))])
}
