package nginx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/stagebench/stagebench/sut"
)

// Purge removes the files of entries. nginx takes an entry without its file as a miss. A purge reads the begin of each
// file: the key of a variant is a digest of its request, which nothing else tells. Unlike the contract says, a response
// that is on its way while Purge runs is stored.
func (s *Server) Purge(ctx context.Context, p sut.Purge) error {
	if len(p.URLs) == 0 && len(p.Groups) == 0 {
		return nil
	}
	removed := int64(0)
	err := s.entries(ctx, func(path string, _ fs.DirEntry) error {
		e, err := readEntry(path)
		if err != nil || !e.matches(p) {
			return ignoreGone(err)
		}
		removed++
		return ignoreGone(os.Remove(path))
	})
	s.fetches.purged.Add(removed)
	if err != nil {
		return fmt.Errorf("nginx: purge: %w", err)
	}
	return nil
}

// entries calls visit for the file of each entry.
func (s *Server) entries(ctx context.Context, visit func(path string, file fs.DirEntry) error) error {
	return filepath.WalkDir(filepath.Join(s.cfg.Dir, cacheName), func(path string, file fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		// A file that is being filled has a number after a dot.
		if err != nil || file.IsDir() || strings.Contains(file.Name(), ".") {
			return ignoreGone(err)
		}
		return visit(path, file)
	})
}

// ignoreGone returns nil for the error of a file that nginx has removed.
func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// entry is what the begin of a file of the cache says.
type entry struct {
	key    string   // as in proxy_cache_key
	groups []string // members of Cache-Groups
}

// entryHead is the maximum length of the begin of a file: the binary header, the key and the header of the response.
// They fit into proxy_buffer_size.
const entryHead = 16 << 10

func readEntry(path string) (entry, error) {
	file, err := os.Open(path)
	if err != nil {
		return entry{}, err
	}
	defer file.Close()
	head := make([]byte, entryHead)
	n, err := io.ReadFull(file, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return entry{}, err
	}
	return parseEntry(head[:n])
}

// parseEntry parses the begin of a file: a binary header, "\nKEY: ...\n", and the header of the response.
func parseEntry(head []byte) (entry, error) {
	_, rest, found := bytes.Cut(head, []byte("\nKEY: "))
	key, rest, ended := bytes.Cut(rest, []byte("\n"))
	if !found || !ended {
		return entry{}, errors.New("a file of the cache has no key: is this an nginx of another kind?")
	}
	e := entry{key: string(key)}
	header, _, _ := bytes.Cut(rest, []byte("\r\n\r\n"))
	for line := range strings.SplitSeq(string(header), "\r\n") {
		if name, value, _ := strings.Cut(line, ":"); strings.EqualFold(name, "Cache-Groups") {
			e.groups = append(e.groups, parseGroups(value)...)
		}
	}
	return e, nil
}

// parseGroups returns the strings of a list of RFC 9651. It ignores their parameters, and members of other types.
func parseGroups(value string) []string {
	var groups []string
	var group strings.Builder
	quoted, escaped := false, false
	for _, c := range []byte(value) {
		switch {
		case escaped:
			group.WriteByte(c)
			escaped = false
		case quoted && c == '\\':
			escaped = true
		case c == '"' && quoted:
			groups = append(groups, group.String())
			quoted = false
		case c == '"':
			group.Reset()
			quoted = true
		case quoted:
			group.WriteByte(c)
		}
	}
	return groups
}

// matches reports whether a purge removes an entry. Without a site, a key begins with the host, which a purge does not
// name: all hosts are purged.
func (e entry) matches(p sut.Purge) bool {
	path := e.key
	if slash := strings.IndexByte(path, '/'); slash > 0 {
		path = path[slash:]
	}
	return slices.Contains(p.URLs, path) || slices.ContainsFunc(e.groups, func(group string) bool {
		return slices.Contains(p.Groups, group)
	})
}
