package results_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/results"
)

// The backlog grows while nothing is processed, and is drained when one upload at most is left.
func TestProcessing(t *testing.T) {
	for name, test := range map[string]struct {
		uploads []results.Upload
		want    results.Processing
	}{
		"no uploads": {nil, results.Processing{}},
		"processed at once, before the answer arrived": {
			[]results.Upload{{Intended: 0, Acked: 10, Done: 5}},
			results.Processing{Uploaded: 1, Ready: 1, MaxBacklog: 1, MaxAtNS: 10, DrainNS: new(int64(0))},
		},
		"workers were away": {
			[]results.Upload{
				{Acked: 10, Done: 11},
				{Acked: 20, Done: 100},
				{Acked: 30, Done: 110},
				{Acked: 40, Done: 120, End: results.UploadFailed},
				{Acked: 105, Done: 130},
			},
			// The backlog is 3 at 40, 2 at 100, again 3 at 105, and 1 at 120: three ended in 80 ns.
			results.Processing{
				Uploaded: 5, Ready: 4, Failed: 1, MaxBacklog: 3, MaxAtNS: 40, DrainNS: new(int64(80)), DrainRPS: 3e9 / 80,
			},
		},
		"never drained": {
			[]results.Upload{
				{Acked: 10, End: results.UploadUnfinished}, {Acked: 20, End: results.UploadMissing}, {Acked: 30, Done: 40},
			},
			results.Processing{Uploaded: 3, Ready: 1, Unfinished: 1, Missing: 1, MaxBacklog: 3, MaxAtNS: 30},
		},
	} {
		if diff := cmp.Diff(&test.want, results.NewProcessing(test.uploads)); diff != "" {
			t.Errorf("%s (-want +got)\n%s", name, diff)
		}
	}
}
