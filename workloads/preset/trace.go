package preset

import (
	"fmt"
	"hash/fnv"
	"io"
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
	sent, skipped, err = t.Keep(func(r trace.Record) string {
		switch r.Method {
		case http.MethodGet, http.MethodHead, http.MethodPost:
			return ""
		}
		return "method " + r.Method + " has no counterpart"
	})
	if err != nil {
		return nil, nil, nil, err
	}
	m := mapping{photos: map[string]int{}, clients: map[int]int{}, most: max(p.Photos, 1)}
	for r := range sent.All() {
		m.learn(r)
	}
	if len(m.photos) == 0 {
		return nil, nil, nil, fmt.Errorf("trace %s: none of its requests can be mapped to the photo service\n"+
			"want requests with GET, HEAD or POST", t.Name())
	}
	mix := workloads.Mix{{Class: Photo, Percent: 100}}
	users, err := newService(Shipped{Name: t.Name(), Mix: mix}, p, len(m.clients))
	if err != nil {
		return nil, nil, nil, fmt.Errorf("trace %s: %w", t.Name(), err)
	}
	return &replayed{
		service: users, trace: sent, mapping: m, kinds: kinds(), thumb: imageSuffix("thumb", p.ImageVersion),
	}, sent, skipped, nil
}

// mapping maps the paths and clients of a trace to photos and users, in order of first appearance. If there are more
// paths than photos, the others share the photos by their hashes; so its memory is bounded by the data set.
type mapping struct {
	photos  map[string]int // path -> index of the photo, from 1
	clients map[int]int    // client of the trace -> index
	most    int            // number of photos
}

// learn gives the path and the client of a request their photo and user.
func (m mapping) learn(r trace.Record) {
	if _, known := m.photos[r.Path]; !known && len(m.photos) < m.most {
		m.photos[r.Path] = 1 + len(m.photos)
	}
	if _, known := m.clients[r.Client]; !known {
		m.clients[r.Client] = len(m.clients)
	}
}

// photo returns the index of the photo of a path, from 1.
func (m mapping) photo(path string) int {
	if index, known := m.photos[path]; known {
		return index
	}
	hash := fnv.New64a()
	_, _ = io.WriteString(hash, path) // never fails
	return 1 + int(hash.Sum64()%uint64(m.most))
}

// replayed is a workload that replays a trace against the photo service. It embeds a
// service for the virtual users and their logins.
type replayed struct {
	*service
	mapping
	trace *trace.Trace
	kinds map[workloads.Class]kind
	thumb string // end of the path of an image
}

// Classes lists the classes to which requests are mapped.
func (w *replayed) Classes() []workloads.Class { return []workloads.Class{Photo, Image, Like} }

// Op returns the n-th op. After the last request of the trace the first follows again.
func (w *replayed) Op(n uint64) workloads.Op {
	r := w.trace.Record(n % w.trace.Len())
	photo := w.photoID(w.photo(r.Path))
	op := workloads.Op{
		Index: n, Class: Photo, Method: r.Method, Path: numbered("/api/photos/", photo, ""),
		User: w.clients[r.Client] % w.virtual,
	}
	switch {
	case r.Method == http.MethodPost:
		op.Class, op.Write, op.Path = Like, true, op.Path+"/like"
	case isPicture(r.Path):
		op.Class, op.Path = Image, numbered("/img/", photo, w.thumb)
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
