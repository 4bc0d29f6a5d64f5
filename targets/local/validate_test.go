package local

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stagebench/stagebench/sut"
)

func TestValidate(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(*Options){
		"Binary is empty":                    func(o *Options) { o.Binary = "" },
		"a data set, a template directory":   func(o *Options) { o.TemplateVersion = nil },
		"a topology of 3 hosts and 0 nodes":  func(o *Options) { o.Topology.Nodes = nil },
		`host "a/b": the name`:               func(o *Options) { o.Topology.Hosts[0].Name = "a/b" },
		`host "db-1": the name`:              func(o *Options) { o.Topology.Hosts[0].Name = "db-1" },
		`node "..": the name`:                func(o *Options) { o.Topology.Nodes[0].Name = ".." },
		`node "logs": the name`:              func(o *Options) { o.Topology.Nodes[0].Name = "logs" },
		`node "blob-1": the name`:            func(o *Options) { o.Topology.Nodes[0].Name = "blob-1" },
		`node db-1: there is no host "moon"`: func(o *Options) { o.Topology.Nodes[0].Host = "moon" },
		`node db-1 uses "web-1", which`: func(o *Options) {
			o.Topology.Nodes[0].Uses = []string{"web-1"}
		},
		`the frontend, fallback or counter "x" is not a node`: func(o *Options) { o.Topology.Frontends = []string{"x"} },
		`the template name "small-1-sqlite-/"`:                func(o *Options) { o.TemplateVersion = version("/") },
		"version of the template for sqlite: gone": func(o *Options) {
			o.TemplateVersion = func(sut.Engine) (string, error) { return "", errors.New("gone") }
		},
		"databases of two engines": func(o *Options) {
			o.Topology.Nodes[1].Role, o.Topology.Nodes[1].Engine = sut.DB, sut.Postgres
		},
		"a blob store without a database": func(o *Options) { o.Topology.Nodes[0].Role = sut.Web },
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			s := newFixture(t, sut.LB, sut.Knobs{"web.hosts": "1"})
			change(&s.options)
			system, err := Up(t.Context(), s.options)
			if err == nil {
				system.Down(t.Context())
				t.Fatal("it came up")
			}
			if !strings.Contains(err.Error(), want) {
				t.Errorf("error %q, want %q in it", err, want)
			}
		})
	}
}

func TestADirectoryThatADroppedUserCannotReach(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root: only root drops to another user")
	}
	locked := filepath.Join(t.TempDir(), "locked")
	if err := os.Mkdir(locked, 0o700); err != nil {
		t.Fatal(err)
	}
	s := newFixture(t, sut.Single, sut.Knobs{"db.engine": "postgres"})
	s.options.workDir = filepath.Join(locked, "work")
	if _, err := Up(t.Context(), s.options); err == nil || !strings.Contains(err.Error(), "cannot pass through "+locked) {
		t.Errorf("error %v", err)
	}
}
