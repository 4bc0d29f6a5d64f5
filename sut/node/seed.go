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

// seederVersion is a part of TemplateVersion. Change it whenever the seeded rows or bytes
// change.
const seederVersion = "2"

// TemplateVersion identifies the contents of a seeded database and a seeded blob
// directory for a given sut.Data. It combines the version of the seeder, the schema and
// the engine's file format. A template with another version must be rebuilt.
func TemplateVersion(database sut.Engine) (string, error) {
	version, err := engines()[database].version()
	if err != nil {
		return "", err
	}
	return seederVersion + "-" + store.SchemaDigest() + "-" + version, nil
}

// seed fills an empty database and an empty blob directory. It returns when both are
// complete.
func seed(ctx context.Context, n process.Node) (c process.Component, err error) {
	counts, known := n.Config.Data.Counts()
	if !known {
		return c, fmt.Errorf("unknown data set %q", n.Config.Data.Size)
	}
	databases := n.Config.Wiring.Uses[sut.DB]
	if len(databases) != 1 {
		return c, fmt.Errorf("%d databases in the wiring: a seed node fills exactly one", len(databases))
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
	if err := load(ctx, databases[0], n.Config.Secret, set.WithImageBytes(originals)); err != nil {
		return c, fmt.Errorf("seed database: %w", err)
	}
	return process.Component{Died: make(chan error), Stop: func(context.Context) error { return nil }}, nil
}

func load(ctx context.Context, database sut.Peer, secret sut.Secret, set *photos.Dataset) error {
	s, err := store.Open(store.Config{Primary: database, MaxConns: 1, Password: secret, Name: "seed"})
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.CreateSchema(ctx); err != nil {
		return err
	}
	return s.Load(ctx, set)
}
