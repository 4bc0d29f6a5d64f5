package attach_test

import (
	"net/url"
	"strings"
	"testing"

	"github.com/stagebench/stagebench/targets/attach"
)

func TestLoopbackIsPermitted(t *testing.T) {
	for _, target := range []string{
		"http://127.0.0.1:8080/", "http://127.9.9.9/a?b=c", "https://localhost:8443", "http://[::1]:80/",
	} {
		if u, err := attach.Parse(t.Context(), target, nil); err != nil || u.String() != target {
			t.Errorf("%s: %v, %v", target, u, err)
		}
	}
}

func TestOtherHostsAreRefused(t *testing.T) {
	for target, want := range map[string]string{
		"http://192.0.2.1/":            "--allow-host 192.0.2.1",
		"http://[2001:db8::1]:80/":     "--allow-host 2001:db8::1",
		"http://0.0.0.0:80/":           "not on the loopback network",
		"http://no-such-host.invalid/": "want a URL",
		"127.0.0.1:8080":               "want a URL such as",
		"ftp://127.0.0.1/":             "not the URL of an HTTP service",
		"http://":                      "not the URL of an HTTP service",
		"http://user:pw@127.0.0.1/":    "leave it out",
		"http://127.0.0.1:99999/":      "want 1 to 65535",
	} {
		_, err := attach.Parse(t.Context(), target, nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one with %q", target, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "pw") {
			t.Errorf("%s: the error shows the password: %v", target, err)
		}
	}
}

func TestAHostCanBeAllowed(t *testing.T) {
	if _, err := attach.Parse(t.Context(), "http://192.0.2.1:8080/", []string{"192.0.2.1"}); err != nil {
		t.Error(err)
	}
	if _, err := attach.Parse(t.Context(), "http://192.0.2.2:8080/", []string{"192.0.2.1"}); err == nil {
		t.Error("Parse accepted a host because another host is allowed")
	}
}

func TestSameService(t *testing.T) {
	for pair, want := range map[[2]string]bool{
		{"http://LocalHost/a", "http://localhost:80/b?c"}: true,
		{"http://[::1]:80/", "http://[::1]/"}:             true,
		{"http://localhost/", "https://localhost/"}:       false,
		{"http://localhost/", "http://127.0.0.1/"}:        false,
		{"http://localhost:1/", "http://localhost:2/"}:    false,
	} {
		var urls []*url.URL
		for _, text := range pair {
			u, err := url.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			urls = append(urls, u)
		}
		if attach.SameService(urls[0], urls[1]) != want {
			t.Errorf("%v: want %t", pair, want)
		}
	}
}

func TestOnThisMachine(t *testing.T) {
	for target, want := range map[string]bool{
		"http://127.9.9.9/": true, "http://[::1]:80/": true, "http://[::1%25lo]/": true, "http://LOCALHOST/": true,
		"http://198.51.100.1/": false, "http://[2001:db8::1]/": false,
	} {
		u, err := url.Parse(target)
		if err != nil {
			t.Fatal(err)
		}
		if attach.OnThisMachine(t.Context(), u) != want {
			t.Errorf("%s: want %t", target, want)
		}
	}
}
