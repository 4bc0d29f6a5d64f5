package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"io"
	"net/http"
	"net/http/cookiejar"
	"regexp"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/workloads/driver"
)

// scaling makes a rig a scaler.
type scaling struct{ *rig }

func (s scaling) Status(context.Context) ([]targets.NodeStatus, error) { return s.rig.Status(), nil }

// uploads is a user who uploads photos and knows the digests of their images.
type uploads struct {
	base    string
	client  *http.Client
	digests map[string][32]byte // by path of an image
}

// newUploads returns a user with a session and no photos yet.
func newUploads(t *testing.T, base string) *uploads {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	u := &uploads{base, &http.Client{Jar: jar, Timeout: 10 * time.Second, Transport: transport}, map[string][32]byte{}}
	login := fmt.Sprintf(`{"login":%q,"password":%q}`, sut.SeedLogin(7), sut.SeedPassword)
	response, err := u.client.Post(base+"/api/login", "application/json", bytes.NewReader([]byte(login)))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Fatalf("login: %s", response.Status)
	}
	return u
}

// add uploads new photos, all of them different.
func (u *uploads) add(t *testing.T, count int) {
	t.Helper()
	for range count {
		picture := image.NewGray(image.Rect(0, 0, 64, 64))
		for i := range 64 {
			picture.SetGray(i, len(u.digests)%64, color.Gray{uint8(7*len(u.digests) + i)})
		}
		var body bytes.Buffer
		if err := jpeg.Encode(&body, picture, nil); err != nil {
			t.Error(err)
		}
		response, err := u.client.Post(u.base+"/api/photos", "image/jpeg", &body)
		if err != nil {
			t.Error(err)
			return
		}
		var photo struct {
			ID json.Number `json:"id"`
		}
		err = json.NewDecoder(response.Body).Decode(&photo)
		if response.Body.Close(); err != nil || response.StatusCode != http.StatusCreated {
			t.Errorf("upload: %s, %v", response.Status, err)
			return
		}
		for _, variant := range []string{"thumb", "sharp", "original"} {
			path := fmt.Sprintf("/img/%s/%s.jpg", photo.ID, variant)
			u.digests[path] = u.get(t, path)
		}
	}
}

// get reads an image and returns its digest.
func (u *uploads) get(t *testing.T, path string) [32]byte {
	t.Helper()
	response, err := u.client.Get(u.base + path)
	if err != nil {
		t.Error(err)
		return [32]byte{}
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Errorf("%s: %s, %v", path, response.Status, err)
	}
	return sha256.Sum256(text)
}

// check reads all images and compares their digests.
func (u *uploads) check(t *testing.T) {
	t.Helper()
	for path, digest := range u.digests {
		if u.get(t, path) != digest {
			t.Errorf("%s has changed since its upload", path)
		}
	}
}

// Cache hosts, blob hosts and database replicas are added and removed under load. No request
// fails, the moved keys are counted, and every photo can still be read.
func TestTiersAreScaledUnderLoad(t *testing.T) {
	t.Parallel()
	for name, knobs := range engines() {
		for _, write := range []string{"write_around", "write_back"} {
			t.Run(name+"/"+write, func(t *testing.T) {
				t.Parallel()
				r := bringUpSized(t, sut.Caches, with(knobs, sut.Knobs{
					"web.hosts": "1", "blob.hosts": "1", "db.replicas": "1", "cache.write": write, "lb.cpu": "1",
				}), smallUnit-0.02)
				r.connect(t, shipped(t, "read-heavy"), driver.ClientConfig{Connections: 16})
				photos := newUploads(t, r.Endpoints()[0])
				photos.add(t, 20)
				const keysMoved = `[1-9][\d,]* of [1-9][\d,]* keys moved to other hosts\n`
				r.scaleUnderLoad(t, "cache", 3, `^cache has 3 hosts after \S+: `+keysMoved+
					`hit ratio of the web hosts: 0\.\d\d in the 500ms before, 0\.\d\d in the 500ms after\n$`)
				r.scaleUnderLoad(t, "cache", 1, `^cache has 1 host after \S+: `+keysMoved)
				if write == "write_around" { // blob hosts and replicas do not depend on the cache strategy
					r.scaleBlobsAndReplicas(t, photos)
				}
				if topology := r.Topology(); topology.Digest() != r.topology.Digest() {
					t.Errorf("hosts %+v, want those of the start", topology.Hosts)
				}
			})
		}
	}
}

// scaleBlobsAndReplicas adds blob hosts and database replicas and removes them again.
func (r *rig) scaleBlobsAndReplicas(t *testing.T, photos *uploads) {
	t.Helper()
	r.scaleUnderLoad(t, "blob", 3, `^blob has 3 hosts after \S+: [1-9][\d,]* objects moved to other hosts\n$`)
	photos.check(t)
	photos.add(t, 20)
	r.scaleUnderLoad(t, "blob", 1, `^blob has 1 host after \S+: [1-9][\d,]* objects moved to other hosts\n$`)
	photos.check(t)
	r.scaleUnderLoad(t, "replica", 3, `^replica has 3 hosts after \S+\n$`)
	r.scaleUnderLoad(t, "replica", 1, `^replica has 1 host after \S+\n$`)
	r.awaitCopies(t)
}

// scaleUnderLoad changes the number of hosts of a tier under a constant rate. No request may
// fail. want is a regular expression for the output of the command, which is returned.
func (r *rig) scaleUnderLoad(t *testing.T, tier string, hosts int, want string) string {
	t.Helper()
	var out bytes.Buffer
	step := r.loadWhile(t, 40, 300*time.Millisecond, time.Second, func() {
		if err := scale(t.Context(), &out, scaling{r}, tier, hosts, 500*time.Millisecond); err != nil {
			t.Error(err)
		}
	})
	t.Logf("%s%d requests, causes %v", out.String(), step.Ledger.Sent, step.Causes)
	if !regexp.MustCompile(want).MatchString(out.String()) {
		t.Errorf("output %q, want %s", out.String(), want)
	}
	if failed(step) > 0 || step.Ledger.SessionLost > 0 {
		t.Errorf("scale %s %d: ledger %+v causes %v, want no failed request", tier, hosts, step.Ledger, step.Causes)
		for _, e := range step.Events {
			t.Logf("%v %s", time.Duration(e.AtNS).Round(time.Millisecond), e.Text)
		}
	}
	return out.String()
}
