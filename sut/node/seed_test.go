package node

import (
	"strings"
	"testing"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/postgres"
	"github.com/stagebench/stagebench/sut/sqlite"
)

// The template version differs between engines and includes the version of their files.
func TestTemplateVersion(t *testing.T) {
	embedded, err := TemplateVersion(sut.SQLite)
	if err != nil || !strings.HasSuffix(embedded, "-"+sqlite.LibraryVersion) {
		t.Errorf("template version of SQLite: %q, %v", embedded, err)
	}
	install, missing := postgres.Find()
	native, err := TemplateVersion(sut.Postgres)
	if (err == nil) != (missing == nil) || !strings.HasSuffix(native, "-"+install.FilesVersion()) || native == embedded {
		t.Errorf("template version of PostgreSQL: %q, %v, want one with %q", native, err, install.FilesVersion())
	}
}
