// Package imaging is the work that the service does on pictures: it crops an
// uploaded JPEG to a thumbnail and makes a sharpened and a blurred copy
// (Process), and it paints the pictures of the seeded data set (Sample).
//
// It knows no storage and no network, keeps no state and starts no goroutine:
// all functions are pure and may be called concurrently. Sizes are in pixels.
//
// The work is real and costs real CPU, about 5 ms for a picture of 160x120 and
// 15 ms for 320x240 on one core of a current server: plain convolutions over
// every pixel, no assembly, no cache. One call uses one core.
package imaging

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/jpeg"
	"io"

	"golang.org/x/image/draw"

	"github.com/stagebench/stagebench/sut/photos"
)

// Limits of an original. A JPEG of a few kilobytes can declare 65535x65535
// pixels, which would take 12 GB to decode; a progressive one can hold a
// million scans of a few bytes each, every one of them a pass over all pixels.
const (
	MaxSide   = 4096       // width and height, in pixels
	MaxPixels = 12_000_000 // width times height
	MaxScans  = 100        // about ten is what encoders write
)

// Sizes and weights of the variants.
const (
	thumbSide   = 128  // the thumbnail is a square
	displaySide = 1280 // longer originals are scaled down for the sharp and blur variants, which bounds the work
	quality     = 85   // of the JPEGs written
)

// Process makes the variants of an original. Errors wrap photos.ErrNotJPEG,
// photos.ErrTruncated or photos.ErrTooManyPixels, and nothing else. The size is
// checked before a single pixel is decoded.
//
// The EXIF orientation is not applied, and no metadata reaches the variants.
func Process(original []byte) (photos.Variants, error) {
	width, height, err := Size(original)
	if err != nil {
		return photos.Variants{}, err
	}
	decoded, err := jpeg.Decode(bytes.NewReader(original))
	if err != nil {
		return photos.Variants{}, classify(original, err)
	}
	display := fit(decoded)
	return photos.Variants{
		Thumb: encode(thumb(display), quality),
		Sharp: encode(convolve(display, sharpen()), quality),
		Blur:  encode(convolve(display, gaussian(blurRadius, blurSigma)), quality),
		Width: width, Height: height,
	}, nil
}

// Size returns the dimensions that a JPEG declares, without decoding it. It
// refuses what Process would refuse to decode, with the same errors.
func Size(original []byte) (width, height int, err error) {
	config, err := jpeg.DecodeConfig(bytes.NewReader(original))
	if err != nil {
		return 0, 0, classify(original, err)
	}
	width, height = config.Width, config.Height
	switch {
	case width < 1 || height < 1:
		return 0, 0, fmt.Errorf("%w: it is %dx%d", photos.ErrNotJPEG, width, height)
	case width > MaxSide || height > MaxSide || width*height > MaxPixels:
		return 0, 0, fmt.Errorf("%w: it is %dx%d, at most %dx%d and %d million are read",
			photos.ErrTooManyPixels, width, height, MaxSide, MaxSide, MaxPixels/1_000_000)
	}
	// Inside compressed data the byte FF is always followed by 00, so this finds
	// every start-of-scan marker and besides those at most a few in metadata.
	if scans := bytes.Count(original, []byte{0xff, 0xda}); scans > MaxScans {
		return 0, 0, fmt.Errorf("%w: it has %d scans, at most %d are read", photos.ErrNotJPEG, scans, MaxScans)
	}
	return width, height, nil
}

// classify turns an error of the decoder into one of ours. The decoder calls
// data that stops in the middle of a code malformed; what tells the two apart
// is whether the end-of-image marker came after the last scan began.
func classify(original []byte, err error) error {
	begun := bytes.HasPrefix(original, []byte{0xff, 0xd8})
	lastScan := original[max(bytes.LastIndex(original, []byte{0xff, 0xda}), 0):]
	ended := bytes.Contains(lastScan, []byte{0xff, 0xd9})
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || begun && !ended {
		return fmt.Errorf("%w: no end-of-image marker in its %d bytes", photos.ErrTruncated, len(original))
	}
	return fmt.Errorf("%w: %v", photos.ErrNotJPEG, err)
}

// thumb cuts the largest square from the middle and scales it.
func thumb(picture *image.RGBA) *image.RGBA {
	bounds := picture.Bounds()
	side := min(bounds.Dx(), bounds.Dy())
	corner := bounds.Min.Add(image.Pt((bounds.Dx()-side)/2, (bounds.Dy()-side)/2))
	square := image.NewRGBA(image.Rect(0, 0, thumbSide, thumbSide))
	middle := image.Rectangle{Min: corner, Max: corner.Add(image.Pt(side, side))}
	draw.CatmullRom.Scale(square, square.Bounds(), picture, middle, draw.Src, nil)
	return square
}

// fit copies a picture, scaled down to displaySide where it is longer.
func fit(picture image.Image) *image.RGBA {
	bounds := picture.Bounds()
	width, height := bounds.Dx(), bounds.Dy()
	if longer := max(width, height); longer > displaySide {
		width, height = max(width*displaySide/longer, 1), max(height*displaySide/longer, 1)
	}
	display := image.NewRGBA(image.Rect(0, 0, width, height))
	if width == bounds.Dx() && height == bounds.Dy() {
		draw.Draw(display, display.Bounds(), picture, bounds.Min, draw.Src)
	} else {
		draw.ApproxBiLinear.Scale(display, display.Bounds(), picture, bounds, draw.Src, nil)
	}
	return display
}

// encode returns a picture as a JPEG. Its quality is 1..100.
func encode(picture *image.RGBA, quality int) []byte {
	var out bytes.Buffer
	if err := jpeg.Encode(&out, picture, &jpeg.Options{Quality: quality}); err != nil {
		panic(fmt.Sprintf("imaging: a buffer takes every byte, and %v is a size of a JPEG: %v", picture.Rect.Size(), err))
	}
	return out.Bytes()
}
