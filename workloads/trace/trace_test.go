package trace_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/big"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/workloads/pace"
	"github.com/stagebench/stagebench/workloads/trace"
)

func read(t testing.TB, text string) *trace.Trace {
	t.Helper()
	got, err := trace.Read(strings.NewReader(text), "test", nil)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// TestFormats reads the same three requests in every format.
func TestFormats(t *testing.T) {
	t.Parallel()
	want := []trace.Record{
		{At: 0, Method: "GET", Path: "/a?b=c", Client: 0},
		{At: 1500 * time.Millisecond, Method: "POST", Path: "/d%20e/%22f%22", Client: 1},
		{At: 2 * time.Second, Method: "HEAD", Path: "/", Client: 0},
	}
	for name, text := range map[string]string{
		"JSON lines": `{"time":"2026-05-17T10:00:00Z","method":"GET","path":"/a?b=c","client":"192.0.2.1","bytes":12}
{"time":"2026-05-17T10:00:01.5Z","method":"post","url":"/d e/\"f\"","client":"2001:db8::1","status":"404"}
{"time":"2026-05-17T12:00:02+02:00","method":"HEAD","uri":"https://example.org","client":"192.0.2.1","bytes":null}
`,
		"JSON lines of nginx": `{"msec":1779012000.000,"request":"GET /a?b=c HTTP/2.0","remote_addr":"192.0.2.1"}
{"msec":"1779012001.500","request":"POST /d e/\"f\" HTTP/1.1","remote_addr":"192.0.2.2","status":404}
{"msec":1779012002.0,"request":"HEAD / HTTP/1.1","remote_addr":"192.0.2.1","status":200}`,
		"CSV": "\ufeffTime,Method,URL,Client_IP,Status,Bytes\r\n" +
			"1779012000000,GET,/a?b=c,192.0.2.1,200,12\r\n" +
			"1779012001500,POST,\"/d e/\"\"f\"\"\",192.0.2.2,404,\r\n" +
			"1779012002000,HEAD,http://example.org/,192.0.2.1,200,0\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(want, records(read(t, text))); diff != "" {
				t.Errorf("records (-want +got)\n%s", diff)
			}
			var packed bytes.Buffer
			for _, part := range []string{text[:20], text[20:]} { // two gzip members, as in a file that was appended to
				w := gzip.NewWriter(&packed)
				_, _ = io.WriteString(w, part)
				_ = w.Close()
			}
			if diff := cmp.Diff(want, records(read(t, packed.String()))); diff != "" {
				t.Errorf("records of the compressed text (-want +got)\n%s", diff)
			}
		})
	}
}

// TestAccessLogLines reads lines such as a server on the internet logs them.
func TestAccessLogLines(t *testing.T) {
	t.Parallel()
	const head = `192.0.2.1 - - [17/May/2015:10:05:03 +0000] `
	for line, want := range map[string]string{
		head + `"GET /a HTTP/1.1" 200 5 "-" "agent \"x\""`:                         "GET /a",
		`2001:db8::1 - jo hn [17/May/2015:10:05:03 +0000] "GET /a HTTP/1.1" 200 5`: "GET /a",
		head + `"GET /a" 200 5`:                                             "GET /a",
		head + `"GET /a b HTTP/1.1" 200 5`:                                  "GET /a%20b",
		head + `"GET /\xD0\xB0\x22\x5C|^ HTTP/1.1" 200 -`:                   "GET /%D0%B0%22%5C%7C%5E",
		head + `"GET /\"q\"\\ HTTP/1.1" 200 -`:                              "GET /%22q%22%5C",
		head + `"GET /%41%zz%4 HTTP/1.1" 200 -`:                             "GET /%41%25zz%254",
		head + `"GET /a#b?c HTTP/1.1" 200 -`:                                "GET /a%23b?c",
		head + `"GET http://example.org?x=1 HTTP/1.1" 200 -`:                "GET /?x=1",
		head + `"GET https://example.org/p HTTP/1.1" 200 -`:                 "GET /p",
		head + `"GET //double HTTP/1.1" 200 -`:                              "GET //double",
		head + `"\x16\x03\x01\x02\x00\x01\x00" 400 226`:                     "no request line such as GET / HTTP/1.1",
		head + `"-" 408 -`:                                                  "no request line such as GET / HTTP/1.1",
		head + `"OPTIONS * HTTP/1.0" 200 -`:                                 "no path",
		head + `"CONNECT example.org:443 HTTP/1.1" 400 -`:                   "no path",
		head + `"get /a HTTP/1.1" 400 -`:                                    "no HTTP method",
		head + `"GET /a HTTP/1.1 200 5`:                                     "not an access log line",
		`192.0.2.1 - - [41/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 5`: "no valid time",
		`192.0.2.1 - - [01/Jan/0001:00:00:00 +0000] "GET / HTTP/1.1" 200 5`: "no valid time",
		"hello": "not an access log line",
	} {
		got, err := trace.Read(strings.NewReader(line+"\n"+head+`"GET /last HTTP/1.1" 200 5`), "test", nil)
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		found := ""
		for reason := range got.Stats().Broken {
			found = reason
		}
		if found == "" {
			found = records(got)[0].Method + " " + records(got)[0].Path
		}
		if found != want {
			t.Errorf("%s\ngot  %s\nwant %s", line, found, want)
		}
	}
}

// TestOrderAndDuplicates checks that lines out of order are sorted. When all times
// are whole seconds, the requests of a second are spread over it. With finer
// times, requests of the same time stay together.
func TestOrderAndDuplicates(t *testing.T) {
	t.Parallel()
	line := func(second int, path string) string {
		return fmt.Sprintf("a - - [17/May/2015:10:05:%02d +0000] \"GET %s HTTP/1.1\" 200 5\n", second, path)
	}
	got := read(t, line(3, "/1")+line(1, "/2")+line(3, "/3")+line(1, "/4")+line(1, "/5")+line(9, "/6"))
	var shown []string
	for _, r := range records(got) {
		shown = append(shown, r.Path+" "+r.At.Round(time.Millisecond).String())
	}
	want := []string{"/2 0s", "/4 333ms", "/5 667ms", "/1 2s", "/3 2.5s", "/6 8s"}
	if diff := cmp.Diff(want, shown); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if s := got.Stats(); s.OutOfOrder != 3 || s.DuplicateTimes != 3 || s.Span != 8*time.Second {
		t.Errorf("stats %+v: want 3 out of order, 3 duplicates", s)
	}
	fine := read(t, `{"time":1.5,"path":"/1"}`+"\n"+`{"time":1.5,"path":"/2"}`)
	if r := records(fine); r[1].At != 0 || fine.Stats().DuplicateTimes != 1 {
		t.Errorf("records %+v, want both at the same time", r)
	}
}

// TestBrokenLines checks that a read continues after broken lines and counts them
// by reason.
func TestBrokenLines(t *testing.T) {
	t.Parallel()
	long := `{"time":1,"path":"/` + strings.Repeat("x", 80<<10) + `"}`
	got := read(t, "\n"+long+"\n{\"time\":1,\"path\":\"/a\"}\n\n{\"time\":1,\n{\"path\":\"/b\"}\n{\"time\":2}\nnull\n")
	want := map[string]int64{"longer than 64 KiB": 1, "not a JSON object": 2, "no valid time": 1, "no path": 1}
	if diff := cmp.Diff(want, got.Stats().Broken); diff != "" || got.Stats().Lines != 6 || got.Stats().Records != 1 {
		t.Errorf("stats %+v (-want +got)\n%s", got.Stats(), diff)
	}
	for text, want := range map[string]string{
		"":                   "it is empty",
		"hello\nworld\n":     "none of its 2 lines is a request: line 1: not an access log line",
		"\nhello\n":          "none of its 1 lines is a request: line 2: not an access log line",
		"time,path\n":        "it is empty",
		"\x1f\x8bnonsense":   "open as gzip: ",
		"time,path\n1,2,3\n": "not as many columns as the header",
	} {
		if _, err := trace.Read(strings.NewReader(text), "test", nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want one with %q", text, err, want)
		}
	}
}

// TestTruncated checks that a truncated file, for example one that is still being
// written, is read up to its end.
func TestTruncated(t *testing.T) {
	t.Parallel()
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 5000 {
		_, _ = fmt.Fprintf(w, "{\"time\":%d,\"path\":\"/%d\"}\n", 1+i, random.Uint64())
	}
	_ = w.Close()
	got := read(t, packed.String()[:packed.Len()/2])
	if s := got.Stats(); s.Records < 1000 || s.Records > 4000 || s.Broken["the compressed file is truncated"] != 1 {
		t.Errorf("stats %+v: want about half of 5000 records and the truncation", s)
	}
}

// TestFivePercentBroken checks that every broken line is counted when one line in
// twenty is broken.
func TestFivePercentBroken(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(3, 4))
	var text strings.Builder
	broken := int64(0)
	for i := range 10_000 {
		line := fmt.Sprintf("192.0.2.%d - - [17/May/2015:10:%02d:%02d +0000] \"GET /p/%d HTTP/1.1\" 200 5",
			i%200, i/60%60, i%60, i)
		if random.IntN(20) == 0 {
			broken++
			line = line[:random.IntN(40)] + "\x00garbage"
		}
		text.WriteString(line + "\n")
	}
	s := read(t, text.String()).Stats()
	if s.Lines != 10_000 || s.BrokenLines() != broken || s.Records != 10_000-broken {
		t.Errorf("stats %+v: want %d broken of 10000", s, broken)
	}
}

// TestNoDrift checks that the last time of a replay is exact to 2 ns after many
// gaps, at different speeds.
func TestNoDrift(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	random := rand.New(rand.NewPCG(5, 6))
	at := int64(1_400_000_000_000_000_000)
	for range 20_000 {
		at += random.Int64N(3_000_000_000)
		_, _ = fmt.Fprintf(&text, "{\"time\":%d,\"path\":\"/\"}\n", at)
	}
	got := read(t, text.String())
	for _, speed := range []float64{1, 20, 1.0 / 3, 7.77} {
		for _, maxGap := range []time.Duration{0, time.Second} {
			s, err := got.Schedule(trace.Replay{Speed: speed, MaxGap: maxGap})
			if err != nil {
				t.Fatal(err)
			}
			if off := drift(got, s.At(19_999), speed, maxGap); off > 2 {
				t.Errorf("speed %v, max gap %v: the last request is %.1f ns off", speed, maxGap, off)
			}
		}
	}
}

// drift returns the difference between the last intended time and the exact one,
// in nanoseconds.
func drift(t *trace.Trace, last time.Duration, speed float64, maxGap time.Duration) float64 {
	exact := new(big.Rat)
	all := records(t)
	for i, r := range all[1:] {
		gap := r.At - all[i].At
		if maxGap > 0 {
			gap = min(gap, maxGap)
		}
		exact.Add(exact, new(big.Rat).SetInt64(int64(gap)))
	}
	exact.Quo(exact, new(big.Rat).SetFloat64(speed))
	off, _ := new(big.Rat).Sub(exact, new(big.Rat).SetInt64(int64(last))).Float64()
	return math.Abs(off)
}

func TestSchedule(t *testing.T) {
	got := read(t, `{"time":"2026-01-01T00:00:00.0Z","path":"/"}
{"time":"2026-01-01T00:00:01.0Z","path":"/"}
{"time":"2026-01-01T01:00:00.5Z","path":"/"}
{"time":"2026-01-01T01:00:00.5Z","path":"/"}`)
	s, err := got.Schedule(trace.Replay{Speed: 2, MaxGap: 3 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	times := func(n uint64) (all []time.Duration) {
		for i := range n {
			all = append(all, s.At(i))
		}
		return all
	}
	ms := time.Millisecond
	if diff := cmp.Diff([]time.Duration{0, 500 * ms, 2000 * ms, 2000 * ms, math.MaxInt64}, times(5)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for d, want := range map[time.Duration]uint64{
		0: 0, 1: 1, 500 * ms: 1, 501 * ms: 2, 2000 * ms: 2, 2001 * ms: 4, time.Hour: 4,
	} {
		if got := s.Count(d); got != want {
			t.Errorf("Count(%v) = %d, want %d", d, got, want)
		}
	}
	if got := got.Length(s); got != 2000*ms+1 {
		t.Errorf("length %v", got)
	}
	if s, err = got.Schedule(trace.Replay{Speed: 2, MaxGap: 3 * time.Second, Loop: true}); err != nil {
		t.Fatal(err)
	}
	round := 2000*ms + 2000*ms/3
	if got := s.At(5); got != round+500*ms {
		t.Errorf("the second request of the second round is at %v, want %v", got, round+500*ms)
	}
	for n := range uint64(1000) {
		at := s.At(n)
		if before, with := s.Count(at), s.Count(at+1); before > n || with <= n {
			t.Fatalf("request %d is at %v, but Count is %d there and %d one ns later", n, at, before, with)
		}
	}
	// A loop needs a round long enough for its requests at the highest rate.
	moment := read(t, `{"time":1.5,"path":"/1"}`+"\n"+`{"time":1.5,"path":"/2"}`)
	for name, c := range map[string]struct {
		trace  *trace.Trace
		replay trace.Replay
		good   bool
	}{
		"one moment":             {moment, trace.Replay{Speed: 1, Loop: true}, false},
		"one moment, once":       {moment, trace.Replay{Speed: 1}, true},
		"no gaps left":           {got, trace.Replay{Speed: 1, MaxGap: 1, Loop: true}, false},
		"no gaps left, once":     {got, trace.Replay{Speed: 1, MaxGap: 1}, true},
		"above the highest rate": {got, trace.Replay{Speed: 1_000_000, MaxGap: time.Second, Loop: true}, false},
		"not above it":           {got, trace.Replay{Speed: 100_000, MaxGap: time.Second, Loop: true}, true},
		"one request, in a loop": {read(t, `{"time":1.5,"path":"/1"}`), trace.Replay{Speed: 1_000_000, Loop: true}, true},
	} {
		s, err := c.trace.Schedule(c.replay)
		if (err == nil) != c.good {
			t.Errorf("%s: error %v", name, err)
		}
		if err == nil && s.Count(10*time.Second) > 10*pace.MaxRate {
			t.Errorf("%s: %d requests in 10 s", name, s.Count(10*time.Second))
		}
	}
	for _, bad := range []trace.Replay{{Speed: 0}, {Speed: math.NaN()}, {Speed: math.Inf(1)}, {Speed: 1, MaxGap: -1}} {
		if _, err := got.Schedule(bad); err == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
}

// TestSharedLog reads the log of 8000 real requests that belongs to the
// specification.
func TestSharedLog(t *testing.T) {
	t.Parallel()
	path := filepath.Join("..", "..", "..", "shared", "data", "access-log", "semicomplete-2015-05.log.gz")
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("needs the shared data beside the repository: " + path)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	got, err := trace.Read(f, "semicomplete", nil)
	if err != nil {
		t.Fatal(err)
	}
	s := got.Stats()
	t.Logf("%+v", s)
	if s.Lines != 8000 || s.Records+s.BrokenLines() != 8000 || s.BrokenLines() != 0 || s.OutOfOrder == 0 {
		t.Errorf("stats %+v: want 8000 lines, all of them requests, some out of order", s)
	}
	schedule, err := got.Schedule(trace.Replay{Speed: 20, MaxGap: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if off := drift(got, schedule.At(uint64(s.Records-1)), 20, time.Second); off > 2 {
		t.Errorf("the last intended time is %.1f ns off", off)
	}
	t.Logf("%v as logged, %v as replayed", s.Span, got.Length(schedule))
}

// records returns the requests of a trace.
func records(t *trace.Trace) []trace.Record { return slices.Collect(t.All()) }

// A large log is read, sorted, filtered and replayed as a small one, and requests that were logged too late are
// counted.
func TestManyBlocks(t *testing.T) {
	t.Parallel()
	const n = 200_000
	random := rand.New(rand.NewPCG(3, 4))
	var log strings.Builder
	log.WriteString("time,method,path,client\n")
	for i := range int64(n) {
		ms := 1_779_012_000_000 + 10*i
		if random.IntN(10) == 0 {
			ms -= random.Int64N(50_000) // as long as 5,000 requests
		}
		fmt.Fprintf(&log, "%d.%03d,GET,/%d,c%d\n", ms/1000, ms%1000, i%777, i%33)
	}
	log.WriteString("1779011000.5,GET,/too-late,c1\n")
	got := read(t, log.String())
	s := got.Stats()
	if s.Records != n || s.Lines != n+1 || s.BrokenLines() != 1 || s.Paths != 777 || s.Clients != 33 {
		t.Errorf("stats %+v", s)
	}
	last, count := time.Duration(0), uint64(0)
	for r := range got.All() {
		if r.At < last {
			t.Fatalf("request %d at %v comes after one at %v", count, r.At, last)
		}
		if again := got.Record(count); again != r {
			t.Fatalf("request %d is %+v and then %+v", count, r, again)
		}
		last, count = r.At, count+1
	}
	schedule, err := got.Schedule(trace.Replay{Speed: 2})
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		i := random.Uint64N(n)
		at := schedule.At(i)
		if want := got.Record(i).At / 2; at < want-1 || at > want+1 {
			t.Fatalf("request %d is due at %v, want %v", i, at, want)
		}
		if before := schedule.Count(at); before > i || before < n && schedule.At(before) < at {
			t.Fatalf("%d requests are due before %v, but request %d is due then", before, at, i)
		}
	}
	even, skipped, err := got.Keep(func(r trace.Record) string {
		if r.Client%2 == 1 {
			return "odd client"
		}
		return ""
	})
	if err != nil || even.Len()+uint64(skipped["odd client"]) != n || even.Record(0).Client%2 != 0 {
		t.Errorf("%d kept, %v skipped, %v", even.Len(), skipped, err)
	}
}

// A spool that is full is an error that says what to do.
func TestFullSpool(t *testing.T) {
	t.Parallel()
	_, err := trace.Read(strings.NewReader("time,path\n1,/a\n"), "test", full{})
	if err == nil || !strings.Contains(err.Error(), "set TMPDIR") {
		t.Errorf("error %v, want one that names TMPDIR", err)
	}
}

// full is a Spool without space.
type full struct{ io.ReaderAt }

func (full) Write([]byte) (int, error) { return 0, syscall.ENOSPC }
