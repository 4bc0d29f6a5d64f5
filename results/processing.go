package results

import (
	"cmp"
	"slices"
)

// Upload is an acknowledged upload, and what became of it. Times are nanoseconds since the start of the step.
type Upload struct {
	Intended int64
	Acked    int64 // when the upload was answered
	Done     int64 // when its processing ended; without a meaning if it did not
	End      UploadEnd
}

// UploadEnd says how the processing of an upload ended.
type UploadEnd uint8

// The ends of the processing of an upload.
const (
	UploadReady      UploadEnd = iota
	UploadFailed               // it cannot be processed
	UploadUnfinished           // it was still processing when nobody waited any more
	UploadMissing              // the target did not know it any more
)

// Processing says what became of the uploads of a step, where workers process them later.
type Processing struct {
	Uploaded   int64 `json:"uploaded"` // acknowledged
	Ready      int64 `json:"ready"`
	Failed     int64 `json:"failed"`
	Unfinished int64 `json:"unfinished"` // still processing when nobody waited any more
	Missing    int64 `json:"missing"`    // acknowledged, and not known any more
	// DoneNS is from the intended time of an upload to the end of its processing. Uploads without an end count as
	// infinitely slow.
	DoneNS Latency `json:"done_ns"`
	// MaxBacklog is the highest number of uploads that were answered and not processed, and MaxAtNS the time when it was
	// reached. DrainNS is the time from then on until one of them at most was left; nil = that did not happen.
	MaxBacklog int64  `json:"max_backlog"`
	MaxAtNS    int64  `json:"max_backlog_at_ns"`
	DrainNS    *int64 `json:"drain_ns"`
	// DrainRPS is the rate at which uploads were processed in this time, per second; 0 = unknown.
	DrainRPS float64 `json:"drain_rps"`
}

// drained is the backlog at which a queue counts as drained: while uploads go on, one of them is often in work.
const drained = 1

// NewProcessing counts what became of uploads, and computes their backlog over time. It does not set DoneNS.
func NewProcessing(uploads []Upload) *Processing {
	p := &Processing{Uploaded: int64(len(uploads))}
	type change struct{ at, by int64 }
	var changes []change
	for _, u := range uploads {
		*[...]*int64{&p.Ready, &p.Failed, &p.Unfinished, &p.Missing}[u.End]++
		changes = append(changes, change{u.Acked, 1})
		if u.End == UploadReady || u.End == UploadFailed {
			changes = append(changes, change{max(u.Done, u.Acked), -1}) // it can be processed before its answer arrives
		}
	}
	// At the same time, uploads come before ends: an upload that was processed at once was in the backlog.
	slices.SortStableFunc(changes, func(a, b change) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(b.by, a.by))
	})
	var backlog, ended int64 // ended: since the highest backlog
	for _, c := range changes {
		if backlog += c.by; c.by < 0 {
			ended++
		}
		switch {
		case backlog > p.MaxBacklog:
			p.MaxBacklog, p.MaxAtNS, p.DrainNS, p.DrainRPS, ended = backlog, c.at, nil, 0, 0
		case backlog <= drained && p.DrainNS == nil:
			if p.DrainNS = new(c.at - p.MaxAtNS); *p.DrainNS > 0 {
				p.DrainRPS = float64(ended) * 1e9 / float64(*p.DrainNS)
			}
		}
	}
	return p
}
