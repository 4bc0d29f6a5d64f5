package node

import (
	"context"
	"errors"
	"fmt"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/blob"
	"github.com/stagebench/stagebench/sut/imaging"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/sqlite"
	"github.com/stagebench/stagebench/sut/store"
)

// seederVersion is part of a template's identity besides the schema: it changes
// whenever the seeded rows or bytes do.
const seederVersion = "1"

// TemplateVersion identifies what a seeded database and a seeded blob directory
// hold, for a given sut.Data and engine: a template of another version is made
// anew.
func TemplateVersion() string { return seederVersion + "-" + store.SchemaDigest() }

func (b birth) startSQLite(ctx context.Context) (part, error) {
	listener, admin, err := b.listenBoth()
	if err != nil {
		return part{}, err
	}
	server, err := sqlite.New(sqlite.Config{
		Listener: listener, Dir: b.config.Dir, Statements: catalogue(), Log: b.log, Replication: b.sqliteReplication(),
	})
	if err != nil {
		return part{}, errors.Join(err, listener.Close(), admin.Close())
	}
	h := newHTTPServer()
	go func() {
		if err := server.Serve(context.WithoutCancel(ctx)); err != nil {
			h.died <- err
		}
	}()
	h.serve(admin, b.databaseAdmin(embedded{server}, sqlite.ErrRefused))
	return part{
		ready: sut.Ready{Node: b.config.Node, Address: listener.Addr().String(), Admin: admin.Addr().String(), Version: server.Version()},
		died:  h.died,
		stop: func(ctx context.Context) error {
			return errors.Join(server.Shutdown(ctx), h.stop(ctx))
		},
	}, nil
}

// catalogue hands the store's statements to the database node, which has to be
// told the types that SQLite does not know.
func catalogue() []sqlite.Statement {
	var all []sqlite.Statement
	for _, s := range store.Statements() {
		t := sqlite.Statement{SQL: s.SQL, Local: s.SQLite}
		for _, p := range s.Params {
			t.Params = append(t.Params, sqlite.Type(p))
		}
		for _, c := range s.Columns {
			t.Columns = append(t.Columns, sqlite.Column{Name: c.Name, Type: sqlite.Type(c.Type)})
		}
		all = append(all, t)
	}
	return all
}

// seed fills an empty database and an empty blob directory. It is ready when
// both are complete.
func (b birth) seed(ctx context.Context) (part, error) {
	counts, known := b.config.Data.Counts()
	if !known {
		return part{}, fmt.Errorf("unknown data set %q", b.config.Data.Size)
	}
	address, err := b.one(sut.DB)
	if err != nil {
		return part{}, err
	}
	dir, err := blob.OpenDir(b.config.Dir)
	if err != nil {
		return part{}, err
	}
	set := photos.NewDataset(counts, b.config.Data.Seed)
	originals := make([]int64, counts.Images)
	err = blob.Fill(ctx, dir, set.Images(), func(i int) (map[photos.Variant][]byte, error) {
		width, height := set.ImageSize(i)
		original := imaging.Sample(set.ImageSeed(i), width, height)
		originals[i] = int64(len(original))
		v, err := imaging.Process(original)
		if err != nil {
			return nil, err
		}
		return map[photos.Variant][]byte{
			photos.VariantOriginal: original, photos.VariantThumb: v.Thumb, photos.VariantSharp: v.Sharp, photos.VariantBlur: v.Blur,
		}, nil
	})
	if err != nil {
		return part{}, fmt.Errorf("seed photo bytes: %w", err)
	}
	if err := load(ctx, address, set.WithImageBytes(originals)); err != nil {
		return part{}, fmt.Errorf("seed database: %w", err)
	}
	return part{
		ready: sut.Ready{Node: b.config.Node}, died: make(chan error),
		stop: func(context.Context) error { return nil },
	}, nil
}

func load(ctx context.Context, address string, set *photos.Dataset) error {
	s, err := store.Open(store.Config{Primary: sut.Peer{Node: "db-1", Address: address}, MaxConns: 1, Name: "seed"})
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.CreateSchema(ctx); err != nil {
		return err
	}
	return s.Load(ctx, set)
}
