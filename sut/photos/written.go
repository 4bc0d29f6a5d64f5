package photos

// Written is a photo's record as it is after writes that the store has not
// seen: what a write-back cache has to tell the store.
type Written struct {
	// Photo is the whole record after the writes. Its Version is the stored
	// one and one more for each write, however many of them are told at once.
	Photo Photo
	// Base is the version that the writes were made to.
	Base int64
	// Comments are those that the writes added; Photo.Comments counts them.
	Comments []Comment
	// Resent says that the same was told before and that no answer came: the store
	// may have it already.
	Resent bool
}
