package store_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/store"
	"github.com/stagebench/stagebench/sut/store/storetest"
)

func TestPostgres(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) *storetest.Store {
		return storetest.Open(t, startPostgres(t).Address())
	})
}

func TestPostgresFaults(t *testing.T) {
	t.Parallel()
	storetest.Faults(t, startPostgres(t))
}

func BenchmarkWriteBack(b *testing.B) {
	storetest.WriteBack(b, storetest.Open(b, startPostgres(b).Address()))
}

// The types in the catalogue are those that PostgreSQL infers. The embedded engine infers
// no types and relies on the catalogue.
func TestDeclaredTypes(t *testing.T) {
	t.Parallel()
	p := startPostgres(t)
	if err := storetest.Open(t, p.Address()).CreateShard(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	conn, err := p.connect(t.Context(), store.Database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	names := map[uint32]store.Type{pgtype.Int8OID: store.BigInt, pgtype.Int4OID: store.Int, pgtype.TextOID: store.Text}
	for _, s := range store.Statements() {
		d, err := conn.Prepare(t.Context(), s.Name, s.SQL)
		if err != nil {
			t.Fatalf("%s: %v", s.Name, err)
		}
		var params []store.Type
		for _, oid := range d.ParamOIDs {
			params = append(params, names[oid])
		}
		if diff := cmp.Diff(s.Params, params); diff != "" {
			t.Errorf("%s: parameters (-declared +PostgreSQL):\n%s", s.Name, diff)
		}
		var columns []store.Column
		for _, f := range d.Fields {
			columns = append(columns, store.Column{Name: f.Name, Type: names[f.DataTypeOID]})
		}
		if diff := cmp.Diff(s.Columns, columns); diff != "" {
			t.Errorf("%s: columns (-declared +PostgreSQL):\n%s", s.Name, diff)
		}
	}
}

// Load analyzes the tables that it fills, and no others: for an empty table that was analyzed, PostgreSQL plans to scan
// it, also when it has many rows later.
func TestLoadAnalyzes(t *testing.T) {
	t.Parallel()
	p := startPostgres(t)
	s := storetest.Open(t, p.Address())
	data := photos.NewDataset(sut.DataCounts{Users: 10, Photos: 10, Comments: 10, Follows: 20, Images: 1}, 1)
	owned := func(photos.Bucket) bool { return true }
	if err := errors.Join(s.CreateShard(t.Context(), []photos.Bucket{1}),
		s.LoadShard(t.Context(), data.WithImageBytes([]int64{1}), owned)); err != nil {
		t.Fatal(err)
	}
	conn, err := p.connect(t.Context(), store.Database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	rows, err := conn.Query(t.Context(), "select relname::text from pg_class where relkind = 'r' and reltuples >= 0 "+
		"and relnamespace = 'public'::regnamespace order by relname")
	if err != nil {
		t.Fatal(err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	want := []string{"comments", "follows", "names", "owned", "photos", "residents", "users"}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("analyzed tables, error %v (-want +got):\n%s", err, diff)
	}
}

// The catalogue has no SQL that only one engine supports.
func TestCommonSubset(t *testing.T) {
	foreign := regexp.MustCompile(`(?i)::|\bany\s*\(|\bfor update\b|\bnow\s*\(|\bcurrent_|\bcast\s*\(|\bilike\b|` +
		`\bserial\b|\bidentity\b|\bor replace\b|\bpragma\b|\btrigger\b|\bcascade\b|\breferences\b`)
	parameter := regexp.MustCompile(`\$(\d+)`)
	names, texts := map[string]bool{}, map[string]bool{}
	for _, s := range store.Statements() {
		if names[s.Name] || texts[s.SQL] {
			t.Errorf("%s is in the catalogue twice", s.Name)
		}
		names[s.Name], texts[s.SQL] = true, true
		if word := foreign.FindString(s.SQL + s.SQLite); word != "" {
			t.Errorf("%s: %q is not common to both engines", s.Name, word)
		}
		seen := 0
		for _, m := range parameter.FindAllStringSubmatch(s.SQL, -1) {
			n, _ := strconv.Atoi(m[1])
			if n > seen+1 {
				t.Errorf("%s: $%d appears before $%d", s.Name, n, seen+1)
			}
			seen = max(seen, n)
		}
		if seen != len(s.Params) {
			t.Errorf("%s has %d parameters and declares %d", s.Name, seen, len(s.Params))
		}
		if s.SQLite != "" && !strings.HasPrefix(s.SQL, "create ") && !strings.HasPrefix(s.SQL, "lock ") {
			t.Errorf("%s: only the schema and locks may differ between engines", s.Name)
		}
	}
	// The login name is the only unique column besides the primary keys.
	unique := slices.DeleteFunc(store.Statements(),
		func(s store.Statement) bool { return !strings.Contains(s.SQL, "unique") })
	if len(unique) != 1 || strings.Count(unique[0].SQL, "unique") != 1 ||
		!strings.Contains(unique[0].SQL, "login text not null unique") {
		t.Errorf("statements with unique are %v, want only the login name to be unique", unique)
	}
}

func TestSchemaDigest(t *testing.T) {
	if d := store.SchemaDigest(); !regexp.MustCompile(`^[0-9a-f]{16}$`).MatchString(d) || d != store.SchemaDigest() {
		t.Errorf("digest %q", d)
	}
}

func TestBadConfigurations(t *testing.T) {
	for want, c := range map[string]store.Config{
		"want host:port":       {Databases: []sut.Peer{{Address: "localhost"}}},
		"must not be negative": {Databases: []sut.Peer{{Address: "localhost:1"}}, MaxConns: -1},
		"there is no database": {},
		"either shards or one": {Databases: []sut.Peer{{Address: "localhost:1"}, {Address: "localhost:2", Shard: 2}}},
		"limits must":          {Databases: []sut.Peer{{Address: "localhost:1"}}, QueryTimeout: -time.Second},
	} {
		if _, err := store.Open(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: got %v, want %q", c, err, want)
		}
	}
}

// A Store ignores the environment variables of libpq.
func TestEnvironmentIsIgnored(t *testing.T) {
	p := startPostgres(t)
	for _, name := range []string{"PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGPASSWORD", "PGAPPNAME", "PGOPTIONS"} {
		t.Setenv(name, "12345")
	}
	t.Setenv("PGTARGETSESSIONATTRS", "read-only")
	t.Setenv("PGSSLMODE", "verify-full")
	s := storetest.Open(t, p.Address())
	if err := s.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

func ExampleStatements() {
	for _, s := range store.Statements() {
		if s.Name == "like" {
			fmt.Println(s.SQL)
			fmt.Println(s.Params, "->", s.Columns)
		}
	}
	// Output:
	// update photos set likes = likes + 1, version = version + 1 where id = $1 returning version
	// [bigint] -> [{version bigint}]
}

func TestPostgresShards(t *testing.T) {
	t.Parallel()
	storetest.Shards(t, func(t *testing.T) string { return startPostgres(t).Address() })
}
