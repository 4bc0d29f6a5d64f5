package preset_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/preset"
)

var update = flag.Bool("update", false, "write the golden files again")

const users, photos, virtual = 1000, 3000, 256

// ownerOf returns the owner of a photo. Some users own many photos, and some own none.
func ownerOf(photo int) int { return 1 + photo*photo%users }

// celebrities returns users who own photos.
func celebrities() []int { return []int{2, 5, 10, 26} }

func params() preset.Params {
	return preset.Params{
		Seed: 1, Users: users, Photos: photos,
		Login:   func(id int) (string, string) { return "user-" + strconv.Itoa(id), `a "secret"` },
		PhotoID: func(photo int) uint64 { return uint64(photo) },
		Owner:   ownerOf,
		// Not the version of the photo service: a test fails if it is not taken from here.
		ImageVersion: 3,
		Celebrities:  celebrities(),
		Uploads: [][]byte{
			[]byte("\xff\xd8 one \xff\xd9"), []byte("\xff\xd8 two \xff\xd9"), []byte("\xff\xd8 three \xff\xd9"),
		},
	}
}

func load(t testing.TB, name string, p preset.Params) workloads.Workload {
	t.Helper()
	w, err := preset.New(name, p)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// shares returns the mix of a built-in workload.
func shares(w workloads.Workload) workloads.Mix {
	all := preset.Catalogue()
	return all[slices.IndexFunc(all, func(s preset.Shipped) bool { return s.Name == w.Name() })].Mix
}

// each runs a test with every built-in workload.
func each(t *testing.T, test func(t *testing.T, w workloads.Workload)) {
	for _, s := range preset.Catalogue() {
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel()
			test(t, load(t, s.Name, params()))
		})
	}
}

// userID returns the id of the seeded user of a virtual user.
func userID(v int) int { return 1 + v*users/virtual }

func TestSharesAreThoseOfTheLadder(t *testing.T) {
	t.Parallel()
	want := map[string]string{
		"read-heavy":   "feed 30, photo 25, image 29, user 5, me 5, page 1, like 3, comment 1.4, upload 0.1, follow 0.5",
		"write-heavy":  "feed 15, photo 15, image 15, me 5, like 24, comment 19, rename 3, upload 1, follow 3",
		"upload-heavy": "feed 20, photo 20, image 25, user 5, me 5, like 5, upload 20",
		"slow-upload":  "feed 25, photo 21, image 24, user 4.5, me 4.5, page 1, upload 20",
		"static-heavy": "image 80, asset 8, page 2, feed 4, photo 4, me 2",
		"celebrity":    "feed 15, photo 15, image 15, me 5, like 25, comment 20, upload 1, follow 4",
		"session-heavy": "feed 24, photo 20, image 22, me 12, user 3, like 7, comment 3.5, follow 1, login 5, " +
			"logout 2.5",
		"ycsb-a": "photo 50, rename 50", "ycsb-b": "photo 95, rename 5", "ycsb-c": "photo 100",
		"ycsb-d": "photo 95, upload 5", "ycsb-e": "feed 95, upload 5", "ycsb-f": "photo 50, like 50",
	}
	got := map[string]string{}
	for _, s := range preset.Catalogue() {
		got[s.Name] = s.Mix.String()
		if err := s.Mix.Validate(); err != nil {
			t.Errorf("%s: %v", s.Name, err)
		}
		if s.Doc == "" || strings.Contains(s.Doc, "\n") {
			t.Errorf("%s: the description %q is not one line", s.Name, s.Doc)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// checkChiSquare compares counts with shares in percent, at significance level 0.001
// (Wilson and Hilferty's formula). Seeds are fixed, so a test always passes or always
// fails.
func checkChiSquare(t *testing.T, counts map[string]int, percent map[string]float64) {
	t.Helper()
	var total, chi float64
	for name, c := range counts {
		total += float64(c)
		if percent[name] == 0 {
			t.Errorf("%d ops of %s, which has no share", c, name)
		}
	}
	for name, p := range percent {
		want := total * p / 100
		chi += (float64(counts[name]) - want) * (float64(counts[name]) - want) / want
	}
	df := float64(len(percent) - 1)
	if bound := df * math.Pow(1-2/(9*df)+3.09*math.Sqrt(2/(9*df)), 3); chi > bound {
		t.Errorf("chi-square %.1f, want at most %.1f: counts %v, shares %v", chi, bound, counts, percent)
	}
}

func TestMixIsKept(t *testing.T) {
	each(t, func(t *testing.T, w workloads.Workload) {
		counts, variants, assets := map[string]int{}, map[string]int{}, map[string]int{}
		for n := range uint64(200_000) {
			op := w.Op(n)
			counts[string(op.Class)]++
			switch op.Class {
			case preset.Image:
				variants[strings.TrimSuffix(filepath.Base(op.Path), ".jpg?v=3")]++
			case preset.Asset:
				assets[filepath.Base(op.Path)]++
			}
		}
		percent := map[string]float64{}
		for _, s := range shares(w) {
			percent[string(s.Class)] = s.Percent
		}
		checkChiSquare(t, counts, percent)
		checkChiSquare(t, variants, map[string]float64{"thumb": 70, "original": 15, "sharp": 10, "blur": 5})
		if len(assets) > 0 {
			checkChiSquare(t, assets, map[string]float64{"app.css": 100. / 3, "app.js": 100. / 3, "icon.svg": 100. / 3})
		}
	})
}

// patterns returns a pattern of method and path for each class. Ids are named groups.
func patterns() map[workloads.Class]*regexp.Regexp {
	compile := func(pattern string) *regexp.Regexp { return regexp.MustCompile("^" + pattern + "$") }
	return map[workloads.Class]*regexp.Regexp{
		preset.Page:    compile(`GET /`),
		preset.Feed:    compile(`GET /api/feed\?user=(?P<user>\d+)&limit=20`),
		preset.Photo:   compile(`GET /api/photos/(?P<photo>\d+)`),
		preset.Image:   compile(`GET /img/(?P<photo>\d+)/(thumb|original|sharp|blur)\.jpg\?v=3`),
		preset.Asset:   compile(`GET /static/(app\.css|app\.js|icon\.svg)`),
		preset.User:    compile(`GET /api/users/(?P<user>\d+)`),
		preset.Me:      compile(`GET /api/me`),
		preset.Like:    compile(`POST /api/photos/(?P<photo>\d+)/like`),
		preset.Comment: compile(`POST /api/photos/(?P<photo>\d+)/comments`),
		preset.Rename:  compile(`PATCH /api/photos/(?P<photo>\d+)`),
		preset.Upload:  compile(`POST /api/photos\?title=[A-Za-z+%0-9]+`),
		preset.Follow:  compile(`POST /api/users/(?P<user>\d+)/follow`),
		preset.Login:   compile(`POST /api/login`),
		preset.Logout:  compile(`POST /api/logout`),
	}
}

// id returns the id in an op's path with this group name, false when its pattern has
// no such group.
func id(t *testing.T, pattern *regexp.Regexp, op workloads.Op, group string) (int, bool) {
	t.Helper()
	match := pattern.FindStringSubmatch(op.Method + " " + op.Path)
	if match == nil {
		t.Fatalf("op %d: %s %s does not match the pattern of %s", op.Index, op.Method, op.Path, op.Class)
	}
	i := pattern.SubexpIndex(group)
	if i < 0 {
		return 0, false
	}
	n, err := strconv.Atoi(match[i])
	if err != nil {
		t.Fatal(err)
	}
	return n, true
}

func TestOpsAreWellFormed(t *testing.T) {
	each(t, func(t *testing.T, w workloads.Workload) {
		patterns := patterns()
		for n := range uint64(20_000) {
			op := w.Op(n)
			if op.Index != n {
				t.Fatalf("op %d has the index %d", n, op.Index)
			}
			if op.User < 0 || op.User >= w.Users() {
				t.Fatalf("op %d is sent by virtual user %d of %d", n, op.User, w.Users())
			}
			if p, found := id(t, patterns[op.Class], op, "photo"); found && (p < 1 || p > photos) {
				t.Fatalf("op %d: photo %d", n, p)
			}
			if u, found := id(t, patterns[op.Class], op, "user"); found && (u < 1 || u > users) {
				t.Fatalf("op %d: user %d", n, u)
			}
			checkRequest(t, op)
		}
	})
}

// checkRequest checks that net/http accepts an op, and that headers and body fit its
// class.
func checkRequest(t *testing.T, op workloads.Op) {
	t.Helper()
	if _, err := http.NewRequest(op.Method, "http://127.0.0.1:8080"+op.Path, bytes.NewReader(op.Body)); err != nil {
		t.Fatalf("op %d: %v", op.Index, err)
	}
	if op.Write != (op.Method != http.MethodGet) {
		t.Fatalf("op %d: %s with write %v", op.Index, op.Method, op.Write)
	}
	if op.Header["Accept"] == "" {
		t.Fatalf("op %d: no Accept", op.Index)
	}
	field := map[workloads.Class]string{preset.Comment: "text", preset.Rename: "title"}[op.Class]
	switch {
	case field != "":
		var body map[string]string
		if err := json.Unmarshal(op.Body, &body); err != nil {
			t.Fatalf("op %d: %s: %v", op.Index, op.Body, err)
		}
		if len(body) != 1 || !strings.HasSuffix(body[field], fmt.Sprintf(" #%d", op.Index)) {
			t.Fatalf("op %d: body %s", op.Index, op.Body)
		}
		if op.Header["Content-Type"] != "application/json" {
			t.Fatalf("op %d: header %v", op.Index, op.Header)
		}
	case op.Class == preset.Upload:
		if op.Header["Content-Type"] != "image/jpeg" || !bytes.HasPrefix(op.Body, []byte("\xff\xd8")) {
			t.Fatalf("op %d: header %v, body %q", op.Index, op.Header, op.Body)
		}
	case op.Class == preset.Login: // see TestLogins
	case op.Body != nil || op.Header["Content-Type"] != "":
		t.Fatalf("op %d: class %s has the body %q", op.Index, op.Class, op.Body)
	}
}

func TestOnlyOwnersRename(t *testing.T) {
	t.Parallel()
	w := load(t, "write-heavy", params())
	pattern := patterns()[preset.Rename]
	renamed, senders := map[int]int{}, map[int]int{} // renames by photo, and by virtual user
	for n := range uint64(200_000) {
		op := w.Op(n)
		if op.Class != preset.Rename {
			continue
		}
		photo, _ := id(t, pattern, op, "photo")
		if owner := ownerOf(photo); owner != userID(op.User) {
			t.Fatalf("op %d: user %d renames photo %d of user %d", n, userID(op.User), photo, owner)
		}
		renamed[photo]++
		senders[op.User]++
	}
	owned, owners := map[int]bool{}, map[int]bool{}
	for v := range virtual {
		for p := 1; p <= photos; p++ {
			if ownerOf(p) == userID(v) {
				owned[p], owners[v] = true, true
			}
		}
	}
	if len(senders) != len(owners) {
		t.Errorf("%d virtual users rename photos, but %d own photos", len(senders), len(owners))
	}
	percent, counts := map[string]float64{}, map[string]int{}
	for v := range owners {
		percent[strconv.Itoa(v)], counts[strconv.Itoa(v)] = 100/float64(len(owners)), senders[v]
	}
	checkChiSquare(t, counts, percent)
	if len(renamed) < len(owned)/2 {
		t.Errorf("%d photos of %d were renamed", len(renamed), len(owned))
	}
}

func TestNobodyFollowsThemselves(t *testing.T) {
	p := params()
	p.Users, p.Photos = 2, 5
	p.Owner = func(int) int { return 1 }
	w := load(t, "write-heavy", p)
	pattern := patterns()[preset.Follow]
	for n := range uint64(20_000) {
		if op := w.Op(n); op.Class == preset.Follow {
			if other, _ := id(t, pattern, op, "user"); other != 2-op.User {
				t.Fatalf("op %d: user %d follows user %d", n, op.User+1, other)
			}
		}
	}
}

func TestSameSeedSameOps(t *testing.T) {
	each(t, func(t *testing.T, w workloads.Workload) {
		const ops = 5000
		again := workloads.Hash(load(t, w.Name(), params()), 0, ops)
		other := params()
		other.Seed = 2
		if hash := workloads.Hash(w, 0, ops); hash != again {
			t.Errorf("the same seed gave the hashes %s and %s", hash, again)
		} else if hash == workloads.Hash(load(t, w.Name(), other), 0, ops) {
			t.Error("two seeds gave the same ops")
		}
		for n := ops - 1; n >= 0; n -= 7 {
			if diff := cmp.Diff(w.Op(uint64(n)), w.Op(uint64(n))); diff != "" {
				t.Fatal(diff)
			}
		}
	})
}

func TestConcurrentUse(t *testing.T) {
	each(t, func(t *testing.T, w workloads.Workload) {
		const ops = 5000
		want := workloads.Hash(load(t, w.Name(), params()), 0, ops)
		var workers sync.WaitGroup
		for range 4 {
			workers.Go(func() {
				if got := workloads.Hash(w, 0, ops); got != want {
					t.Errorf("hash %s, and %s for a single caller", got, want)
				}
			})
		}
		workers.Wait()
	})
}

func TestLogins(t *testing.T) {
	w := load(t, "read-heavy", params())
	if w.Users() != virtual {
		t.Errorf("%d virtual users, want %d", w.Users(), virtual)
	}
	login := w.(workloads.Login)
	seen := map[string]bool{}
	for v := range w.Users() {
		op := login.LoginOp(v)
		var body map[string]string
		if err := json.Unmarshal(op.Body, &body); err != nil {
			t.Fatal(err)
		}
		want := map[string]string{"login": "user-" + strconv.Itoa(userID(v)), "password": `a "secret"`}
		if diff := cmp.Diff(want, body); diff != "" {
			t.Fatal(diff)
		}
		if op.Class != preset.Login || op.Method != "POST" || op.Path != "/api/login" || op.User != v || !op.Write {
			t.Fatalf("login op %+v", op)
		}
		seen[body["login"]] = true
	}
	if len(seen) != virtual {
		t.Errorf("%d different users log in, want %d", len(seen), virtual)
	}
}

func TestFewUsers(t *testing.T) {
	p := params()
	p.Users, p.Owner = 10, func(int) int { return 10 }
	if w := load(t, "write-heavy", p); w.Users() != 10 {
		t.Errorf("%d virtual users of 10 users", w.Users())
	}
}

func TestRefusals(t *testing.T) {
	for want, change := range map[string]func(p *preset.Params){
		"1 users: want at least 2":         func(p *preset.Params) { p.Users = 1 },
		"0 photos":                         func(p *preset.Params) { p.Photos = 0 },
		"no PhotoID or no Owner":           func(p *preset.Params) { p.Owner = nil },
		"no PhotoID or no Owner: want all": func(p *preset.Params) { p.PhotoID = nil },
		"no Login, no PhotoID or no Owner": func(p *preset.Params) { p.Login = nil },
		"image version 0: want at least 1": func(p *preset.Params) { p.ImageVersion = 0 },
		"no JPEGs":                         func(p *preset.Params) { p.Uploads = nil },
		"upload 1 is empty":                func(p *preset.Params) { p.Uploads = [][]byte{{1}, {}} },
		"is user 0: want 1 to 1000":        func(p *preset.Params) { p.Owner = func(int) int { return 0 } },
		"no virtual user owns a photo":     func(p *preset.Params) { p.Owner = func(int) int { return 2 } },
	} {
		p := params()
		change(&p)
		if _, err := preset.New("write-heavy", p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
	for want, change := range map[string]func(p *preset.Params){
		"no celebrities: want a data set":   func(p *preset.Params) { p.Celebrities = nil },
		"celebrities [1001 3] own no photo": func(p *preset.Params) { p.Celebrities = []int{1001, 3} },
	} {
		p := params()
		change(&p)
		if _, err := preset.New("celebrity", p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
	_, err := preset.New("reads", params())
	const want = `unknown workload "reads": want one of read-heavy, write-heavy, slow-upload, upload-heavy, ` +
		"static-heavy, session-heavy, celebrity, ycsb-a, ycsb-b, ycsb-c, ycsb-d, ycsb-e, ycsb-f"
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %q", err, want)
	}
}

// TestGolden checks that the ops of each workload never change, because results of
// different versions are compared.
func TestGolden(t *testing.T) {
	each(t, func(t *testing.T, w workloads.Workload) {
		var text strings.Builder
		for n := range uint64(20) {
			op := w.Op(n)
			fmt.Fprintf(&text, "%d user %d %s: %s %s %v", op.Index, op.User, op.Class, op.Method, op.Path, op.Header)
			if op.Class == preset.Upload {
				fmt.Fprintf(&text, " sha256 %x", sha256.Sum256(op.Body))
			} else if op.Body != nil {
				fmt.Fprintf(&text, " %s", op.Body)
			}
			text.WriteByte('\n')
		}
		if v, journeys := w.(workloads.Journeys); journeys {
			for n := range uint64(20) {
				first, ops := v.Journey(n)
				fmt.Fprintf(&text, "journey %d: %d ops from %d on, before the second one %v\n", n, ops, first,
					v.Think(first+1).Round(time.Millisecond)) // the last bits of a logarithm depend on the CPU
			}
		}
		fmt.Fprintf(&text, "hash of 10000 ops: %s\n", workloads.Hash(w, 0, 10_000))
		file := filepath.Join("testdata", w.Name()+".golden")
		if *update {
			if err := os.WriteFile(file, []byte(text.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), text.String()); diff != "" {
			t.Errorf("%s; go test ./workloads/preset -update writes it again\n%s", file, diff)
		}
	})
}

func BenchmarkOp(b *testing.B) {
	for _, s := range preset.Catalogue() {
		b.Run(s.Name, func(b *testing.B) {
			w := load(b, s.Name, params())
			b.ReportAllocs()
			var n uint64
			for b.Loop() {
				w.Op(n)
				n++
			}
		})
	}
}

func BenchmarkHash(b *testing.B) {
	w := load(b, "write-heavy", params())
	for b.Loop() {
		workloads.Hash(w, 0, 10_000)
	}
}

func BenchmarkNew(b *testing.B) {
	p := params()
	p.Users, p.Photos = 50_000, 200_000
	p.Owner = func(photo int) int { return 1 + photo%p.Users }
	for b.Loop() {
		load(b, "write-heavy", p)
	}
}
