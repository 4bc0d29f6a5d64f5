package app_test

import (
	"encoding/json"
	"net/url"
	"testing"
)

// FuzzUpload sends arbitrary uploads. Each must be stored or get a 4xx with JSON.
func FuzzUpload(f *testing.F) {
	picture := sampleJPEG(24, 16)
	valid := form(f, [2]string{"title", "Fog"}, [2]string{"photo", string(picture)})
	f.Add("image/jpeg", "Fog", picture)
	f.Add("image/jpeg", "", picture[:len(picture)/2])
	f.Add("image/jpeg", "", bombJPEG())
	f.Add("image/jpeg", "\xff\x00", picture)
	f.Add("image/png", "", []byte("\x89PNG"))
	f.Add(valid.header["Content-Type"], "", []byte(valid.body))
	f.Add(valid.header["Content-Type"], "", []byte(valid.body[:len(valid.body)/2]))
	f.Add("multipart/form-data; boundary=b", "",
		[]byte("--b\r\nContent-Disposition: form-data; name=photo\r\n\r\nx\r\n--b--"))
	f.Add("multipart/form-data", "", []byte("--"))
	f.Add("", "", []byte{})
	s := newService(f)
	f.Fuzz(func(t *testing.T, contentType, title string, body []byte) {
		w := s.do(request{
			method: "POST", path: "/api/photos?title=" + url.QueryEscape(title), body: string(body),
			header: map[string]string{"Content-Type": contentType},
		})
		if w.Code >= 500 || w.Code != 201 && w.Code < 400 {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		if !json.Valid(w.Body.Bytes()) {
			t.Errorf("the response is not JSON: %q", w.Body)
		}
	})
}

// FuzzJSON sends arbitrary bodies and ids to the routes that read JSON.
func FuzzJSON(f *testing.F) {
	f.Add(uint8(0), "1", `{"login": "user-2", "password": "stagebench"}`)
	f.Add(uint8(1), "1", `{"title": "Fog"}`)
	f.Add(uint8(2), "1", `{"text": "a\u0000b"}`)
	f.Add(uint8(2), "9223372036854775808", `{"text": 1}{}`)
	s := newService(f)
	f.Fuzz(func(t *testing.T, index uint8, id, body string) {
		routes := []request{
			{method: "POST", path: "/api/login"},
			{method: "PATCH", path: "/api/photos/" + url.PathEscape(id)},
			{method: "POST", path: "/api/photos/" + url.PathEscape(id) + "/comments"},
		}
		r := routes[int(index)%len(routes)]
		r.body, r.header = body, map[string]string{"Content-Type": "application/json"}
		w := s.do(r)
		if w.Code >= 500 {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		if w.Code != 307 && w.Code != 301 && !json.Valid(w.Body.Bytes()) { // the mux cleans paths such as /../
			t.Errorf("%d: the response is not JSON: %q", w.Code, w.Body)
		}
	})
}
