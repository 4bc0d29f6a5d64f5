package photos

// JobEnd says how a job ended: the job to make the variants of a photo. Doing a job twice has the same effect as doing
// it once.
type JobEnd string

// The ends of jobs.
const (
	JobDone     JobEnd = "done"     // the variants are there, and the photo says so
	JobRepeated JobEnd = "repeated" // an earlier delivery, or another worker, had done it
	JobGone     JobEnd = "gone"     // the photo does not exist any more
	JobFailed   JobEnd = "failed"   // it can never be done, and the photo says so
)

// JobEnds lists all ends of jobs.
func JobEnds() []JobEnd { return []JobEnd{JobDone, JobRepeated, JobGone, JobFailed} }
