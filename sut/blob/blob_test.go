package blob_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/blob"
	"github.com/stagebench/stagebench/sut/blob/blobtest"
	"github.com/stagebench/stagebench/sut/photos"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestDirConforms(t *testing.T) {
	blobtest.Run(t, func(t *testing.T) blobtest.Store { return openDir(t) })
}

func TestClientConforms(t *testing.T) {
	blobtest.Run(t, func(t *testing.T) blobtest.Store {
		server, _ := serve(t, openDir(t))
		return client(t, server.Listener.Addr().String())
	})
}

// Each cell uses a copy of a template, made of hard links. Changes to the copy must not
// change the template.
func TestLinkedCopyIsIndependent(t *testing.T) {
	template, copied := t.TempDir(), t.TempDir()
	dir, err := blob.OpenDir(template)
	if err != nil {
		t.Fatal(err)
	}
	put(t, dir, 1, "seeded")
	put(t, dir, 2, "seeded")
	if err := linkTree(template, copied); err != nil {
		t.Fatal(err)
	}
	cell, err := blob.OpenDir(copied)
	if err != nil {
		t.Fatal(err)
	}
	put(t, cell, 1, "overwritten")
	if err := cell.Delete(t.Context(), 2, photos.VariantThumb); err != nil {
		t.Fatal(err)
	}
	for id := photos.ID(1); id <= 2; id++ {
		if got, err := dir.Get(t.Context(), id, photos.VariantThumb); err != nil || string(got) != "seeded" {
			t.Errorf("object %d of the template is now %q, error %v", id, got, err)
		}
	}
}

func TestFillLinksTheBytesOfOneImage(t *testing.T) {
	counts := sut.DataCounts{Users: 10, Photos: 400, Comments: 1, Follows: 10, Images: 4}
	data := photos.NewDataset(counts, 1)
	dir := openDir(t)
	rendered := map[int]int{} // calls by pool image
	err := blob.Fill(t.Context(), dir, data.Images(), func(i int) (map[photos.Variant][]byte, error) {
		rendered[i]++
		variants := map[photos.Variant][]byte{}
		for _, v := range photos.AllVariants() {
			variants[v] = fmt.Appendf(nil, "image %d, %s", i, v)
		}
		return variants, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range counts.Images {
		if rendered[i] != 1 {
			t.Errorf("pool image %d was rendered %d times, want 1", i, rendered[i])
		}
	}
	for photo, i := range data.Images() {
		for _, v := range photos.AllVariants() {
			got, err := dir.Get(t.Context(), photo, v)
			if want := fmt.Sprintf("image %d, %s", i, v); err != nil || string(got) != want {
				t.Fatalf("photo %d %s: %q, error %v; want %q", photo, v, got, err, want)
			}
		}
	}
}

func TestFillStopsOnErrors(t *testing.T) {
	data := photos.NewDataset(sut.DataCounts{Users: 1, Photos: 1, Images: 1}, 1)
	broken := errors.New("broken picture")
	fail := func(int) (map[photos.Variant][]byte, error) { return nil, broken }
	if err := blob.Fill(t.Context(), openDir(t), data.Images(), fail); !errors.Is(err, broken) {
		t.Errorf("got %v, want the error of the image", err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := blob.Fill(cancelled, openDir(t), data.Images(), fail); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context cancelled", err)
	}
}

// A node that was killed during a PUT leaves a temporary file. The next OpenDir must
// remove it.
func TestOpenRemovesTemporaryFiles(t *testing.T) {
	root := t.TempDir()
	if _, err := blob.OpenDir(root); err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(root, "unfinished", "put-123")
	if err := os.WriteFile(left, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := blob.OpenDir(root); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the temporary file is still there: %v", err)
	}
}

func TestHandlerRefusals(t *testing.T) {
	server, registry := serve(t, openDir(t))
	for _, test := range []struct {
		name, method, path string
		body               io.Reader
		header             map[string]string
		want               int
	}{
		{"unknown object", "GET", "/blob/77/thumb", nil, nil, 404},
		{"unknown object, head", "HEAD", "/blob/77/thumb", nil, nil, 404},
		{"unknown variant", "GET", "/blob/77/poster", nil, nil, 404},
		{"id is text", "GET", "/blob/abc/thumb", nil, nil, 404},
		{"id is negative", "GET", "/blob/-1/thumb", nil, nil, 404},
		{"id is zero", "GET", "/blob/0/thumb", nil, nil, 404},
		{"id is huge", "GET", "/blob/9223372036854775808/thumb", nil, nil, 404},
		{"path traversal", "GET", "/blob/1/..%2f..%2fetc%2fpasswd", nil, nil, 404},
		{"other path", "GET", "/", nil, nil, 404},
		{"wrong method", "POST", "/blob/77/thumb", strings.NewReader("x"), nil, 405},
		{"made-up method", "GRAB", "/blob/77/thumb", nil, nil, 405},
		{"too large", "PUT", "/blob/77/thumb", bytes.NewReader(make([]byte, blob.MaxBytes+1)), nil, 413},
		{
			"too large, no length", "PUT", "/blob/77/thumb",
			struct{ io.Reader }{bytes.NewReader(make([]byte, blob.MaxBytes+1))},
			nil, 413,
		},
		{"delete unknown", "DELETE", "/blob/77/thumb", nil, nil, 404},
	} {
		t.Run(test.name, func(t *testing.T) {
			request, err := http.NewRequestWithContext(t.Context(), test.method, server.URL+test.path, test.body)
			if err != nil {
				t.Fatal(err)
			}
			request.Header.Set("Authorization", secret.Bearer())
			response, err := server.Client().Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			if response.StatusCode != test.want {
				t.Errorf("status %d, want %d", response.StatusCode, test.want)
			}
			if test.want == 405 && response.Header.Get("Allow") == "" {
				t.Error("405 without Allow")
			}
			var body struct{ Error, Hint string }
			err = json.NewDecoder(response.Body).Decode(&body)
			if test.method != "HEAD" && (err != nil || body.Error == "" || body.Hint == "") {
				t.Errorf("body is not an error with a hint: %+v, %v", body, err)
			}
		})
	}
	if counted := countedMethods(t, registry); counted["GRAB"] != 0 || counted["other"] == 0 || counted["GET"] == 0 {
		t.Errorf("counted %v: want known methods by name and all others as \"other\"", counted)
	}
}

func TestRanges(t *testing.T) {
	dir := openDir(t)
	put(t, dir, 3, "0123456789")
	server, _ := serve(t, dir)
	for _, test := range []struct {
		header string
		code   int
		body   string
	}{{"bytes=2-4", 206, "234"}, {"bytes=-3", 206, "789"}, {"bytes=20-", 416, ""}} {
		request, err := http.NewRequestWithContext(t.Context(), "GET", server.URL+"/blob/3/thumb", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Range", test.header)
		request.Header.Set("Authorization", secret.Bearer())
		response, err := server.Client().Do(request)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || response.StatusCode != test.code || test.code == 206 && string(body) != test.body {
			t.Errorf("%s: %d %q, error %v", test.header, response.StatusCode, body, err)
		}
	}
}

// A client that disconnects during a PUT must leave no object.
func TestBodyThatEndsEarly(t *testing.T) {
	dir := openDir(t)
	server, _ := serve(t, dir)
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "PUT /blob/8/thumb HTTP/1.1\r\nHost: x\r\nAuthorization: %s\r\nContent-Length: 100\r\n\r\nonly this",
		secret.Bearer())
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil || !strings.Contains(string(answer), "400 Bad Request") {
		t.Errorf("answer %q, error %v", answer, err)
	}
	if _, err := dir.Head(t.Context(), 8, photos.VariantThumb); !errors.Is(err, photos.ErrNotFound) {
		t.Errorf("head of a partial object: %v, want not found", err)
	}
}

func TestDeadNodeIsUnavailable(t *testing.T) {
	server, _ := serve(t, openDir(t))
	c := client(t, server.Listener.Addr().String())
	if err := c.Put(t.Context(), 1, photos.VariantThumb, []byte("x")); err != nil {
		t.Fatal(err)
	}
	server.Close()
	if _, err := c.Get(t.Context(), 1, photos.VariantThumb); !errors.Is(err, photos.ErrUnavailable) {
		t.Errorf("get: %v", err)
	}
	if err := c.Put(t.Context(), 1, photos.VariantThumb, []byte("x")); !errors.Is(err, photos.ErrUnavailable) {
		t.Errorf("put: %v", err)
	}
	if _, err := c.Head(t.Context(), 1, photos.VariantThumb); !errors.Is(err, photos.ErrUnavailable) {
		t.Errorf("head: %v", err)
	}
	if err := c.Delete(t.Context(), 1, photos.VariantThumb); !errors.Is(err, photos.ErrUnavailable) {
		t.Errorf("delete: %v", err)
	}
}

// A node that accepts connections and never responds must not block a caller for longer
// than the timeout of the client.
func TestHangingNodeIsUnavailable(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	c, err := blob.NewRing(blob.RingConfig{
		Peers: []sut.Peer{{Node: "blob-1", Address: listener.Addr().String()}}, Registry: prometheus.NewRegistry(),
	}.WithTimeout(50 * time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if _, err := c.Get(t.Context(), 1, photos.VariantThumb); !errors.Is(err, photos.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

// A restart of the node closes the idle connections of its clients. No call of any method
// may fail because of that.
func TestRestartFailsNoCall(t *testing.T) {
	dir := openDir(t)
	put(t, dir, 1, "x")
	server, _ := serve(t, dir)
	c := client(t, server.Listener.Addr().String())
	for range 10 {
		if err := c.Put(t.Context(), 2, photos.VariantThumb, []byte("y")); err != nil {
			t.Fatal(err)
		}
		server.CloseClientConnections()
		if _, err := c.Get(t.Context(), 1, photos.VariantThumb); err != nil {
			t.Fatal(err)
		}
		server.CloseClientConnections()
	}
}

func openDir(t *testing.T) *blob.Dir {
	t.Helper()
	dir, err := blob.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func put(t *testing.T, dir *blob.Dir, id photos.ID, text string) {
	t.Helper()
	if err := dir.Put(t.Context(), id, photos.VariantThumb, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

// serve starts a node on a directory.
func serve(t *testing.T, dir *blob.Dir) (*httptest.Server, *prometheus.Registry) {
	t.Helper()
	registry := prometheus.NewRegistry()
	server := httptest.NewServer(blob.NewHandler(blob.HandlerConfig{
		Dir: dir, Log: slog.New(slog.DiscardHandler), Registry: registry, Secret: secret,
	}))
	t.Cleanup(server.Close)
	return server, registry
}

// secret is that of the system in these tests.
const secret sut.Secret = "of the system"

// Whoever does not have the secret of the system reads no photo bytes and changes none.
func TestNodeNeedsTheSecret(t *testing.T) {
	server, _ := serve(t, openDir(t))
	ours := client(t, server.Listener.Addr().String())
	if err := ours.Put(t.Context(), 1, photos.VariantThumb, []byte("jpeg")); err != nil {
		t.Fatal(err)
	}
	for _, wrong := range []sut.Secret{"", "of another system"} {
		stranger := blob.NewClient(blob.ClientConfig{Address: server.Listener.Addr().String(), Secret: wrong})
		defer stranger.Close()
		if _, err := stranger.Get(t.Context(), 1, photos.VariantThumb); err == nil || !strings.Contains(err.Error(), "401") {
			t.Errorf("with secret %q: GET: %v", string(wrong), err)
		}
		if err := errors.Join(stranger.Put(t.Context(), 1, photos.VariantThumb, []byte("other")),
			stranger.Delete(t.Context(), 1, photos.VariantThumb)); err == nil || strings.Count(err.Error(), "401") != 2 {
			t.Errorf("with secret %q: PUT and DELETE: %v", string(wrong), err)
		}
	}
	if data, err := ours.Get(t.Context(), 1, photos.VariantThumb); err != nil || string(data) != "jpeg" {
		t.Errorf("afterwards the object is %q, %v", data, err)
	}
}

func client(t *testing.T, address string) *blob.Client {
	c := blob.NewClient(blob.ClientConfig{Address: address, Secret: secret})
	t.Cleanup(c.Close)
	return c
}

// countedMethods returns the requests counted so far, by method.
func countedMethods(t *testing.T, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counted := map[string]float64{}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			for _, label := range metric.GetLabel() {
				if label.GetName() == "method" {
					counted[label.GetValue()] += metric.GetCounter().GetValue()
				}
			}
		}
	}
	return counted
}

// linkTree copies a directory by hard links.
func linkTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			return os.MkdirAll(filepath.Join(to, name), 0o755)
		}
		return os.Link(path, filepath.Join(to, name))
	})
}
