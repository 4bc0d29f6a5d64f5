package preset

import (
	"fmt"
	"net/http"
	"path"
	"strings"

	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/trace"
)

// FromTrace returns a workload that replays the requests of another site against the
// photo service. Each path becomes a photo, and each client address a virtual user;
// if there are more of them than photos or users, some share one. A GET of a picture
// becomes a GET of an image. Any other GET becomes a GET of a photo. HEAD is mapped
// like GET. POST becomes a like. Requests with other methods are skipped.
//
// sent has the requests that are not skipped: op n of the workload is its record n,
// and its Schedule has the times of the ops. skipped counts the others by reason.
func FromTrace(
	t *trace.Trace, p Params,
) (w workloads.Workload, sent *trace.Trace, skipped map[string]int64, err error) {
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
		return nil, nil, nil, fmt.Errorf("trace %s: none of its requests can be mapped to the photo service\n"+
			"want requests with GET, HEAD or POST", t.Name())
	}
	users, err := newService(Shipped{Name: t.Name(), Mix: workloads.Mix{{Class: Photo, Percent: 100}}}, p, len(clients))
	if err != nil {
		return nil, nil, nil, fmt.Errorf("trace %s: %w", t.Name(), err)
	}
	return &replayed{
		service: users, records: sent.Records(), photos: photos, clients: clients, kinds: kinds(),
	}, sent, skipped, nil
}

// replayed is a workload that replays a trace against the photo service. It embeds a
// service for the virtual users and their logins.
type replayed struct {
	*service
	records []trace.Record
	photos  map[string]int // path -> index of the photo
	clients map[int]int    // client of the trace -> index by first appearance in records
	kinds   map[workloads.Class]kind
}

// Classes lists the classes to which requests are mapped.
func (w *replayed) Classes() []workloads.Class { return []workloads.Class{Photo, Image, Like} }

// Op returns the n-th op. After the last request of the trace the first follows again.
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

// isPicture reports whether a path has the extension of a picture.
func isPicture(target string) bool {
	target, _, _ = strings.Cut(target, "?")
	switch strings.ToLower(path.Ext(target)) {
	case ".jpg", ".jpeg", ".png", ".gif", ".ico", ".webp", ".svg", ".bmp":
		return true
	}
	return false
}
