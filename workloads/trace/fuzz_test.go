package trace_test

import (
	"bytes"
	"net/http"
	"testing"
	"time"

	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/trace"
)

func FuzzCombined(f *testing.F) {
	f.Add([]byte(`192.0.2.1 - jo [17/May/2015:10:05:03 +0000] "GET /a\x22?b HTTP/1.1" 200 5 "-" "agent"`))
	f.Add([]byte("::1 - - [17/May/2015:10:05:03 +0000] \"\\x16\\x03\" 400 0\n- - [] \"\" \n"))
	fuzz(f)
}

func FuzzJSONLines(f *testing.F) {
	f.Add([]byte(`{"time":"2026-05-17T10:00:00Z","method":"GET","path":"/a?b=c","client":"192.0.2.1","status":200}`))
	f.Add([]byte(`{"msec":1e99,"request":"GET / HTTP/1.1"}` + "\n{\"ts\":9223372036854775807,\"uri\":\"/%\"}"))
	fuzz(f)
}

func FuzzCSV(f *testing.F) {
	f.Add([]byte("time,method,path,client\n1,GET,/a,b\n2,\"PO\"\"ST\",/,\n"))
	f.Add([]byte("ts,ts,url\n1.99999999999999999999,2,//\n"))
	fuzz(f)
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"))
	f.Add([]byte("time,path\n1,/\n"))
	f.Add([]byte("{\"time\":1,\"path\":\"/\"}"))
	fuzz(f)
}

// fuzz checks the guarantees of a trace for every input that Read accepts.
func fuzz(f *testing.F) {
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := trace.Read(bytes.NewReader(text), "fuzz", nil)
		if err != nil {
			return
		}
		s := got.Stats()
		if s.Records != int64(got.Len()) || s.Records+s.BrokenLines() != s.Lines {
			t.Fatalf("stats %+v of %d records do not add up", s, got.Len())
		}
		schedule, err := got.Schedule(trace.Replay{Speed: 3, MaxGap: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		workload, err := got.Workload()
		if err != nil {
			t.Fatal(err)
		}
		var last time.Duration
		for n := range got.Len() {
			if at := schedule.At(n); at < last {
				t.Fatalf("request %d is due at %v, but an earlier one at %v", n, at, last)
			} else {
				last = at
			}
			check(t, workload, n)
		}
	})
}

// check checks that net/http accepts an op and sends its path unchanged.
func check(t *testing.T, w workloads.Workload, n uint64) {
	op := w.Op(n)
	if op.User < 0 || op.User >= w.Users() {
		t.Fatalf("user %d of %d", op.User, w.Users())
	}
	req, err := http.NewRequest(op.Method, "http://127.0.0.1"+op.Path, nil)
	if err != nil {
		t.Fatalf("op %+v is not a valid request: %v", op, err)
	}
	if got := req.URL.RequestURI(); got != op.Path {
		t.Fatalf("net/http would send the path %q, want %q", got, op.Path)
	}
}
