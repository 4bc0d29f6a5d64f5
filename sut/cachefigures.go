package sut

// CacheFigures is what the server of a cache node has counted since it was started, and
// what it holds. Each engine has an idea of its own of the bytes that an entry takes.
type CacheFigures struct {
	Hits    int64 // keys that were read and there
	Misses  int64 // keys that were read and not there
	Evicted int64 // entries that went because the budget was used up
	Expired int64 // entries whose time was over
	// Entries is the keys that are there, those that expired unnoticed included.
	Entries  int64
	Bytes    int64 // of the entries, with what each costs besides
	MaxBytes int64 // the budget; 0 = no limit
}
