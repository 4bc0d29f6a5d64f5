package balance

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// minHAProxy is the oldest version that is supported, major and minor: Debian
// 12's.
const minHAProxyMajor, minHAProxyMinor = 2, 6

// howToInstallHAProxy is the second line of every error about a missing server.
const howToInstallHAProxy = "apt-get install haproxy"

// HAProxyInstall is an installed HAProxy.
type HAProxyInstall struct {
	// Path is the program.
	Path string
	// Version is what it says of itself, such as "2.6.12".
	Version string
}

// FindHAProxy looks for an installed server: on PATH, then where packages put
// it, which an ordinary user's PATH leaves out. The second line of its error
// says how to get one.
func FindHAProxy() (HAProxyInstall, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return chooseHAProxy([]string{"haproxy", "/usr/sbin/haproxy", "/usr/local/sbin/haproxy"}, func(path string) (HAProxyInstall, error) {
		path, err := exec.LookPath(path)
		if err != nil {
			return HAProxyInstall{}, err
		}
		version, err := haproxyVersion(ctx, path)
		return HAProxyInstall{Path: path, Version: version}, err
	})
}

// chooseHAProxy picks the first that is there and new enough.
func chooseHAProxy(paths []string, look func(path string) (HAProxyInstall, error)) (HAProxyInstall, error) {
	var old *HAProxyInstall
	for _, path := range paths {
		install, err := look(path)
		if err != nil {
			continue
		}
		if newEnough(install.Version) {
			return install, nil
		}
		old = &install
	}
	if old != nil {
		return HAProxyInstall{}, fmt.Errorf("haproxy: found only version %s at %s, want %d.%d or newer\n%s",
			old.Version, old.Path, minHAProxyMajor, minHAProxyMinor, howToInstallHAProxy)
	}
	return HAProxyInstall{}, errors.New("haproxy: not found on PATH, in /usr/sbin or /usr/local/sbin\n" + howToInstallHAProxy)
}

// haproxyVersion asks a program for its version.
func haproxyVersion(ctx context.Context, path string) (string, error) {
	out, err := exec.CommandContext(ctx, path, "-v").Output()
	if err != nil {
		return "", err
	}
	return parseHAProxyVersion(string(out))
}

// parseHAProxyVersion reads "HAProxy version 2.6.12-1+deb12u4 2026/10/17"; older
// ones say "HA-Proxy version".
func parseHAProxyVersion(text string) (string, error) {
	match := regexp.MustCompile(`^HA-?Proxy version (\d+\.\d+(?:\.\d+)?)`).FindStringSubmatch(text)
	if match == nil {
		line, _, _ := strings.Cut(text, "\n")
		return "", fmt.Errorf("%q is no version of HAProxy", line)
	}
	return match[1], nil
}

// newEnough compares a version with the oldest supported one.
func newEnough(version string) bool {
	parts := strings.Split(version, ".")
	major, _ := strconv.Atoi(parts[0])
	minor := 0
	if len(parts) > 1 {
		minor, _ = strconv.Atoi(parts[1])
	}
	return major > minHAProxyMajor || major == minHAProxyMajor && minor >= minHAProxyMinor
}
