package blob

import (
	"errors"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stagebench/stagebench/sut/photos"
)

// Every write to /dev/full fails with ENOSPC, as on a full disk. The test opens it through
// a symbolic link, so that the store removes the link and not the device.
func TestFullDisk(t *testing.T) {
	dir, err := OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := dir.Put(t.Context(), 1, photos.VariantThumb, []byte("old")); err != nil {
		t.Fatal(err)
	}
	dir.create = func(temporary string) (*os.File, error) {
		link := filepath.Join(temporary, "full")
		if err := os.Symlink("/dev/full", link); err != nil {
			return nil, err
		}
		return os.OpenFile(link, os.O_WRONLY, 0)
	}
	err = dir.Put(t.Context(), 1, photos.VariantThumb, []byte("new"))
	if !errors.Is(err, photos.ErrFull) || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("put on a full disk: %v", err)
	}
	server := httptest.NewServer(NewHandler(HandlerConfig{
		Dir: dir, Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry(),
	}))
	defer server.Close()
	c := NewClient(ClientConfig{Address: server.Listener.Addr().String()})
	defer c.Close()
	err = c.Put(t.Context(), 1, photos.VariantThumb, []byte("new"))
	if !errors.Is(err, photos.ErrFull) {
		t.Errorf("put on a node with a full disk: %v", err)
	}
	const want = "PUT blob 1/thumb: store unavailable: it is full: the node answered 507 Insufficient Storage"
	if err == nil || err.Error() != want {
		t.Errorf("error is %q, want %q", err, want)
	}
	if got, err := c.Get(t.Context(), 1, photos.VariantThumb); err != nil || string(got) != "old" {
		t.Errorf("the old object is now %q, error %v; want it unchanged after a failed write", got, err)
	}
	if left, err := os.ReadDir(dir.temporaryDir()); err != nil || len(left) != 0 {
		t.Errorf("the failed write left the files %v, error %v", left, err)
	}
}
