package balancetest

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// contextOf returns a context with the timeout of the kit. It ends with the test.
func contextOf(t *testing.T) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	t.Cleanup(cancel)
	return ctx, cancel
}

func testBigBodies(t *testing.T, start Start) {
	_, c := begin(t, start, 2, "round_robin", false)
	for _, size := range []int{1, 4096, 65_536, 8 << 20} {
		for name, body := range map[string]io.Reader{
			"with length": bytes.NewReader(payload(size)),
			"chunked":     struct{ io.Reader }{bytes.NewReader(payload(size))},
		} {
			got, err := c.send(c.request("POST", "/upload", body))
			if err != nil || got.body != payloadSum(size) {
				t.Errorf("upload %s of %d bytes: status %d, %v, %q", name, size, got.status, err, got.body)
			}
		}
		for name, query := range map[string]string{"with length": "", "chunked": "&chunked=1"} {
			got := c.get(fmt.Sprintf("/big?bytes=%d%s", size, query))
			if got.body != string(payload(size)) {
				t.Errorf("download %s of %d bytes: %d bytes that differ from the host's", name, size, len(got.body))
			}
			if hasLength := got.length >= 0; hasLength != (name == "with length") {
				t.Errorf("download %s of %d bytes: Content-Length %d", name, size, got.length)
			}
		}
	}
	// The balancer must not change the framing of a request.
	if seen := c.echo(c.request("POST", "/echo", strings.NewReader("abc"))); seen.Length != 3 || seen.BodyBytes != 3 {
		t.Errorf("for a body of 3 bytes the host got %+v", seen)
	}
	for _, method := range []string{"GET", "DELETE", "OPTIONS"} {
		if seen := c.echo(c.request(method, "/echo", nil)); seen.Length != 0 || len(seen.TransferEncoding) > 0 {
			t.Errorf("%s without a body: the host got length %d, transfer encoding %v",
				method, seen.Length, seen.TransferEncoding)
		}
	}
}

// testStreaming: the receiver gets the first part of a body before the sender has the rest.
func testStreaming(t *testing.T, start Start) {
	hosts, c := begin(t, start, 1, "round_robin", false)

	reader, writer := io.Pipe()
	done := c.background(c.request("POST", "/upload", reader))
	if _, err := writer.Write(payload(1000)[:500]); err != nil {
		t.Fatal(err)
	}
	await(t, "the first half to reach the host", hosts[0].began)
	if _, err := writer.Write(payload(1000)[500:]); err != nil {
		t.Fatal(err)
	}
	_ = writer.Close()
	if end := <-done; end.err != nil || end.reply.body != payloadSum(1000) {
		t.Errorf("the upload ended with %v, %q", end.err, end.reply.body)
	}

	ctx, cancel := contextOf(t)
	defer cancel()
	res, err := c.http.Do(c.request("GET", "/stream", nil).WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	lines := bufio.NewReader(res.Body)
	if line, err := lines.ReadString('\n'); line != "first\n" {
		t.Fatalf("the first part is %q, %v", line, err)
	}
	hosts[0].next <- struct{}{}
	if line, err := lines.ReadString('\n'); line != "second\n" {
		t.Errorf("the second part is %q, %v", line, err)
	}
}

// testSlowClient reads a large response in small pieces while other requests succeed.
func testSlowClient(t *testing.T, start Start) {
	_, c := begin(t, start, 1, "least_conn", false)
	const size = 8 << 20
	res, err := c.http.Do(c.request("GET", fmt.Sprintf("/big?bytes=%d", size), nil))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var got bytes.Buffer
	for range 20 {
		if _, err := io.CopyN(&got, res.Body, 1000); err != nil {
			t.Fatal(err)
		}
		c.get("/who")
	}
	if _, err := io.Copy(&got, res.Body); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), payload(size)) {
		t.Errorf("a slow client got %d bytes that differ from the host's", got.Len())
	}
}

func testStatuses(t *testing.T, start Start) {
	_, c := begin(t, start, 1, "round_robin", false)
	for _, code := range []int{200, 201, 204, 301, 302, 304, 307, 400, 401, 403, 404, 409, 413, 429, 500, 501, 503} {
		for _, method := range []string{"GET", "HEAD", "POST", "PATCH", "DELETE", "PUT"} {
			got := c.do(method, fmt.Sprintf("/status/%d", code))
			want := fmt.Sprintf("status %d", code)
			if code == 204 || code == 304 || method == "HEAD" {
				want = ""
			}
			if got.status != code || got.body != want || got.node != "web-1" {
				t.Errorf("%s: status %d, body %q of %s, want %d, %q", method, got.status, got.body, got.node, code, want)
			}
			if got.header.Get("Location") != "/elsewhere" || got.header.Get("Retry-After") != "17" {
				t.Errorf("%s %d: headers %v", method, code, got.header)
			}
		}
	}
}

func testContent(t *testing.T, start Start) {
	_, c := begin(t, start, 1, "round_robin", false)
	content := string(payload(10_000))
	for _, test := range []struct {
		name, method string
		pairs        []string
		status       int
		body, length string
		contentRange string
	}{
		{"whole", "GET", nil, 200, content, "10000", ""},
		{"head", "HEAD", nil, 200, "", "10000", ""},
		{"fresh by tag", "GET", []string{"If-None-Match", contentTag}, 304, "", "", ""},
		{"stale by tag", "GET", []string{"If-None-Match", `"v0"`}, 200, content, "10000", ""},
		{"fresh by time", "GET", []string{"If-Modified-Since", contentTime().Format(http.TimeFormat)}, 304, "", "", ""},
		{"range", "GET", []string{"Range", "bytes=100-199"}, 206, content[100:200], "100", "bytes 100-199/10000"},
		{"last bytes", "GET", []string{"Range", "bytes=-5"}, 206, content[9995:], "5", "bytes 9995-9999/10000"},
		{"range on condition", "GET", []string{"Range", "bytes=0-0", "If-Range", `"v0"`}, 200, content, "10000", ""},
		{
			"range after the end", "GET",
			[]string{"Range", "bytes=20000-"},
			416, "invalid range: failed to overlap\n", "", "bytes */10000",
		},
		{"precondition", "PUT", []string{"If-Match", `"v0"`}, 412, "", "", ""},
	} {
		got := c.do(test.method, "/content", test.pairs...)
		if got.status != test.status || got.body != test.body {
			t.Errorf("%s: status %d and %d bytes, want %d and %d",
				test.name, got.status, len(got.body), test.status, len(test.body))
		}
		if test.length != "" && got.header.Get("Content-Length") != test.length {
			t.Errorf("%s: length %q, want %q", test.name, got.header.Get("Content-Length"), test.length)
		}
		if got.header.Get("Content-Range") != test.contentRange {
			t.Errorf("%s: range %q, want %q", test.name, got.header.Get("Content-Range"), test.contentRange)
		}
		if test.status < 400 && got.header.Get("ETag") != contentTag {
			t.Errorf("%s: tag %q", test.name, got.header.Get("ETag"))
		}
		if want := "public, max-age=31536000, immutable"; test.status < 400 && got.header.Get("Cache-Control") != want {
			t.Errorf("%s: cache control %q", test.name, got.header["Cache-Control"])
		}
	}
}

func testHeaders(t *testing.T, start Start) {
	_, c := begin(t, start, 1, "round_robin", true)
	got := c.do("GET", "/headers", "Cookie", "lb=web-1")
	if got.status != http.StatusTeapot {
		t.Errorf("status %d", got.status)
	}
	want := http.Header{}
	for _, pair := range responseHeaders() {
		want.Add(pair[0], pair[1])
	}
	for name, values := range want {
		if diff := cmp.Diff(values, got.header[name]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	// The balancer's cookie does not replace the host's.
	cookies := c.do("GET", "/headers").header["Set-Cookie"]
	if len(cookies) != 4 || !slices.Equal(cookies[:3], want["Set-Cookie"]) {
		t.Errorf("cookies %q", cookies)
	}

	sent := c.request("GET", "/echo", nil,
		"Accept-Encoding", "br, gzip", "X-Twice", "one, and", "X-Twice", "two", "X-Empty", "",
		"Authorization", "Bearer abc", "If-None-Match", contentTag, "X-Stagebench-Op", "17", "Referer", "http://example.org/",
		"X-Long", strings.Repeat("x", 4000))
	sent.Header["User-Agent"] = []string{"kit/1"}
	seen := c.echo(sent)
	for name, values := range sent.Header {
		if diff := cmp.Diff(values, seen.Header[name]); diff != "" {
			t.Errorf("request header %s (-want +got):\n%s", name, diff)
		}
	}
	for _, name := range []string{"Connection", "Keep-Alive", "Proxy-Connection", "Transfer-Encoding"} {
		if values, found := seen.Header[name]; found {
			t.Errorf("the host got %s: %q", name, values)
		}
	}
}

func testPaths(t *testing.T, start Start) {
	_, c := begin(t, start, 1, "round_robin", false)
	for _, target := range []string{
		"/echo", "/echo?", "/echo?a=1&b=2&a=3", "/echo?a=%zz&b;c", "/echo?q=%C3%A9&x=+%20",
		"/echo/a%2Fb", "/echo/%E2%82%AC", "/echo/a;b=1,c", "/echo/" + strings.Repeat("x", 2000),
	} {
		req := c.request("GET", "/echo", nil)
		req.URL = &url.URL{Scheme: "http", Host: req.URL.Host, Opaque: "//" + req.URL.Host + target}
		// The client sends an opaque URL unchanged, in absolute form. The balancer may
		// send the absolute form or only the path.
		if seen := c.echo(req); seen.Target != target && seen.Target != "http://"+req.URL.Host+target {
			t.Errorf("for target %q the host got %q", target, seen.Target)
		}
	}
}

func testForwarded(t *testing.T, start Start) {
	_, c := begin(t, start, 1, "round_robin", false)
	req := c.request("GET", "/echo", nil,
		"X-Forwarded-For", "203.0.113.9", "X-Forwarded-Host", "forged", "X-Forwarded-Proto", "https")
	req.Host = "photos.example.org"
	seen := c.echo(req)
	if seen.Host != "photos.example.org" || seen.Header.Get("X-Forwarded-Host") != "photos.example.org" {
		t.Errorf("host %q, X-Forwarded-Host %q", seen.Host, seen.Header["X-Forwarded-Host"])
	}
	if got := strings.Join(seen.Header["X-Forwarded-For"], ", "); got != "203.0.113.9, 127.0.0.1" {
		t.Errorf("X-Forwarded-For %q: want the client's value and then its address", got)
	}
	if got := seen.Header.Get("X-Forwarded-Proto"); got != "http" {
		t.Errorf("X-Forwarded-Proto %q", got)
	}
}
