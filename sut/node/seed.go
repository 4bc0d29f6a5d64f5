package node

import (
	"context"
	"fmt"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/blob"
	"github.com/stagebench/stagebench/sut/imaging"
	"github.com/stagebench/stagebench/sut/node/process"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/store"
)

// seederVersion is part of a template's identity besides the schema: it changes
// whenever the seeded rows or bytes do.
const seederVersion = "2"

// TemplateVersion identifies what a seeded database of an engine and a seeded
// blob directory hold, for a given sut.Data: the seeder, the schema, and the
// version of the engine that writes the files. A template of another version is
// made anew.
func TemplateVersion(database sut.Engine) (string, error) {
	version, err := engines()[database].version()
	if err != nil {
		return "", err
	}
	return seederVersion + "-" + store.SchemaDigest() + "-" + version, nil
}

// seed fills an empty database and an empty blob directory. It is ready when
// both are complete.
func seed(ctx context.Context, n process.Node) (c process.Component, err error) {
	counts, known := n.Config.Data.Counts()
	if !known {
		return c, fmt.Errorf("unknown data set %q", n.Config.Data.Size)
	}
	databases := n.Config.Wiring.Uses[sut.DB]
	if len(databases) != 1 {
		return c, fmt.Errorf("a data set is for one database, and the node is told of %d", len(databases))
	}
	dir, err := blob.OpenDir(n.Config.Dir)
	if err != nil {
		return c, err
	}
	set := photos.NewDataset(counts, n.Config.Data.Seed)
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
			photos.VariantOriginal: original, photos.VariantThumb: v.Thumb,
			photos.VariantSharp: v.Sharp, photos.VariantBlur: v.Blur,
		}, nil
	})
	if err != nil {
		return c, fmt.Errorf("seed photo bytes: %w", err)
	}
	if err := load(ctx, databases[0], set.WithImageBytes(originals)); err != nil {
		return c, fmt.Errorf("seed database: %w", err)
	}
	return process.Component{Died: make(chan error), Stop: func(context.Context) error { return nil }}, nil
}

func load(ctx context.Context, database sut.Peer, set *photos.Dataset) error {
	s, err := store.Open(store.Config{Primary: database, MaxConns: 1, Name: "seed"})
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.CreateSchema(ctx); err != nil {
		return err
	}
	return s.Load(ctx, set)
}
