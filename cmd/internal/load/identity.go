package load

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// Identity configures how the clients of an attack authenticate and which servers they
// trust. Secrets come from the environment, because every user of the machine can read
// the arguments of a command, and the shell history keeps them.
type Identity struct {
	Headers   []string // "Name: value"
	BasicEnv  string   // environment variable with user:password
	BearerEnv string   // environment variable with a token
	CA        string   // PEM file of authorities to trust instead of those of the system
	Cert, Key string   // PEM files of the client certificate
	Insecure  bool     // do not verify the server's certificate
	Name      string   // expected name in the server's certificate; "" = the host of the URL
}

// Header returns the headers of all requests. Getenv returns an environment variable.
func (i Identity) Header(getenv func(string) string) (map[string]string, error) {
	header := map[string]string{}
	for _, line := range i.Headers {
		name, value, found := strings.Cut(line, ":")
		name, value = http.CanonicalHeaderKey(strings.TrimSpace(name)), strings.TrimSpace(value)
		if !found || !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
			return nil, fmt.Errorf("--header %q\nwant 'Name: value', for example --header 'Accept: application/json'", line)
		}
		if _, duplicate := header[name]; duplicate {
			return nil, fmt.Errorf("--header %s is given twice\ngive it once, with commas between its values", name)
		}
		header[name] = value
	}
	if i.BasicEnv != "" && i.BearerEnv != "" || len(header["Authorization"]) > 0 && i.BasicEnv+i.BearerEnv != "" {
		return nil, fmt.Errorf("more than one way to authenticate\n" +
			"use one of --basic-env, --bearer-env and --header Authorization")
	}
	for _, way := range []struct {
		flag, variable, example string
		form                    func(secret string) (string, bool)
	}{
		{"--basic-env", i.BasicEnv, "user:password", func(secret string) (string, bool) {
			return "Basic " + base64.StdEncoding.EncodeToString([]byte(secret)), strings.Contains(secret, ":")
		}},
		{"--bearer-env", i.BearerEnv, "a token", func(secret string) (string, bool) {
			return "Bearer " + secret, httpguts.ValidHeaderFieldValue(secret)
		}},
	} {
		if way.variable == "" {
			continue
		}
		// An error message must not contain the secret.
		value, ok := way.form(getenv(way.variable))
		if getenv(way.variable) == "" || !ok {
			return nil, fmt.Errorf("%s %s: the variable is not set, or is not %s\n"+
				"set it in the environment of the command: %s=VALUE stagebench attack",
				way.flag, way.variable, way.example, way.variable)
		}
		header["Authorization"] = value
	}
	return header, nil
}

// TLS returns the TLS configuration; nil means the default.
func (i Identity) TLS() (*tls.Config, error) {
	if i.CA+i.Cert+i.Key+i.Name == "" && !i.Insecure {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: i.Name, InsecureSkipVerify: i.Insecure}
	if i.CA != "" {
		text, err := os.ReadFile(i.CA)
		if err != nil {
			return nil, fmt.Errorf("--tls-ca: %w\nwant a PEM file with the certificates of the authorities", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("--tls-ca %s: no certificate in the file\n"+
				"want a PEM file with the certificates of the authorities", i.CA)
		}
	}
	if i.Cert != "" || i.Key != "" {
		pair, err := tls.LoadX509KeyPair(i.Cert, i.Key)
		if err != nil {
			return nil, fmt.Errorf("--tls-cert, --tls-key: %w\ngive both: the PEM files of a certificate and of its key", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}
