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

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/preset"
)

var update = flag.Bool("update", false, "write the golden files anew")

const users, photos, virtual = 1000, 3000, 256

// ownerOf is a data set in which some users own much and some nothing.
func ownerOf(photo int) int { return 1 + photo*photo%users }

func params() preset.Params {
	return preset.Params{
		Seed: 1, Users: users, Photos: photos,
		Login:   func(id int) (string, string) { return "user-" + strconv.Itoa(id), `a "secret"` },
		PhotoID: func(photo int) uint64 { return uint64(photo) },
		Owner:   ownerOf,
		Uploads: [][]byte{[]byte("\xff\xd8 one \xff\xd9"), []byte("\xff\xd8 two \xff\xd9"), []byte("\xff\xd8 three \xff\xd9")},
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

// shares is the mix of a workload that is shipped.
func shares(w workloads.Workload) workloads.Mix {
	all := preset.Catalogue()
	return all[slices.IndexFunc(all, func(s preset.Shipped) bool { return s.Name == w.Name() })].Mix
}

// each runs a test on every workload that is shipped.
func each(t *testing.T, test func(t *testing.T, w workloads.Workload)) {
	for _, s := range preset.Catalogue() {
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel()
			test(t, load(t, s.Name, params()))
		})
	}
}

// userID is the seeded user that a virtual user is.
func userID(v int) int { return 1 + v*users/virtual }

func TestSharesAreThoseOfTheLadder(t *testing.T) {
	want := map[string]string{
		"read-heavy":  "feed 30, photo 25, image 29, user 5, me 5, page 1, like 3, comment 1.4, upload 0.1, follow 0.5",
		"write-heavy": "feed 15, photo 15, image 15, me 5, like 24, comment 19, rename 3, upload 1, follow 3",
		"slow-upload": "feed 25, photo 21, image 24, user 4.5, me 4.5, page 1, upload 20",
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

func TestWriteShares(t *testing.T) {
	for name, percent := range map[string]float64{"read-heavy": 5, "write-heavy": 50} {
		const ops = 200_000
		w := load(t, name, params())
		var writes float64
		for n := range uint64(ops) {
			if w.Op(n).Write {
				writes++
			}
		}
		p := percent / 100
		if off := math.Abs(writes/ops-p) / math.Sqrt(p*(1-p)/ops); off > 3.3 {
			t.Errorf("%s: %.2f %% writes, want %v %%", name, writes/ops*100, percent)
		}
	}
}

// checkChiSquare compares counts with shares in percent, at one in a thousand
// (Wilson and Hilferty's formula). Seeds are fixed: it passes always or never.
func checkChiSquare(t *testing.T, counts map[string]int, percent map[string]float64) {
	t.Helper()
	var total, chi float64
	for name, c := range counts {
		total += float64(c)
		if percent[name] == 0 {
			t.Errorf("%d of %s, which has no share", c, name)
		}
	}
	for name, p := range percent {
		want := total * p / 100
		chi += (float64(counts[name]) - want) * (float64(counts[name]) - want) / want
	}
	df := float64(len(percent) - 1)
	if bound := df * math.Pow(1-2/(9*df)+3.09*math.Sqrt(2/(9*df)), 3); chi > bound {
		t.Errorf("chi-square %.1f, want at most %.1f: %v for %v", chi, bound, counts, percent)
	}
}

func TestMixIsKept(t *testing.T) {
	each(t, func(t *testing.T, w workloads.Workload) {
		counts, variants := map[string]int{}, map[string]int{}
		for n := range uint64(200_000) {
			op := w.Op(n)
			counts[string(op.Class)]++
			if op.Class == preset.Image {
				variants[strings.TrimSuffix(filepath.Base(op.Path), ".jpg")]++
			}
		}
		percent := map[string]float64{}
		for _, s := range shares(w) {
			percent[string(s.Class)] = s.Percent
		}
		checkChiSquare(t, counts, percent)
		checkChiSquare(t, variants, map[string]float64{"thumb": 70, "original": 15, "sharp": 10, "blur": 5})
	})
}

// The form of each op, with ids and what follows them as groups.
func forms() map[workloads.Class]*regexp.Regexp {
	form := func(pattern string) *regexp.Regexp { return regexp.MustCompile("^" + pattern + "$") }
	return map[workloads.Class]*regexp.Regexp{
		preset.Page:    form(`GET /`),
		preset.Feed:    form(`GET /api/feed\?user=(?P<user>\d+)&limit=20`),
		preset.Photo:   form(`GET /api/photos/(?P<photo>\d+)`),
		preset.Image:   form(`GET /img/(?P<photo>\d+)/(thumb|original|sharp|blur)\.jpg`),
		preset.User:    form(`GET /api/users/(?P<user>\d+)`),
		preset.Me:      form(`GET /api/me`),
		preset.Like:    form(`POST /api/photos/(?P<photo>\d+)/like`),
		preset.Comment: form(`POST /api/photos/(?P<photo>\d+)/comments`),
		preset.Rename:  form(`PATCH /api/photos/(?P<photo>\d+)`),
		preset.Upload:  form(`POST /api/photos\?title=[A-Za-z+%0-9]+`),
		preset.Follow:  form(`POST /api/users/(?P<user>\d+)/follow`),
	}
}

// id returns the named group of an op's form, false when the form has none.
func id(t *testing.T, form *regexp.Regexp, op workloads.Op, group string) (int, bool) {
	t.Helper()
	match := form.FindStringSubmatch(op.Method + " " + op.Path)
	if match == nil {
		t.Fatalf("op %d: %s %s is not what a %s looks like", op.Index, op.Method, op.Path, op.Class)
	}
	i := form.SubexpIndex(group)
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
		all := forms()
		for n := range uint64(100_000) {
			op := w.Op(n)
			if op.Index != n {
				t.Fatalf("op %d says that it is op %d", n, op.Index)
			}
			if op.User < 0 || op.User >= w.Users() {
				t.Fatalf("op %d is of the virtual user %d of %d", n, op.User, w.Users())
			}
			if p, found := id(t, all[op.Class], op, "photo"); found && (p < 1 || p > photos) {
				t.Fatalf("op %d: photo %d", n, p)
			}
			if u, found := id(t, all[op.Class], op, "user"); found && (u < 1 || u > users) {
				t.Fatalf("op %d: user %d", n, u)
			}
			checkRequest(t, op)
		}
	})
}

// checkRequest holds an op against net/http, and its body against its type.
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
	case op.Body != nil || op.Header["Content-Type"] != "":
		t.Fatalf("op %d: a %s with the body %q", op.Index, op.Class, op.Body)
	}
}

func TestOnlyOwnersRename(t *testing.T) {
	w := load(t, "write-heavy", params())
	form := forms()[preset.Rename]
	renamed, renamers := map[int]int{}, map[int]int{}
	for n := range uint64(200_000) {
		op := w.Op(n)
		if op.Class != preset.Rename {
			continue
		}
		photo, _ := id(t, form, op, "photo")
		if owner := ownerOf(photo); owner != userID(op.User) {
			t.Fatalf("op %d: user %d renames photo %d of user %d", n, userID(op.User), photo, owner)
		}
		renamed[photo]++
		renamers[op.User]++
	}
	owned, owners := map[int]bool{}, map[int]bool{}
	for v := range virtual {
		for p := 1; p <= photos; p++ {
			if ownerOf(p) == userID(v) {
				owned[p], owners[v] = true, true
			}
		}
	}
	if len(renamers) != len(owners) {
		t.Errorf("%d virtual users rename, but %d own photos", len(renamers), len(owners))
	}
	percent, counts := map[string]float64{}, map[string]int{}
	for v := range owners {
		percent[strconv.Itoa(v)], counts[strconv.Itoa(v)] = 100/float64(len(owners)), renamers[v]
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
	form := forms()[preset.Follow]
	for n := range uint64(20_000) {
		if op := w.Op(n); op.Class == preset.Follow {
			if other, _ := id(t, form, op, "user"); other != 2-op.User {
				t.Fatalf("op %d: user %d follows user %d", n, op.User+1, other)
			}
		}
	}
}

// Photos are zipfian: the share of the hottest one is 1/zeta, and it is the same
// one for reads, likes and comments. Users are uniform.
func TestPopularity(t *testing.T) {
	each(t, func(t *testing.T, w workloads.Workload) {
		all := forms()
		asked := map[workloads.Class]map[int]int{}
		for n := range uint64(300_000) {
			op := w.Op(n)
			for _, group := range []string{"photo", "user"} {
				if key, found := id(t, all[op.Class], op, group); found {
					if asked[op.Class] == nil {
						asked[op.Class] = map[int]int{}
					}
					asked[op.Class][key]++
				}
			}
		}
		var zeta float64
		for rank := 1; rank <= photos; rank++ {
			zeta += math.Pow(float64(rank), -0.99)
		}
		hottest, _, _ := top(asked[preset.Photo])
		for _, class := range []workloads.Class{preset.Photo, preset.Image, preset.Like, preset.Comment} {
			photo, count, total := top(asked[class])
			if !slices.ContainsFunc(shares(w), func(s workloads.Share) bool { return s.Class == class }) {
				continue
			}
			p := 1 / zeta
			if off := math.Abs(float64(count)/float64(total)-p) / math.Sqrt(p*(1-p)/float64(total)); photo != hottest || off > 3.3 {
				t.Errorf("%s: photo %d is asked for %d times of %d; want photo %d with a share of %.4f", class, photo, count, total, hottest, p)
			}
		}
		if _, count, total := top(asked[preset.Feed]); float64(count) > 2*float64(total)/users {
			t.Errorf("feed: a user is asked for %d times of %d, which is not uniform", count, total)
		}
	})
}

func top(counts map[int]int) (key, count, total int) {
	for k, c := range counts {
		total += c
		if c > count {
			key, count = k, c
		}
	}
	return key, count, total
}

func TestSameSeedSameOps(t *testing.T) {
	each(t, func(t *testing.T, w workloads.Workload) {
		const ops = 5000
		again := workloads.Hash(load(t, w.Name(), params()), 0, ops)
		other := params()
		other.Seed = 2
		if hash := workloads.Hash(w, 0, ops); hash != again {
			t.Errorf("one seed gave the hashes %s and %s", hash, again)
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
					t.Errorf("hash %s, to a caller who is alone %s", got, want)
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
		"1 users: want at least 2":            func(p *preset.Params) { p.Users = 1 },
		"0 photos":                            func(p *preset.Params) { p.Photos = 0 },
		"no PhotoID or no Owner":              func(p *preset.Params) { p.Owner = nil },
		"no PhotoID or no Owner: want all":    func(p *preset.Params) { p.PhotoID = nil },
		"no Login, no PhotoID or no Owner":    func(p *preset.Params) { p.Login = nil },
		"no JPEGs":                            func(p *preset.Params) { p.Uploads = nil },
		"upload 1 is empty":                   func(p *preset.Params) { p.Uploads = [][]byte{{1}, {}} },
		"said to belong to user 0: want 1 to": func(p *preset.Params) { p.Owner = func(int) int { return 0 } },
		"no virtual user owns a photo":        func(p *preset.Params) { p.Owner = func(int) int { return 2 } },
	} {
		p := params()
		change(&p)
		if _, err := preset.New("write-heavy", p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
	_, err := preset.New("reads", params())
	if want := `unknown workload "reads": want one of read-heavy, write-heavy, slow-upload`; err == nil || err.Error() != want {
		t.Errorf("error %v, want %q", err, want)
	}
}

// The first ops of each workload are fixed: figures are compared across
// versions.
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
			t.Errorf("%s; go test ./workloads/preset -update writes it anew\n%s", file, diff)
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
