package local

import (
	"errors"

	"github.com/stagebench/stagebench/sut"
)

// scaling is a tier whose hosts may come and go while the system runs.
type scaling struct {
	Role    sut.Role
	Name    string
	Knob    string
	Members bool
	Refuse  func(sut.Knobs) error
}

func scalings() []scaling {
	none := func(knob, text string) func(sut.Knobs) error {
		return func(k sut.Knobs) error {
			if k.Int(knob) == 0 {
				return errors.New(text)
			}
			return nil
		}
	}
	return []scaling{
		{sut.Web, "web", "web.hosts", false, func(sut.Knobs) error { return nil }},
		{sut.Cache, "cache", "cache.hosts", true, none("cache.hosts", "web hosts without a cache cannot be given one while they run")},
		{sut.Blob, "blob", "blob.hosts", true, none("blob.hosts", "the bytes of photos cannot leave the database host while it runs")},
		{sut.DB, "replica", "db.replicas", false, none("db.replicas", "a database without replicas is another kind of node")},
	}
}
