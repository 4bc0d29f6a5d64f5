package ladder

import (
	"errors"
	"fmt"
	"slices"

	"github.com/stagebench/stagebench/sut"
)

// Blob is the settings of the blob hosts, which store the bytes of photos.
type Blob struct {
	Hosts      int     // 0 = the bytes are on the database host
	Copies     int     // copies of each photo, on different hosts
	CPU        float64 // size of each host in units
	CapacityMB int     // capacity of a host in MB; 0 = limited by the disk only
}

// BlobOf returns the settings of the blob hosts.
func BlobOf(k sut.Knobs) Blob { return settings[Blob](k) }

func (s *Blob) knobs() []Knob {
	return []Knob{
		integer("blob.hosts", &s.Hosts, 0, 0, 16, "hosts for the bytes of photos, from stage db-split on; "+
			"0 = the database host stores them; stage single has no blob hosts"),
		integer("blob.copies", &s.Copies, 1, 1, 5,
			"copies of each photo's bytes on different hosts, by consistent hash; at most blob.hosts, or 1"),
		number("blob.cpu", &s.CPU, 1, 0.5, 32, "size of each blob host in units"),
		integer("blob.capacity_mb", &s.CapacityMB, 0, 0, 1_000_000,
			"capacity of a blob host in MB; 0 = limited by the disk only"),
	}
}

func blobTier() Tier {
	return Tier{
		Role: sut.Blob, From: sut.Single, Engines: []EngineInfo{{Name: sut.Files}}, Knobs: new(Blob).knobs(),
		Scaling: []Scaling{{
			Name: "blob", Knob: "blob.hosts", Sharded: true, Durable: true, refuse: sharedBlob,
			Keys: "objects", Moved: "stagebench_blob_moved_total",
		}},
		check: checkBlob, place: placeBlob,
	}
}

// sharedBlob refuses to scale a blob node that shares the database host.
func sharedBlob(t sut.Topology) error {
	if BlobOf(t.Knobs).Hosts == 0 {
		return errors.New("photo bytes are on the database host, so there are no blob hosts to scale\n" +
			"bring the system up with blob.hosts=1 or more")
	}
	return nil
}

func checkBlob(stage sut.Stage, k sut.Knobs) error {
	if s := BlobOf(k); s.Copies > max(s.Hosts, 1) {
		return fmt.Errorf("blob.copies=%d needs blob.hosts of at least %d, not %d", s.Copies, s.Copies, s.Hosts)
	}
	if stage == sut.Single {
		k["blob.hosts"], k["blob.copies"] = "0", "1"
	}
	return nil
}

func placeBlob(p *plan) error {
	s := BlobOf(p.knobs)
	for i := range max(s.Hosts, 1) {
		n := sut.Node{Name: numbered(p.role, i), Engine: sut.Files}
		if s.Hosts == 0 {
			// Tiers places the database tier before this one.
			db := slices.IndexFunc(p.nodes, func(n sut.Node) bool { return n.Role == sut.DB })
			n.Host = p.nodes[db].Host
		} else {
			n.Host = p.host(n.Name, s.CPU)
		}
		p.node(n)
	}
	return nil
}
