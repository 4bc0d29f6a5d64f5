package process

import (
	"errors"
	"log/slog"
	"net"
	"net/http"

	"github.com/stagebench/stagebench/sut"
)

// Why the admin address refuses a request.
var (
	errPage     = errors.New("this address is for the processes of the system, not for web pages")
	errStranger = errors.New("the request does not have the secret of the system")
)

// guarded returns a handler for the processes of the same system: a request must have its secret. A browser cannot know
// that. As a second barrier, a request from a page of another site (with an Origin) is refused, and so is one to a host
// name: the name of a hostile page may have been rebound to this address.
func guarded(next http.Handler, secret sut.Secret, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		status := http.StatusForbidden
		switch {
		case err != nil, net.ParseIP(host) == nil, r.Header.Get("Origin") != "":
			err = errPage
		case secret.Authorizes(r.Header.Get("Authorization")):
			next.ServeHTTP(w, r)
			return
		default:
			status, err = http.StatusUnauthorized, errStranger
			w.Header().Set("WWW-Authenticate", `Bearer realm="stagebench"`)
		}
		log.Warn("refused a request at the admin address", "client", r.RemoteAddr, "method", r.Method,
			"path", r.URL.Path, "cause", err.Error())
		SendError(w, status, err, "use the commands of stagebench, such as status, kill, scale and logs")
	})
}
