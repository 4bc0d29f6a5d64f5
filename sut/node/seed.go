package node

import (
	"context"
	"fmt"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/blob"
	"github.com/stagebench/stagebench/sut/imaging"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/node/process"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/shard"
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
	set := photos.NewDataset(counts, n.Config.Data.Seed)
	originals, err := seedImages(ctx, n.Config.Dir, set, counts.Images)
	if err != nil {
		return c, fmt.Errorf("seed photo bytes: %w", err)
	}
	if err := load(ctx, n.Config, databases[0], set.WithImageBytes(originals)); err != nil {
		return c, fmt.Errorf("seed database: %w", err)
	}
	return process.Component{Died: make(chan error), Stop: func(context.Context) error { return nil }}, nil
}

// seedImages fills a blob directory with the images of a data set, and returns the sizes of the originals. With the
// directory "" it only returns the sizes.
func seedImages(ctx context.Context, path string, set *photos.Dataset, images int) (originals []int64, err error) {
	originals = make([]int64, images)
	sample := func(i int) []byte {
		width, height := set.ImageSize(i)
		original := imaging.Sample(set.ImageSeed(i), width, height)
		originals[i] = int64(len(original))
		return original
	}
	if path == "" {
		for i := range originals {
			sample(i)
		}
		return originals, nil
	}
	dir, err := blob.OpenDir(path)
	if err != nil {
		return nil, err
	}
	return originals, blob.Fill(ctx, dir, set.Images(), func(i int) (map[photos.Variant][]byte, error) {
		original := sample(i)
		v, err := imaging.Process(original)
		if err != nil {
			return nil, err
		}
		return map[photos.Variant][]byte{
			photos.VariantOriginal: original, photos.VariantThumb: v.Thumb,
			photos.VariantSharp: v.Sharp, photos.VariantBlur: v.Blur,
		}, nil
	})
}

// load fills a database with the data set, or with the part of a shard. A shard above the number of shards gets no
// rows: it is one that is added to a running system.
func load(ctx context.Context, c sut.NodeConfig, database sut.Peer, set *photos.Dataset) error {
	s, err := store.Open(store.Config{Databases: []sut.Peer{database}, MaxConns: 1, Password: c.Secret, Name: "seed"})
	if err != nil {
		return err
	}
	defer s.Close()
	if c.Shard > 0 {
		settings := ladder.ShardOf(c.Knobs)
		m, err := shard.Fill(shard.By(settings.By), settings.Count)
		if err != nil {
			return err
		}
		if err := s.CreateShard(ctx, m.Owned(c.Shard)); err != nil {
			return err
		}
		return s.LoadShard(ctx, set, func(b photos.Bucket) bool { return m.Owner(b) == c.Shard })
	}
	if err := s.CreateSchema(ctx); err != nil {
		return err
	}
	return s.Load(ctx, set)
}
