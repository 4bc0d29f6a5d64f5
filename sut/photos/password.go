package photos

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
)

// HashPassword returns the salted digest that User.Password holds: SHA-256 over
// the login, which is the salt, and the password.
//
// It is deliberately not bcrypt, scrypt or Argon2, which any service with real
// accounts must use. Those cost tens of milliseconds of CPU by design: on a
// host of 0.1 core one login would take a second, and every figure would
// measure password hashing instead of the architecture. The accounts are
// synthetic and share one public password, so there is nothing to protect.
func HashPassword(login, password string) string {
	digest := sha256.Sum256([]byte("stagebench\x00" + login + "\x00" + password))
	return hex.EncodeToString(digest[:])
}

// CheckPassword reports whether it is the user's password.
func (u User) CheckPassword(password string) bool {
	return subtle.ConstantTimeCompare([]byte(HashPassword(u.Login, password)), []byte(u.Password)) == 1
}
