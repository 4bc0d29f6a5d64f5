package balance

import (
	"net/http"
	"net/textproto"
	"slices"
	"strings"
)

// takeCookie removes the cookies of that name from a request and returns the
// value of the first, "" when there is none. What else the header holds stays
// as it is.
func takeCookie(header http.Header, name string) string {
	// Most requests hold no such cookie, and then nothing is copied.
	holds := func(line string) bool { return strings.Contains(line, name+"=") }
	if !slices.ContainsFunc(header["Cookie"], holds) {
		return ""
	}
	value, found := "", false
	var kept []string
	for _, line := range header["Cookie"] {
		var pairs []string
		for pair := range strings.SplitSeq(line, ";") {
			pair = textproto.TrimString(pair)
			key, text, _ := strings.Cut(pair, "=")
			switch {
			case key != name:
				pairs = append(pairs, pair)
			case !found:
				value, found = strings.Trim(text, `"`), true
			}
		}
		if len(pairs) > 0 {
			kept = append(kept, strings.Join(pairs, "; "))
		}
	}
	header["Cookie"] = kept
	if len(kept) == 0 {
		delete(header, "Cookie")
	}
	return value
}

// setCookie adds a cookie to a response, as HAProxy's "cookie NAME insert
// nocache httponly" does: what carries one user's cookie is not for a shared
// cache.
func setCookie(header http.Header, name, value string) {
	header.Add("Set-Cookie", name+"="+value+"; path=/; HttpOnly")
	header.Add("Cache-Control", "private")
}
