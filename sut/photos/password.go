package photos

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
)

// HashPassword returns the salted digest for User.Password: SHA-256 of the login, which is
// the salt, and the password.
//
// A service with real accounts must use bcrypt, scrypt or Argon2 instead. These cost tens
// of milliseconds of CPU by design. On a host of 0.1 core one login would take a second,
// and a benchmark would measure the hashing of passwords. The accounts here are synthetic
// and share one public password, so there is nothing to protect.
func HashPassword(login, password string) string {
	digest := sha256.Sum256([]byte("stagebench\x00" + login + "\x00" + password))
	return hex.EncodeToString(digest[:])
}

// CheckPassword reports whether password is the user's password.
func (u User) CheckPassword(password string) bool {
	return subtle.ConstantTimeCompare([]byte(HashPassword(u.Login, password)), []byte(u.Password)) == 1
}
