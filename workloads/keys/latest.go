package keys

// Latest is a zipfian distribution of ages: the newest key, n-1, is the hottest, and the oldest one, 0, the coldest. It
// is the latest distribution of YCSB (Cooper et al., SoCC 2010).
//
// In YCSB, n grows with the inserts of the workload. Here n is fixed: the key of an op must not depend on what other
// ops have done before.
type Latest struct{ ages Zipfian }

// NewLatest returns the distribution of keys whose ages have a zipfian distribution.
func NewLatest(ages Zipfian) Latest { return Latest{ages} }

// Key converts random bits to a key.
func (l Latest) Key(random uint64) int { return l.KeyOfRank(l.ages.Key(random)) }

// KeyOfRank returns the key of a popularity rank; rank 0 is the hottest.
func (l Latest) KeyOfRank(rank int) int { return l.ages.n - 1 - rank }
