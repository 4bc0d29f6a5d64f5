package sut

// CacheFigures is the counters of a cache server since it started, and its current
// contents. The bytes that an entry takes depend on the engine.
type CacheFigures struct {
	Hits    int64 // reads of a key that was present
	Misses  int64 // reads of a key that was absent
	Evicted int64 // entries removed because memory was full
	Expired int64 // entries removed because their time to live was over
	Refused int64 // writes refused because memory was full and nothing may be evicted
	// Entries counts the keys in memory. It includes expired keys that are not yet removed.
	Entries  int64
	Bytes    int64 // memory of the entries, overhead included
	MaxBytes int64 // memory budget; 0 = no limit
}

// EdgeFigures is the counters of an edge since it started, and its current contents. An engine without a counter
// reports -1.
type EdgeFigures struct {
	Requests     int64 // finished requests of clients
	Hits         int64 // of these, answered without the origin
	Fetched      int64 // requests to the origins
	FetchedBytes int64 // bytes of the bodies that the origins sent
	Stored       int64 // responses that were stored
	Evicted      int64 // entries that were removed because memory was full
	Purged       int64 // entries that were removed by purges and by unsafe requests
	Entries      int64
	Bytes        int64 // memory of the entries, overhead included
	MaxBytes     int64
}
