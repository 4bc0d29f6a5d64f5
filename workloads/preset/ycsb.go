package preset

import "github.com/stagebench/stagebench/workloads"

// ycsb returns the core workloads of YCSB (Cooper et al.: Benchmarking Cloud Serving Systems with YCSB, SoCC 2010) as
// requests to the photo service. A record is a photo. A read is the record of a photo, an update a new title by its
// owner, an insert an upload, a scan a feed of 20 photos, and a read-modify-write a like: the service reads the
// record, adds one to its likes and writes it. The popularity of photos is YCSB's: zipfian with the exponent 0.99 and
// spread over all ids, or in D the newest ones. An upload costs much more than an insert of YCSB, because it
// processes a JPEG.
func ycsb() []Shipped {
	return []Shipped{
		{
			Name: "ycsb-a", Doc: "YCSB A, update heavy: 50 % photos, 50 % renames",
			Mix: workloads.Mix{{Class: Photo, Percent: 50}, {Class: Rename, Percent: 50}},
		},
		{
			Name: "ycsb-b", Doc: "YCSB B, read mostly: 95 % photos, 5 % renames",
			Mix: workloads.Mix{{Class: Photo, Percent: 95}, {Class: Rename, Percent: 5}},
		},
		{
			Name: "ycsb-c", Doc: "YCSB C, read only: photos",
			Mix: workloads.Mix{{Class: Photo, Percent: 100}},
		},
		{
			Name: "ycsb-d", Doc: "YCSB D, read latest: 95 % photos, the newest most often, 5 % uploads", photos: newest,
			Mix: workloads.Mix{{Class: Photo, Percent: 95}, {Class: Upload, Percent: 5}},
		},
		{
			Name: "ycsb-e", Doc: "YCSB E, short ranges: 95 % feeds of 20 photos, 5 % uploads",
			Mix: workloads.Mix{{Class: Feed, Percent: 95}, {Class: Upload, Percent: 5}},
		},
		{
			Name: "ycsb-f", Doc: "YCSB F, read-modify-write: 50 % photos, 50 % likes",
			Mix: workloads.Mix{{Class: Photo, Percent: 50}, {Class: Like, Percent: 50}},
		},
	}
}
