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
	// the action at its end. A user's profile has a version too, but nothing here
	// changes it, so that no answer about it could be told to be stale; the record
	// of an upload is named by the answer.
	keyed  bool
	action string
	path   func(*service, turn) string
	body   func(*service, turn) []byte // nil = none
}

// record is the record that an op of this kind with that path is about.
func (k *kind) record(path string) string {
	if !k.keyed {
		return ""
	}
	return strings.TrimSuffix(path, k.action)
}

// kinds is what the photo service can be asked for, by class.
func kinds() map[workloads.Class]kind {
	html, jpeg, json := acceptText("text/html"), accept("image/jpeg"), acceptText("application/json")
	sendJSON, sendJPEG := send("application/json"), send("image/jpeg")
	return map[workloads.Class]kind{
		Page: {method: http.MethodGet, header: html, path: func(*service, turn) string {
			return "/"
		}},
		Feed: {method: http.MethodGet, header: json, path: func(w *service, t turn) string {
			return numbered("/api/feed?user=", w.anyUser(t), "&limit=20")
		}},
		Photo: {method: http.MethodGet, header: json, keyed: true, path: func(w *service, t turn) string {
			return numbered("/api/photos/", w.anyPhoto(t), "")
		}},
		Image: {method: http.MethodGet, header: jpeg, path: func(w *service, t turn) string {
			return numbered("/img/", w.anyPhoto(t), w.variant(t))
		}},
		User: {method: http.MethodGet, header: json, path: func(w *service, t turn) string {
			return numbered("/api/users/", w.anyUser(t), "")
		}},
		Me: {method: http.MethodGet, header: json, path: func(*service, turn) string {
			return "/api/me"
		}},
		Like: {method: http.MethodPost, header: json, keyed: true, action: "/like", path: func(w *service, t turn) string {
			return numbered("/api/photos/", w.anyPhoto(t), "/like")
		}},
		Comment: {method: http.MethodPost, header: sendJSON, keyed: true, action: "/comments", path: func(w *service, t turn) string {
			return numbered("/api/photos/", w.anyPhoto(t), "/comments")
		}, body: func(w *service, t turn) []byte {
			return w.texts.comment(t)
		}},
		Rename: {method: http.MethodPatch, header: sendJSON, byOwner: true, keyed: true, path: func(w *service, t turn) string {
			return numbered("/api/photos/", w.owners[t.by].photo(t), "")
		}, body: func(w *service, t turn) []byte {
			return w.texts.title(t)
		}},
		Upload: {method: http.MethodPost, header: sendJPEG, path: func(w *service, t turn) string {
			return w.texts.uploadPath(t)
		}, body: func(w *service, t turn) []byte {
			return w.uploads[t.pick(streamKey, len(w.uploads))]
		}},
		Follow: {method: http.MethodPost, header: json, path: func(w *service, t turn) string {
			return numbered("/api/users/", w.otherUser(t), "/follow")
		}},
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

// variant picks the rest of an image's path.
func (w *service) variant(t turn) string {
	return w.suffixes[w.variants.Pick(t.draw(streamDetail))]
}
