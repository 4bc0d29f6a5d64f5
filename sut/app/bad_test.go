package app_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut/app"
)

// bad is a bad request and the status that it must get.
type bad struct {
	name    string
	request request
	status  int
}

func jsonTo(method, path, body string) request {
	return request{method: method, path: path, body: body, header: map[string]string{"Content-Type": "application/json"}}
}

func upload(contentType, body string) request {
	return request{method: "POST", path: "/api/photos", body: body, header: map[string]string{"Content-Type": contentType}}
}

// badRequests lists the errors that a client can make.
func badRequests(t testing.TB) []bad {
	return slices.Concat(badReads(), badLogins(), badWrites(), badUploads(), badForms(t), withoutSession())
}

func badReads() []bad {
	return []bad{
		{"unknown path", get("/nothing/here"), 404},
		{"unknown api", get("/api/albums"), 404},
		{"wrong method on the page", request{method: "POST", path: "/"}, 405},
		{"wrong method on a photo", request{method: "PUT", path: "/api/photos/1"}, 405},
		{"wrong method on an image", request{method: "DELETE", path: "/img/1/thumb.jpg"}, 405},
		{"made-up method", request{method: "GRAB", path: "/api/feed"}, 405},
		{"wrong method on health", request{method: "POST", path: "/healthz"}, 405},
		{"comments cannot be listed", get("/api/photos/7/comments"), 405},

		{"id is text", get("/api/photos/abc"), 400},
		{"id is negative", get("/api/photos/-1"), 400},
		{"id has a sign", get("/api/photos/+1"), 400},
		{"id is zero", get("/api/photos/0"), 400},
		{"id is hexadecimal", get("/api/users/0x10"), 400},
		{"id has 64 bits", get("/api/users/9223372036854775808"), 400},
		{"id is very long", get("/api/photos/" + strings.Repeat("9", 5000)), 400},
		{"id is SQL", get("/api/photos/1%27%20OR%20%271%27=%271"), 400},
		{"id is not UTF-8", get("/api/photos/%ff%fe"), 400},
		{"id has a NUL", get("/api/users/1%00"), 400},
		{"photo does not exist", get("/api/photos/4000000"), 404},
		{"user does not exist", get("/api/users/4000000"), 404},

		{"feed without a user", get("/api/feed"), 400},
		{"feed of text", get("/api/feed?user=me"), 400},
		{"limit is zero", get("/api/feed?user=1&limit=0"), 400},
		{"limit is negative", get("/api/feed?user=1&limit=-5"), 400},
		{"limit is too high", get("/api/feed?user=1&limit=101"), 400},
		{"limit is text", get("/api/feed?user=1&limit=all"), 400},
		{"query is malformed", get("/api/feed?user=%zz"), 400},
		{"query has a semicolon", get("/api/feed?user=1;limit=2"), 400},

		{"variant is unknown", get("/img/1/huge.jpg"), 404},
		{"variant has no extension", get("/img/1/thumb"), 404},
		{"variant is a png", get("/img/1/thumb.png"), 404},
		{"variant climbs", get("/img/1/..%2f..%2fsecret.jpg"), 404},
		{"image id is text", get("/img/x/thumb.jpg"), 400},
		{"image version is text", get("/img/1/thumb.jpg?v=new"), 400},
		{"image query is malformed", get("/img/1/thumb.jpg?%zz"), 400},
		{"image does not exist", get("/img/4000000/thumb.jpg"), 404},
		{"asset does not exist", get("/static/app.exe"), 404},
		{"asset climbs", get("/static/..%2fpage.html"), 404},
	}
}

func badLogins() []bad {
	return []bad{
		{"login is not JSON", jsonTo("POST", "/api/login", "user-1"), 400},
		{"login is empty", jsonTo("POST", "/api/login", ""), 400},
		{"login ends early", jsonTo("POST", "/api/login", `{"login": "us`), 400},
		{
			"login has an unknown field",
			jsonTo("POST", "/api/login", `{"login": "user-1", "password": "stagebench", "admin": true}`), 400,
		},
		{"login is a number", jsonTo("POST", "/api/login", `{"login": 1, "password": "x"}`), 400},
		{"login is a list", jsonTo("POST", "/api/login", `[]`), 400},
		{"login is null", jsonTo("POST", "/api/login", `null`), 400},
		{"login comes twice", jsonTo("POST", "/api/login", `{"login": "user-1", "password": "stagebench"} {}`), 400},
		{"login without a name", jsonTo("POST", "/api/login", `{"password": "stagebench"}`), 400},
		{"login without a password", jsonTo("POST", "/api/login", `{"login": "user-1"}`), 400},
		{"login is too long", jsonTo("POST", "/api/login",
			fmt.Sprintf(`{"login": %q, "password": "x"}`, strings.Repeat("a", 65))), 400},
		{"login has a NUL", jsonTo("POST", "/api/login", `{"login": "user\u0000", "password": "x"}`), 400},
		{"login is not UTF-8", jsonTo("POST", "/api/login", "{\"login\": \"\xff\", \"password\": \"x\"}"), 400},
		{"login nests", jsonTo("POST", "/api/login", strings.Repeat("[", 20_000)), 400},
		{"login is oversized", jsonTo("POST", "/api/login", `{"login": "`+strings.Repeat("a", 64<<10)+`"}`), 413},
		{"login is a form", request{
			method: "POST", path: "/api/login", body: "login=user-1",
			header: map[string]string{"Content-Type": "application/x-www-form-urlencoded"},
		}, 415},
		{"login of an unknown user", jsonTo("POST", "/api/login", `{"login": "nobody", "password": "stagebench"}`), 401},
		{"login with a wrong password", jsonTo("POST", "/api/login", `{"login": "user-1", "password": "guess"}`), 401},
		{"login is SQL", jsonTo("POST", "/api/login", `{"login": "' OR 1=1 --", "password": "x"}`), 401},
	}
}

func badWrites() []bad {
	comments, long := "/api/photos/7/comments", strings.Repeat("ä", 2001)
	compressed := jsonTo("POST", comments, `{"text": "x"}`)
	compressed.header["Content-Encoding"] = "gzip"
	return []bad{
		{"comment has no type", request{method: "POST", path: comments, body: `"x"`}, 415},
		{"comment is text", request{
			method: "POST", path: comments, body: `x`,
			header: map[string]string{"Content-Type": "text/plain"},
		}, 415},
		{
			"comment type is malformed",
			request{method: "POST", path: comments, body: `x`, header: map[string]string{"Content-Type": "application/json; ="}},
			415,
		},
		{"comment in UTF-16", request{
			method: "POST", path: comments, body: `{}`,
			header: map[string]string{"Content-Type": "application/json; charset=utf-16"},
		}, 415},
		{"comment is compressed", compressed, 415},
		{"comment is empty", jsonTo("POST", comments, `{"text": " \n "}`), 400},
		{"comment is too long", jsonTo("POST", comments, fmt.Sprintf(`{"text": %q}`, long)), 400},
		{"comment has a NUL", jsonTo("POST", comments, `{"text": "a\u0000b"}`), 400},
		{"comment has an escape sequence", jsonTo("POST", comments, `{"text": "\u001b[2J"}`), 400},
		{"comment on nothing", jsonTo("POST", "/api/photos/4000000/comments", `{"text": "x"}`), 404},
		{"like nothing", request{method: "POST", path: "/api/photos/4000000/like"}, 404},
		{"like text", request{method: "POST", path: "/api/photos/best/like"}, 400},
		{"follow nobody", request{method: "POST", path: "/api/users/4000000/follow"}, 404},
		{"follow oneself", request{method: "POST", path: "/api/users/1/follow"}, 400},
		{"follow text", request{method: "POST", path: "/api/users/me/follow"}, 400},
		{"rename to nothing", jsonTo("PATCH", "/api/photos/1", `{"title": ""}`), 400},
		{"rename to two lines", jsonTo("PATCH", "/api/photos/1", `{"title": "a\nb"}`), 400},
		{"rename something else", jsonTo("PATCH", "/api/photos/1", `{"name": "a"}`), 400},
		{"rename another's", jsonTo("PATCH", "/api/photos/2", `{"title": "mine"}`), 403},
		{"rename nothing", jsonTo("PATCH", "/api/photos/4000000", `{"title": "x"}`), 404},
		{"rename text", jsonTo("PATCH", "/api/photos/x", `{"title": "x"}`), 400},
		{"delete another's", request{method: "DELETE", path: "/api/photos/2"}, 403},
		{"delete nothing", request{method: "DELETE", path: "/api/photos/4000000"}, 404},
		{"delete text", request{method: "DELETE", path: "/api/photos/x"}, 400},
	}
}

func badUploads() []bad {
	picture := string(sampleJPEG(16, 16))
	titled := func(query string) request {
		r := upload("image/jpeg", picture)
		r.path += query
		return r
	}
	unsized := upload("image/jpeg", strings.Repeat("x", maxUpload+1))
	unsized.unsized = true
	return []bad{
		{"upload nothing", upload("image/jpeg", ""), 400},
		{"upload without a type", upload("", picture), 415},
		{"upload a png", upload("image/png", "\x89PNG"), 415},
		{"upload a png as a jpeg", upload("image/jpeg", "\x89PNG\r\n\x1a\n"), 415},
		{"upload half", upload("image/jpeg", picture[:len(picture)/2]), 400},
		{"upload a bomb", upload("image/jpeg", string(bombJPEG())), 413},
		{"upload too much", upload("image/jpeg", strings.Repeat("x", maxUpload+1)), 413},
		{"upload far too much", upload("image/jpeg", strings.Repeat("x", 2*maxUpload)), 413},
		{"upload too much without a length", unsized, 413},
		{"title is not UTF-8", titled("?title=%ff"), 400},
		{"title has a NUL", titled("?title=a%00b"), 400},
		{"title is too long", titled("?title=" + strings.Repeat("a", 201)), 400},
		{"title is blank", titled("?title=+"), 400},
		{"title is malformed", titled("?title=%z"), 400},
	}
}

func badForms(t testing.TB) []bad {
	picture := string(sampleJPEG(16, 16))
	return []bad{
		{"form without a boundary", upload("multipart/form-data", "x"), 400},
		{"form is empty", upload("multipart/form-data; boundary=b", ""), 400},
		{"form is text", upload("multipart/form-data; boundary=b", "hello"), 400},
		{"form ends early", upload("multipart/form-data; boundary=b",
			"--b\r\nContent-Disposition: form-data; name=\"photo\"\r\n\r\nhalf"), 400},
		{"form has no photo", form(t, [2]string{"title", "x"}), 400},
		{"form has an empty photo", form(t, [2]string{"photo", ""}), 400},
		{"form has two photos", form(t, [2]string{"photo", picture}, [2]string{"photo", picture}), 400},
		{"form has an unknown field", form(t, [2]string{"photo", picture}, [2]string{"album", "x"}), 400},
		{"form has half a photo", form(t, [2]string{"photo", picture[:len(picture)/2]}), 400},
		{"form has a bomb", form(t, [2]string{"photo", string(bombJPEG())}), 413},
		{"form has a large photo", form(t, [2]string{"photo", strings.Repeat("x", maxUpload+1)}), 413},
		{"form has a large title", form(t, [2]string{"title", strings.Repeat("x", 801)}, [2]string{"photo", picture}), 413},
		{"form is oversized", form(t, [2]string{"photo", strings.Repeat("x", 2*maxUpload)}), 413},
		{"form title is not UTF-8", form(t, [2]string{"title", "\xff"}, [2]string{"photo", picture}), 400},
	}
}

// withoutSession lists the requests that need a session, without a session and with an
// unknown one.
func withoutSession() (list []bad) {
	for _, r := range []request{
		{method: "GET", path: "/api/me"},
		{method: "POST", path: "/api/logout"},
		uploadOf(sampleJPEG(8, 8)),
		jsonTo("PATCH", "/api/photos/1", `{"title": "x"}`),
		{method: "DELETE", path: "/api/photos/1"},
		{method: "POST", path: "/api/photos/1/like"},
		jsonTo("POST", "/api/photos/1/comments", `{"text": "x"}`),
		{method: "POST", path: "/api/users/2/follow"},
	} {
		r.anonymous = true
		list = append(list, bad{r.method + " " + r.path + " without a session", r, 401})
		stale := r
		stale.header = map[string]string{
			"Content-Type": r.header["Content-Type"],
			"Cookie":       "session=0123456789abcdef0123456789abcdef",
		}
		list = append(list, bad{r.method + " " + r.path + " with a stale session", stale, 401})
	}
	return list
}

// Bad input gets a 4xx with an error and a hint in JSON. It changes nothing and is not
// logged.
func TestBadInput(t *testing.T) {
	for _, test := range badRequests(t) {
		t.Run(test.name, func(t *testing.T) {
			s := newService(t)
			before := s.blobs.count()
			w := s.do(test.request)
			if w.Code != test.status {
				t.Errorf("status %d, want %d: %s", w.Code, test.status, w.Body)
			}
			var answer struct{ Error, Hint string }
			if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || answer.Error == "" || answer.Hint == "" {
				t.Errorf("the body lacks an error or a hint: %s", w.Body)
			}
			if len(answer.Error) > 300 {
				t.Errorf("the error is too long: %d bytes", len(answer.Error))
			}
			if w.Header().Get("Content-Type") != "application/json" || w.Header().Get(app.HeaderServedBy) != "web-1" {
				t.Errorf("headers %v", w.Header())
			}
			if test.status == 405 && w.Header().Get("Allow") == "" {
				t.Error("405 without Allow")
			}
			if test.status == 401 && w.Header().Get("Www-Authenticate") == "" {
				t.Error("401 without WWW-Authenticate")
			}
			if s.blobs.count() != before || len(s.store.photos) != 9 || len(s.store.comments) != 0 {
				t.Error("something was stored")
			}
			if s.log.Len() != 0 {
				t.Errorf("the log has %s", s.log)
			}
		})
	}
}

func TestAllowedMethods(t *testing.T) {
	s := newService(t)
	for path, want := range map[string]string{
		"/": "GET, HEAD", "/api/photos": "POST", "/api/photos/1": "DELETE, GET, HEAD, PATCH", "/api/me": "GET, HEAD",
		"/img/1/thumb.jpg": "GET, HEAD",
	} {
		if got := s.do(request{method: "OPTIONS", path: path}).Header().Get("Allow"); got != want {
			t.Errorf("%s allows %q, want %q", path, got, want)
		}
	}
}

// A body that is shorter than its Content-Length gets 400. The test uses a real
// connection, because only there can the server see the end.
func TestBodyEndsEarly(t *testing.T) {
	s := newService(t)
	server := httptest.NewServer(s)
	defer server.Close()
	for _, contentType := range []string{"image/jpeg", "multipart/form-data; boundary=b"} {
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST /api/photos HTTP/1.1\r\nHost: x\r\nCookie: %s\r\nContent-Type: %s\r\nContent-Length: "+
			"100\r\n\r\n--b\r\n", s.cookie, contentType)
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(conn)
		if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 400 Bad Request") {
			t.Errorf("%s: answer %q, error %v", contentType, answer, err)
		}
		conn.Close()
	}
}

// A client that stops sending in the middle of its body gets 408, and the memory
// reserved for its upload is released.
func TestSlowBody(t *testing.T) {
	s := newService(t, func(c *app.Config) { // its requests began almost a minute ago
		c.Now = func() time.Time { return time.Now().Add(50*time.Millisecond - time.Minute) }
	})
	server := httptest.NewServer(s)
	defer server.Close()
	for _, path := range append(slices.Repeat([]string{"/api/photos"}, uploadsInMemory+1), "/api/login") {
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nCookie: %s\r\nContent-Type: multipart/form-data; "+
			"boundary=b\r\nContent-Length: %d\r\n\r\n--b\r\n", path, s.cookie, maxUpload)
		want := "HTTP/1.1 408 Request Timeout"
		if path == "/api/login" {
			want = "HTTP/1.1 415 Unsupported Media Type" // refused before the body is read
		}
		answer, err := io.ReadAll(conn)
		if err != nil || !strings.HasPrefix(string(answer), want) {
			t.Errorf("answer %q, error %v, want %s", answer, err, want)
		}
		conn.Close()
	}
}

// An oversized upload is refused before the client sends its body. The test uses a real
// connection.
func TestOversizedUploadIsRefusedEarly(t *testing.T) {
	s := newService(t)
	server := httptest.NewServer(s)
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST /api/photos HTTP/1.1\r\nHost: x\r\nCookie: %s\r\nContent-Type: "+
		"image/jpeg\r\nContent-Length: 1000000000\r\nExpect: 100-continue\r\n\r\n", s.cookie)
	answer, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 413 Request Entity Too Large") {
		t.Errorf("answer %q, error %v", answer, err)
	}
}
