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

// A full disk is /dev/full, where every write fails as it does on one. It is
// reached by a symbolic link, so that what the store removes is the link.
func TestFullDisk(t *testing.T) {
	dir, err := OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := dir.Put(t.Context(), 1, photos.VariantThumb, []byte("old")); err != nil {
		t.Fatal(err)
	}
	dir.create = func(unfinished string) (*os.File, error) {
		link := filepath.Join(unfinished, "full")
		if err := os.Symlink("/dev/full", link); err != nil {
			return nil, err
		}
		return os.OpenFile(link, os.O_WRONLY, 0)
	}
	if err := dir.Put(t.Context(), 1, photos.VariantThumb, []byte("new")); !errors.Is(err, photos.ErrUnavailable) || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("put on a full disk: %v", err)
	}
	server := httptest.NewServer(NewHandler(HandlerConfig{Dir: dir, Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry()}))
	defer server.Close()
	c := NewClient(ClientConfig{Address: server.Listener.Addr().String()})
	defer c.Close()
	err = c.Put(t.Context(), 1, photos.VariantThumb, []byte("new"))
	if !errors.Is(err, photos.ErrUnavailable) {
		t.Errorf("put on a node with a full disk: %v", err)
	}
	if want := "PUT blob 1/thumb: store unavailable: the node answered 507 Insufficient Storage"; err == nil || err.Error() != want {
		t.Errorf("error is %q, want %q", err, want)
	}
	if got, err := c.Get(t.Context(), 1, photos.VariantThumb); err != nil || string(got) != "old" {
		t.Errorf("the old object reads %q, error %v: reads go on, and a failed write changes nothing", got, err)
	}
	if left, err := os.ReadDir(dir.unfinished()); err != nil || len(left) != 0 {
		t.Errorf("the failed write left %v, error %v", left, err)
	}
}
