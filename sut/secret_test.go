package sut_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stagebench/stagebench/sut"
)

func TestSecret(t *testing.T) {
	one, two := sut.NewSecret(), sut.NewSecret()
	if one == two || len(one) != 64 {
		t.Errorf("two secrets are equal, or have %d characters, want 64", len(one))
	}
	if !one.Authorizes(one.Bearer()) || one.Authorizes(two.Bearer()) || one.Authorizes(string(one)) || one.Matches("") {
		t.Error("a secret must authorize itself and nothing else")
	}
	if empty := sut.Secret(""); empty.Matches("") || empty.Authorizes(empty.Bearer()) {
		t.Error("an empty secret authorizes somebody")
	}
	config := sut.NodeConfig{Node: "web-1", Secret: one}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if text := fmt.Sprintf(format, config); strings.Contains(text, string(one)) {
			t.Errorf("%s shows the secret: %s", format, text)
		}
	}
}
