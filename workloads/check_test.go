package workloads_test

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stagebench/stagebench/workloads"
)

// Contains and Matches look at the decoded body.
func TestCheckOfAnEncodedBody(t *testing.T) {
	pack := func(w io.WriteCloser, text string) {
		_, _ = io.WriteString(w, text)
		_ = w.Close()
	}
	var zipped, deflated, large bytes.Buffer
	const text = `{"price": 12}`
	pack(gzip.NewWriter(&zipped), text)
	pack(zlib.NewWriter(&deflated), text)
	pack(gzip.NewWriter(&large), text+strings.Repeat("x", 10*workloads.MaxCheckedBody))
	check := &workloads.Check{Contains: []string{`"price"`}}
	for _, test := range []struct {
		encoding string
		body     []byte
		want     string // part of the failure; "" = none
	}{
		{"", []byte(text), ""},
		{"identity", []byte(text), ""},
		{"gzip", zipped.Bytes(), ""},
		{"GZIP", zipped.Bytes(), ""},
		{"deflate", deflated.Bytes(), ""},
		{"gzip", large.Bytes(), ""},
		{"gzip", zipped.Bytes()[:zipped.Len()-9], ""}, // only the begin was kept
		{"gzip", []byte(text), `body is not encoded as "gzip"`},
		{"br", []byte(text), `body is encoded as "br": ask for gzip`},
		{"gzip", nil, `body without`},
	} {
		got := check.Failure(http.Header{"Content-Encoding": {test.encoding}}, test.body, int64(len(test.body)))
		if test.want == "" && got != "" || !strings.Contains(got, test.want) {
			t.Errorf("%s: failure %q, want %q", test.encoding, got, test.want)
		}
	}
}

func TestAcceptedStatus(t *testing.T) {
	var none *workloads.Check
	for status, want := range map[int]bool{101: false, 200: true, 301: true, 399: true, 400: false, 503: false} {
		if none.Accepts(status) != want || (&workloads.Check{MinBytes: 1}).Accepts(status) != want {
			t.Errorf("status %d: want accepted %t", status, want)
		}
	}
	if upgrade := (&workloads.Check{Status: []int{101}}); !upgrade.Accepts(101) || upgrade.Accepts(200) {
		t.Error("a check for 101 must accept 101 and nothing else")
	}
}
