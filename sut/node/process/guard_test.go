package process

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stagebench/stagebench/sut"
)

// Only processes of the system get through: neither strangers nor web pages do, not even with the secret.
func TestGuard(t *testing.T) {
	t.Parallel()
	secret := sut.NewSecret()
	reached := 0
	next := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached++ })
	h := guarded(next, secret, slog.New(slog.DiscardHandler))
	for name, c := range map[string]struct {
		host, origin, authorization string
		want                        int
	}{
		"a process of the system":  {"127.0.0.1:80", "", secret.Bearer(), http.StatusOK},
		"IPv6":                     {"[::1]:80", "", secret.Bearer(), http.StatusOK},
		"a stranger":               {"127.0.0.1:80", "", "", http.StatusUnauthorized},
		"another system":           {"127.0.0.1:80", "", sut.NewSecret().Bearer(), http.StatusUnauthorized},
		"another scheme":           {"127.0.0.1:80", "", "Basic " + string(secret), http.StatusUnauthorized},
		"a page of another site":   {"127.0.0.1:80", "https://example.org", secret.Bearer(), http.StatusForbidden},
		"a page without an origin": {"127.0.0.1:80", "null", secret.Bearer(), http.StatusForbidden},
		"a rebound name":           {"example.org:80", "", secret.Bearer(), http.StatusForbidden},
		"localhost by name":        {"localhost:80", "", secret.Bearer(), http.StatusForbidden},
	} {
		before, w := reached, httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodPut, sut.WiringPath, nil)
		r.Host = c.host
		r.Header.Set("Authorization", c.authorization)
		if c.origin != "" {
			r.Header.Set("Origin", c.origin)
		}
		h.ServeHTTP(w, r)
		if w.Code != c.want || (reached > before) != (c.want == http.StatusOK) {
			t.Errorf("%s: %d, reached: %t, want %d", name, w.Code, reached > before, c.want)
		}
	}
}
