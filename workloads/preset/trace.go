package preset

import (
	"fmt"
	"net/http"
	"path"
	"strings"

	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/trace"
)

// FromTrace returns a workload that asks the photo service for what a trace asked
// another site for: each path becomes a photo, each client address a virtual
// user, as long as there are enough of them, and methods are kept. GET of a picture is an image, any other GET a
// photo's record, HEAD the same without the body, POST a like. What the service
// has no such operation for is skipped.
//
// The ops are in step with the records of the trace that is returned, whose Schedule has
// their times. Skipped counts the other requests by reason.
func FromTrace(t *trace.Trace, p Params) (w workloads.Workload, sent *trace.Trace, skipped map[string]int64, err error) {
	sent, skipped = t.Keep(func(r trace.Record) string {
		switch r.Method {
		case http.MethodGet, http.MethodHead, http.MethodPost:
			return ""
		}
		return "method " + r.Method + " has no counterpart"
	})
	photos, clients := map[string]int{}, map[int]int{}
	for _, r := range sent.Records() {
		if _, known := photos[r.Path]; !known {
			photos[r.Path] = 1 + len(photos)%max(p.Photos, 1)
		}
		if _, known := clients[r.Client]; !known {
			clients[r.Client] = len(clients)
		}
	}
	if len(photos) == 0 {
		return nil, nil, nil, fmt.Errorf("trace %s: no request of it has a counterpart in the photo service\nwant requests by GET, HEAD or POST", t.Name())
	}
	users, err := newService(Shipped{Name: t.Name(), Mix: workloads.Mix{{Class: Photo, Percent: 100}}}, p, len(clients))
	if err != nil {
		return nil, nil, nil, fmt.Errorf("trace %s: %w", t.Name(), err)
	}
	return &replayed{service: users, records: sent.Records(), photos: photos, clients: clients, kinds: kinds()}, sent, skipped, nil
}

// replayed is a trace as a workload of the photo service, whose users it has.
type replayed struct {
	*service
	records []trace.Record
	photos  map[string]int // path -> index of the photo
	clients map[int]int    // client of the trace -> by first appearance among those that are sent
	kinds   map[workloads.Class]kind
}

// Classes lists the classes that a request can become.
func (w *replayed) Classes() []workloads.Class { return []workloads.Class{Photo, Image, Like} }

// Op returns the n-th op; after the last request of the trace comes the first.
func (w *replayed) Op(n uint64) workloads.Op {
	r := &w.records[n%uint64(len(w.records))]
	photo := w.photoID(w.photos[r.Path])
	op := workloads.Op{
		Index: n, Class: Photo, Method: r.Method, Path: numbered("/api/photos/", photo, ""),
		User: w.clients[r.Client] % w.virtual,
	}
	switch {
	case r.Method == http.MethodPost:
		op.Class, op.Write, op.Path = Like, true, op.Path+"/like"
	case isPicture(r.Path):
		op.Class, op.Path = Image, numbered("/img/", photo, "/thumb.jpg")
	}
	k := w.kinds[op.Class]
	op.Header, op.Record = k.header, k.record(op.Path)
	return op
}

// isPicture reports whether a path names a picture by its extension.
func isPicture(target string) bool {
	target, _, _ = strings.Cut(target, "?")
	switch strings.ToLower(path.Ext(target)) {
	case ".jpg", ".jpeg", ".png", ".gif", ".ico", ".webp", ".svg", ".bmp":
		return true
	}
	return false
}
