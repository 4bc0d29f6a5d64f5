package blob

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
)

// MaxBytes bounds the size of one object.
const MaxBytes = 16 << 20

// HandlerConfig configures a blob node.
type HandlerConfig struct {
	Dir *Dir
	Log *slog.Logger // receives disk errors and requests (LogRequests)
	// Registry gets stagebench_blob_requests_total, _bytes_total, _moved_total and, with a
	// capacity, _stored_bytes.
	Registry prometheus.Registerer

	Node   string     // this node's name
	Secret sut.Secret // every request must have it; "" = none needs it
	Copies int        // copies of each photo, on different nodes; 0 = 1
	// Seeded is the initial data set. The directory may hold the objects of all its
	// photos, but the node serves only the photos that are placed on it (SetMembers).
	// It serves every uploaded photo that it holds.
	Seeded sut.DataCounts
	// Capacity bounds the bytes of all objects that the node serves. A PUT above it gets
	// 507. 0 = no bound but the disk.
	Capacity int64
	// LogRequests selects the requests to log, with their ids: sut.LogFailed (the
	// default: status 500 or more), sut.LogAll or sut.LogNone.
	LogRequests string
}

// Handler is a blob node. SetMembers gives it the list of all blob nodes.
type Handler struct {
	config     HandlerConfig
	placements atomic.Pointer[placements] // never nil
	requests   *prometheus.CounterVec
	bytes      *prometheus.CounterVec
	in, out    prometheus.Counter
	moved      prometheus.Counter
	stored     atomic.Int64 // bytes of all served objects; 0 without a capacity

	membersMu sync.Mutex // held by SetMembers
	members   []string   // nodes that all objects are placed on; nil = never set
	moving    bool       // an announced change of members is not complete
}

// NewHandler returns a node that serves a directory:
//
//	PUT    /blob/{id}/{variant}   201; 413 above MaxBytes; 507 when the node is full
//	GET    /blob/{id}/{variant}   200 or 404; supports ranges
//	HEAD   /blob/{id}/{variant}   as GET, without the body
//	DELETE /blob/{id}/{variant}   204 or 404
//
// A request without the secret gets 401. Errors have a JSON body, {"error": ..., "hint": ...}.
func NewHandler(c HandlerConfig) *Handler {
	c.Copies = cmp.Or(c.Copies, 1)
	h := &Handler{
		config: c,
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stagebench_blob_requests_total", Help: "Finished requests for photo bytes, by method and status.",
		}, []string{"method", "code"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stagebench_blob_bytes_total", Help: "Photo bytes read (out) and written (in).",
		}, []string{"direction"}),
		moved: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "stagebench_blob_moved_total", Help: "Objects moved to other hosts after a change of blob hosts.",
		}),
	}
	h.placements.Store(&placements{})
	if c.Capacity > 0 {
		h.stored.Store(c.Dir.size(h.holds))
		c.Registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "stagebench_blob_stored_bytes", Help: "Photo bytes that the host serves, at most its capacity.",
		}, func() float64 { return float64(h.stored.Load()) }))
	}
	h.in, h.out = h.bytes.WithLabelValues("in"), h.bytes.WithLabelValues("out")
	c.Registry.MustRegister(h.requests, h.bytes, h.moved)
	return h
}

// sizeOf returns the size of an object that counts against the capacity, else 0.
func (h *Handler) sizeOf(id photos.ID, v photos.Variant) int64 {
	if h.config.Capacity == 0 || !h.holds(id) {
		return 0
	}
	size, _ := h.config.Dir.Head(context.Background(), id, v) // 0 on error
	return size
}

// ServeHTTP answers, counts and logs one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	code := h.serve(w, r)
	if h.config.LogRequests == sut.LogAll || code >= 500 && h.config.LogRequests != sut.LogNone {
		h.config.Log.Info("request", "request_id", r.Header.Get(sut.RequestIDHeader),
			"method", r.Method, "path", r.URL.Path, "status", code)
	}
	method := r.Method
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPut, http.MethodDelete:
	default:
		method = "other" // otherwise a client could create any number of time series
	}
	h.requests.WithLabelValues(method, strconv.Itoa(code)).Inc()
}

// serve answers one request and returns its status.
func (h *Handler) serve(w http.ResponseWriter, r *http.Request) int {
	if secret := h.config.Secret; secret != "" && !secret.Authorizes(r.Header.Get("Authorization")) {
		h.config.Log.Warn("refused a request without the secret of the system", "client", r.RemoteAddr,
			"method", r.Method, "path", r.URL.Path)
		return refuse(w, http.StatusUnauthorized, "the request does not have the secret of the system",
			"only hosts of the system read and write photo bytes: ask a web host instead")
	}
	id, v, ok := parsePath(r.URL.Path)
	if !ok {
		return refuse(w, http.StatusNotFound, "no such object name",
			"use /blob/{id}/{variant} with a decimal id and one of original, thumb, sharp, blur")
	}
	if r.Method != http.MethodPut && !h.holds(id) {
		if r.Method == http.MethodDelete {
			_ = h.config.Dir.Delete(r.Context(), id, v) // otherwise a later change of members would serve it again
		}
		return h.fail(w, photos.ErrNotFound)
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		return h.get(w, r, id, v)
	case http.MethodPut:
		return h.put(w, r, id, v)
	case http.MethodDelete:
		if err := h.delete(r.Context(), id, v); err != nil {
			return h.fail(w, err)
		}
		w.WriteHeader(http.StatusNoContent)
		return http.StatusNoContent
	}
	w.Header().Set("Allow", "DELETE, GET, HEAD, PUT")
	return refuse(w, http.StatusMethodNotAllowed, "method "+r.Method+" is not allowed",
		"use GET, HEAD, PUT or DELETE")
}

// delete removes an object and releases its bytes.
func (h *Handler) delete(ctx context.Context, id photos.ID, v photos.Variant) error {
	size := h.sizeOf(id, v)
	if err := h.config.Dir.Delete(ctx, id, v); err != nil {
		return err
	}
	h.stored.Add(-size)
	return nil
}

func (h *Handler) get(w http.ResponseWriter, r *http.Request, id photos.ID, v photos.Variant) int {
	file, size, err := h.config.Dir.Open(id, v)
	if err != nil {
		return h.fail(w, err)
	}
	defer file.Close()
	w.Header().Set("Content-Type", "image/jpeg")
	if r.Header.Get("Range") != "" {
		sent := &countingWriter{ResponseWriter: w, code: http.StatusOK}
		http.ServeContent(sent, r, "", time.Time{}, file)
		h.out.Add(float64(sent.bytes))
		return sent.code
	}
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	if r.Method == http.MethodHead {
		return http.StatusOK
	}
	// An error means that the client's connection failed. The status is already sent.
	sent, _ := io.Copy(w, file)
	h.out.Add(float64(sent))
	return http.StatusOK
}

func (h *Handler) put(w http.ResponseWriter, r *http.Request, id photos.ID, v photos.Variant) int {
	if r.ContentLength > MaxBytes {
		return tooLarge(w)
	}
	if r.ContentLength < 0 && h.config.Capacity > 0 {
		return refuse(w, http.StatusLengthRequired, "the request has no Content-Length",
			"send Content-Length: the node reserves that many bytes")
	}
	replaced := h.sizeOf(id, v)
	if !h.reserve(r.ContentLength - replaced) {
		return refuse(w, http.StatusInsufficientStorage, "the host is full",
			"delete objects, or give the host more capacity")
	}
	code := h.store(w, r, id, v)
	if h.config.Capacity > 0 && code != http.StatusCreated {
		h.stored.Add(replaced - r.ContentLength)
	}
	return code
}

// reserve counts bytes against the capacity. It returns false if they do not fit.
func (h *Handler) reserve(bytes int64) bool {
	if h.config.Capacity == 0 {
		return true
	}
	if h.stored.Add(bytes) > h.config.Capacity {
		h.stored.Add(-bytes)
		return false
	}
	return true
}

// store writes an object and returns the status of the response.
func (h *Handler) store(w http.ResponseWriter, r *http.Request, id photos.ID, v photos.Variant) (code int) {
	body := &bodyReader{from: http.MaxBytesReader(w, r.Body, MaxBytes)}
	size, err := h.config.Dir.Write(id, v, body)
	var over *http.MaxBytesError
	switch {
	case errors.As(err, &over):
		return tooLarge(w)
	case body.err != nil:
		return refuse(w, http.StatusBadRequest, "the body ended early", "send as many bytes as Content-Length says")
	case err != nil:
		return h.fail(w, err)
	}
	h.in.Add(float64(size))
	w.WriteHeader(http.StatusCreated)
	return http.StatusCreated
}

func tooLarge(w http.ResponseWriter) int {
	hint := "send at most " + strconv.Itoa(MaxBytes) + " bytes"
	return refuse(w, http.StatusRequestEntityTooLarge, "the object is too large", hint)
}

// fail writes the response for an error of the directory.
func (h *Handler) fail(w http.ResponseWriter, err error) int {
	switch {
	case errors.Is(err, photos.ErrNotFound):
		return refuse(w, http.StatusNotFound, "no such object", "it was never stored, or it was deleted")
	case errors.Is(err, photos.ErrFull):
		h.config.Log.Error("the disk is full", "error", err)
		return refuse(w, http.StatusInsufficientStorage, "the disk is full",
			"delete objects, or give the blob directory more space")
	}
	h.config.Log.Error("the blob directory failed", "error", err)
	w.Header().Set("Retry-After", "1")
	return refuse(w, http.StatusServiceUnavailable, "the blob directory failed", "read the log of the blob node")
}

// parsePath splits /blob/{id}/{variant}. It returns false for any other path.
func parsePath(path string) (photos.ID, photos.Variant, bool) {
	rest, found := strings.CutPrefix(path, "/blob/")
	id, variant, cut := strings.Cut(rest, "/")
	number, err := strconv.ParseUint(id, 10, 63)
	v := photos.Variant(variant)
	return photos.ID(number), v, found && cut && err == nil && number > 0 && v.Valid()
}

// refuse writes an error response and returns its status.
func refuse(w http.ResponseWriter, code int, message, hint string) int {
	body, _ := json.Marshal(sut.ErrorBody{Error: message, Hint: hint}) // never fails for two strings
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(code)
	// An error means that the client's connection failed.
	_, _ = w.Write(body)
	return code
}

// bodyReader keeps the error of a read of the request body. So store can distinguish a
// broken client connection (400) from a failed write to disk (503).
type bodyReader struct {
	from io.Reader
	err  error
}

func (b *bodyReader) Read(p []byte) (int, error) {
	n, err := b.from.Read(p)
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

// countingWriter records the status and the number of bytes that http.ServeContent sent.
type countingWriter struct {
	http.ResponseWriter
	code  int
	bytes int64
}

func (w *countingWriter) WriteHeader(code int) {
	w.code = code
	w.ResponseWriter.WriteHeader(code)
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err
}
