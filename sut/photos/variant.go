package photos

import (
	"errors"
	"maps"
	"slices"
)

// Variant names one rendering of a photo's bytes, in URLs and in the blob store.
type Variant string

// The variants of a photo.
const (
	VariantOriginal Variant = "original" // as uploaded
	VariantThumb    Variant = "thumb"    // small square from the middle
	VariantSharp    Variant = "sharp"    // sharpened
	VariantBlur     Variant = "blur"     // blurred
)

// AllVariants lists every variant, the original first.
func AllVariants() []Variant {
	return []Variant{VariantOriginal, VariantThumb, VariantSharp, VariantBlur}
}

// Valid reports whether it is one of AllVariants.
func (v Variant) Valid() bool { return slices.Contains(AllVariants(), v) }

// ImageVersion is the parameter v of image URLs: /img/ID/VARIANT.jpg?v=N. The content of a URL with a version never
// changes, so caches may keep it for ever. The bytes of a photo never change after its upload. Increase ImageVersion
// when the processing of originals changes.
const ImageVersion = 1

// Variants is the result of processing an original: three JPEGs and the original's size.
type Variants struct {
	Thumb []byte
	Sharp []byte
	Blur  []byte

	Width  int // of the original, in pixels
	Height int // of the original, in pixels
}

// Images returns the images that were made; the original is not one of them.
func (v Variants) Images() map[Variant][]byte {
	images := map[Variant][]byte{VariantThumb: v.Thumb, VariantSharp: v.Sharp, VariantBlur: v.Blur}
	maps.DeleteFunc(images, func(_ Variant, data []byte) bool { return data == nil })
	return images
}

// Header is what an original says of itself before its pixels.
type Header struct {
	Width, Height int   // in pixels
	Memory        int64 // bytes that the processing of the original takes at most
}

// Errors of photo processing. All of them mean that the uploaded picture is bad, not that
// the service failed.
var (
	ErrNotJPEG       = errors.New("not a readable JPEG")
	ErrTruncated     = errors.New("the JPEG ends early")
	ErrTooManyPixels = errors.New("the JPEG has too many pixels")
)
