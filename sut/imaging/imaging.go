// Package imaging processes pictures. Process makes a thumbnail, a sharpened and a
// blurred copy of an uploaded JPEG. Sample paints the pictures of the seeded data set.
//
// All functions are pure and may be called concurrently. They use no storage and no
// network. Sizes are in pixels.
//
// Process takes about 5 ms of CPU for a picture of 160x120 pixels and 15 ms for 320x240,
// on one core of a current server. It uses plain convolutions over every pixel, without
// assembly and without a cache. One call uses one core.
package imaging

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"io"

	"golang.org/x/image/draw"

	"github.com/stagebench/stagebench/sut/photos"
)

// Limits of an original. A JPEG of a few kilobytes can declare 65535x65535 pixels, which
// would take 12 GB to decode. A progressive JPEG can have a million scans of a few bytes
// each, and the decoder passes over all pixels for each scan.
const (
	MaxSide   = 4096       // width and height, in pixels
	MaxPixels = 12_000_000 // width times height
	MaxScans  = 100        // encoders write about ten
)

// Sizes and weights of the variants.
const (
	thumbSide   = 128  // the thumbnail is a square
	displaySide = 1280 // maximum side of the sharp and blur variants; it bounds the work
	quality     = 85   // quality of the written JPEGs, 1 to 100
)

// Process makes the variants of an original. Every error wraps photos.ErrNotJPEG,
// photos.ErrTruncated or photos.ErrTooManyPixels. The size is checked before any pixel is
// decoded.
//
// The EXIF orientation is not applied. The variants have no metadata.
func Process(original []byte) (photos.Variants, error) {
	header, err := Inspect(original)
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
		Width: header.Width, Height: header.Height,
	}, nil
}

// Inspect reads the header of an original, without decoding a pixel. It checks the limits, and
// that the file has an end. Its errors are those of Process. An original that passes can still
// turn out to be malformed.
func Inspect(original []byte) (photos.Header, error) {
	config, err := jpeg.DecodeConfig(bytes.NewReader(original))
	if err != nil {
		return photos.Header{}, classify(original, err)
	}
	if err := checkSize(original, config.Width, config.Height); err != nil {
		return photos.Header{}, err
	}
	// Other data may follow the picture, so any end after the first scan will do.
	if firstScan := bytes.Index(original, []byte{0xff, 0xda}); firstScan < 0 || !ended(original[firstScan:]) {
		return photos.Header{}, classify(original, io.ErrUnexpectedEOF)
	}
	return photos.Header{Width: config.Width, Height: config.Height, Memory: memory(original, config)}, nil
}

// checkSize returns an error for a JPEG of this size that exceeds a limit.
func checkSize(original []byte, width, height int) error {
	switch {
	case width < 1 || height < 1:
		return fmt.Errorf("%w: it is %dx%d", photos.ErrNotJPEG, width, height)
	case width > MaxSide || height > MaxSide || width*height > MaxPixels:
		return fmt.Errorf("%w: it is %dx%d, the limits are %dx%d and %d million pixels",
			photos.ErrTooManyPixels, width, height, MaxSide, MaxSide, MaxPixels/1_000_000)
	}
	// This counts every start-of-scan marker, and possibly a few more in metadata. It finds
	// none in compressed data, where 00 or a restart marker always follows the byte FF.
	if scans := bytes.Count(original, []byte{0xff, 0xda}); scans > MaxScans {
		return fmt.Errorf("%w: it has %d scans, the limit is %d", photos.ErrNotJPEG, scans, MaxScans)
	}
	return nil
}

// memory returns the number of bytes that Process may take for an original.
func memory(original []byte, config image.Config) int64 {
	// The decoder takes one byte for each sample. It takes three samples for each pixel even if fewer are encoded.
	var perPixel int64
	switch config.ColorModel {
	case color.GrayModel:
		perPixel = 1
	case color.YCbCrModel:
		perPixel = 3
	default: // CMYK and RGB: four samples, which are converted to four bytes
		perPixel = 4
	}
	decoded := perPixel
	if perPixel == 4 {
		decoded += 4
	}
	// A progressive JPEG also takes a coefficient of four bytes for each sample until its last scan. Its frame begins with
	// ff c2. Compressed data has no such bytes, and in metadata they make the result only too large.
	if bytes.Contains(original, []byte{0xff, 0xc2}) {
		decoded += 4 * perPixel
	}
	// The decoder rounds both sides up to whole blocks, of 32 pixels at most.
	const block = 32
	width, height := (config.Width+block-1)/block*block, (config.Height+block-1)/block*block
	// The copy for the display, two variants of it, their JPEGs, and what scaling to the thumbnail takes.
	const display = 3*4 + 8
	return decoded*int64(width*height) + display*int64(min(config.Width, displaySide)*min(config.Height, displaySide))
}

// classify turns an error of the decoder into an error of package photos. For data that
// stops in the middle of a code, the decoder reports malformed data. Such data is
// truncated if it has no end-of-image marker after the start of the last scan.
func classify(original []byte, err error) error {
	begun := bytes.HasPrefix(original, []byte{0xff, 0xd8})
	lastScan := original[max(bytes.LastIndex(original, []byte{0xff, 0xda}), 0):]
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || begun && !ended(lastScan) {
		return fmt.Errorf("%w: no end-of-image marker in its %d bytes", photos.ErrTruncated, len(original))
	}
	return fmt.Errorf("%w: %v", photos.ErrNotJPEG, err)
}

// ended reports whether there is an end-of-image marker.
func ended(data []byte) bool { return bytes.Contains(data, []byte{0xff, 0xd9}) }

// thumb returns the largest square from the middle, scaled to thumbSide.
func thumb(picture *image.RGBA) *image.RGBA {
	bounds := picture.Bounds()
	side := min(bounds.Dx(), bounds.Dy())
	corner := bounds.Min.Add(image.Pt((bounds.Dx()-side)/2, (bounds.Dy()-side)/2))
	square := image.NewRGBA(image.Rect(0, 0, thumbSide, thumbSide))
	middle := image.Rectangle{Min: corner, Max: corner.Add(image.Pt(side, side))}
	draw.CatmullRom.Scale(square, square.Bounds(), picture, middle, draw.Src, nil)
	return square
}

// fit returns a copy of a picture. A copy whose longer side would exceed displaySide is
// scaled down.
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
		// A buffer accepts every byte, so only an invalid size can be the reason.
		panic(fmt.Sprintf("imaging: cannot encode a JPEG of the size %v: %v", picture.Rect.Size(), err))
	}
	return out.Bytes()
}
