package results

// Journeys counts the journeys in a step of a workload whose users think between their ops. Its offered rate is that of
// PlannedOps: a target that answers slowly delays the later ops of journeys, and so gets fewer ops in the step.
type Journeys struct {
	Begun  int64 `json:"begun"`  // in the step, by the schedule
	Joined int64 `json:"joined"` // in progress at the begin of the step
	Ended  int64 `json:"ended"`  // in the step, with their last op
	// GivenUp counts the journeys that ended because their login failed.
	GivenUp    int64 `json:"given_up,omitempty"`
	PlannedOps int64 `json:"planned_ops"` // ops that are due in the step if all answers take no time
	// NotDue counts the planned ops that were not due in the step, because earlier ops of their journeys took time, were
	// not sent or failed. They are not in the ledger.
	NotDue int64 `json:"not_due"`
}

// DueShare returns the share of the planned ops that were due.
func (j Journeys) DueShare() float64 { return 1 - float64(j.NotDue)/float64(max(j.PlannedOps, 1)) }
