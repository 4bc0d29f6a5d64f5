package sut

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"io"
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

// String hides the secret.
func (Secret) String() string { return "(secret)" }

// GoString hides the secret, too.
func (s Secret) GoString() string { return s.String() }

// memcachedUser is the user name in front of the secret. A memcached server needs one, and every client uses the same.
const memcachedUser = "stagebench"

// MemcachedUsers returns the file of users of a memcached server that demands the secret (its option -Y).
func (s Secret) MemcachedUsers() string { return memcachedUser + ":" + string(s) + "\n" }

// ShowMemcached shows the secret to a memcached server over a new connection.
// https://github.com/memcached/memcached/blob/master/doc/protocol.txt, "Authentication"
func (s Secret) ShowMemcached(server io.ReadWriter) error {
	token := memcachedUser + " " + string(s)
	if _, err := fmt.Fprintf(server, "set auth 0 0 %d\r\n%s\r\n", len(token), token); err != nil {
		return err
	}
	const accepted = "STORED\r\n"
	reply := make([]byte, len(accepted))
	if _, err := io.ReadFull(server, reply); err != nil {
		return err
	}
	if string(reply) != accepted {
		return fmt.Errorf("the server refuses the secret of the system: %q", reply)
	}
	return nil
}
