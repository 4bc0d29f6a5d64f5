package photos

// PendingWrite is a photo after writes that a write-back cache has not yet sent to the store.
type PendingWrite struct {
	// Photo is the complete record after the writes. Its Version is Base plus the number
	// of writes.
	Photo Photo
	// Base is the stored version before the writes.
	Base int64
	// Comments are the comments that the writes added. Photo.Comments includes them.
	Comments []Comment
	// Resent means that the same PendingWrite was sent before without a response. The store may
	// already have it.
	Resent bool
}
