package sut

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"strings"
)

// Secret authenticates the processes of one system to each other. Whoever starts a system makes it, and passes it to
// each node on standard input. It goes over loopback connections only. Nothing stores it, and %v does not show it.
type Secret string

// NewSecret returns a secret of 256 random bits.
func NewSecret() Secret {
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // never fails
	return Secret(hex.EncodeToString(raw[:]))
}

// Matches reports whether a text is the secret. Its duration says nothing about the secret. No text matches an empty
// secret.
func (s Secret) Matches(text string) bool {
	return s != "" && subtle.ConstantTimeCompare([]byte(s), []byte(text)) == 1
}

// Bearer returns the value of the header Authorization of a request with the secret (RFC 6750).
func (s Secret) Bearer() string { return bearer + string(s) }

// Authorizes reports whether the value of a header Authorization has the secret.
func (s Secret) Authorizes(header string) bool {
	text, found := strings.CutPrefix(header, bearer)
	return found && s.Matches(text)
}

const bearer = "Bearer "

// Memcached returns the password file of a memcached server with the secret, and the command that logs a client in. The
// server answers STORED. Source: doc/protocol.txt of memcached, "Authentication".
func (s Secret) Memcached() (file, login string) {
	const user = "stagebench"
	login = fmt.Sprintf("set auth 0 0 %d\r\n%s %s\r\n", len(user)+1+len(s), user, string(s))
	return user + ":" + string(s) + "\n", login
}

// String hides the secret.
func (Secret) String() string { return "(secret)" }

// GoString hides the secret, too.
func (s Secret) GoString() string { return s.String() }
