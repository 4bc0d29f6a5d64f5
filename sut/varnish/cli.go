package varnish

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Statuses of the management interface. Source: Varnish, varnish-cli(7).
const (
	statusOK           = 200
	statusAuthenticate = 107
)

// command sends one command to the management interface over a new connection, and returns the answer. Words that may
// have special bytes must be quoted.
func (s *Server) command(ctx context.Context, words ...string) (string, error) {
	address, err := s.management()
	if err != nil {
		return "", fmt.Errorf("management interface: %w", err)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return "", fmt.Errorf("management interface: %w", err)
	}
	defer conn.Close()
	// Closing the connection unblocks the write and the read when ctx ends.
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	answer, err := s.converse(conn, words)
	if err != nil {
		return "", errors.Join(fmt.Errorf("management interface: %s: %w", words[0], err), context.Cause(ctx))
	}
	return answer, nil
}

// converse authenticates and sends one command.
func (s *Server) converse(conn io.ReadWriter, words []string) (string, error) {
	in := bufio.NewReader(conn)
	status, text, err := readAnswer(in)
	if err != nil {
		return "", err
	}
	if status == statusAuthenticate {
		secret, err := os.ReadFile(filepath.Join(s.cfg.Dir, secretName))
		if err != nil {
			return "", err
		}
		challenge, _, _ := strings.Cut(text, "\n")
		if _, err := fmt.Fprintf(conn, "auth %s\n", response(challenge, secret)); err != nil {
			return "", err
		}
		if status, text, err = readAnswer(in); err != nil {
			return "", err
		}
	}
	if status != statusOK {
		return "", fmt.Errorf("status %d: %s", status, strings.TrimSpace(text))
	}
	if _, err := io.WriteString(conn, strings.Join(words, " ")+"\n"); err != nil {
		return "", err
	}
	if status, text, err = readAnswer(in); err == nil && status != statusOK {
		err = fmt.Errorf("status %d: %s", status, strings.TrimSpace(text))
	}
	return text, err
}

// response proves that we know the secret. Source: Varnish, varnish-cli(7), Authentication.
func response(challenge string, secret []byte) string {
	sum := sha256.Sum256(bytes.Join([][]byte{[]byte(challenge + "\n"), secret, []byte(challenge + "\n")}, nil))
	return hex.EncodeToString(sum[:])
}

// maxAnswer bounds the length of an answer.
const maxAnswer = 1 << 20

// readAnswer reads an answer: a line with status and length, the text, and a line end.
func readAnswer(in *bufio.Reader) (status int, text string, err error) {
	line, err := in.ReadString('\n')
	if err != nil {
		return 0, "", err
	}
	fields := strings.Fields(line)
	if len(fields) != 2 {
		return 0, "", fmt.Errorf("first line %q: want status and length", line)
	}
	status, err = strconv.Atoi(fields[0])
	if err != nil {
		return 0, "", fmt.Errorf("status: %w", err)
	}
	length, err := strconv.Atoi(fields[1])
	if err != nil || length < 0 || length > maxAnswer {
		return 0, "", fmt.Errorf("length %q: want 0 to %d", fields[1], maxAnswer)
	}
	raw := make([]byte, length+1)
	_, err = io.ReadFull(in, raw)
	return status, string(raw[:length]), err
}

// quoted is a word of a command that may contain any byte, also spaces and quotes.
func quoted(word string) string {
	var out strings.Builder
	out.WriteByte('"')
	for _, c := range []byte(word) {
		if c < 0x20 || c == '"' || c == '\\' || c > 0x7e {
			fmt.Fprintf(&out, `\%03o`, c)
		} else {
			out.WriteByte(c)
		}
	}
	out.WriteByte('"')
	return out.String()
}

// management returns the address of the management interface. The server writes it into its shared memory as "IP port"
// with a zero byte at the end.
func (s *Server) management() (string, error) {
	files, err := filepath.Glob(filepath.Join(s.cfg.Dir, workName, "_.vsm_mgt", "_.Arg.*"))
	if err != nil {
		return "", err
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			return "", err
		}
		if address, ok := parseManagement(text); ok {
			return address, nil
		}
	}
	return "", errors.New("no address found: is the server running?")
}

// parseManagement finds "IP port" in a file of arguments.
func parseManagement(text []byte) (string, bool) {
	for part := range bytes.SplitSeq(text, []byte{0}) {
		ip, port, found := strings.Cut(strings.TrimSpace(string(part)), " ")
		if n, err := strconv.Atoi(port); found && err == nil && n > 0 && net.ParseIP(ip) != nil {
			return net.JoinHostPort(ip, port), true
		}
	}
	return "", false
}
