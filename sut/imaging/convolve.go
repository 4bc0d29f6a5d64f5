package imaging

import (
	"image"
	"math"
	"runtime"
)

// Radius and sigma of the kernels, in pixels.
const (
	blurRadius    = 3
	blurSigma     = 1.8
	sharpenRadius = 1
	sharpenSigma  = 0.8
)

// sharpenAmount is the factor of the difference from the blurred copy in sharpen.
const sharpenAmount = 1.2

// yieldRows is the number of rows after which convolve yields the processor.
const yieldRows = 4

// fixed is the fixed-point representation of the kernel weight 1.
const fixed = 1 << 14

// kernel is a square matrix of weights with sides of 2*radius+1, row by row. The weights
// sum to fixed, so the kernel does not change the brightness of a picture.
type kernel struct {
	radius  int
	weights []int32
}

// gaussian returns the kernel of a Gaussian blur.
func gaussian(radius int, sigma float64) kernel {
	side := 2*radius + 1
	raw := make([]float64, 0, side*side)
	var sum float64
	for y := -radius; y <= radius; y++ {
		for x := -radius; x <= radius; x++ {
			w := math.Exp(-float64(x*x+y*y) / (2 * sigma * sigma))
			raw = append(raw, w)
			sum += w
		}
	}
	k := kernel{radius: radius, weights: make([]int32, len(raw))}
	left := int32(fixed)
	for i, w := range raw {
		k.weights[i] = int32(w / sum * fixed)
		left -= k.weights[i]
	}
	k.weights[len(raw)/2] += left // compensates for rounding
	return k
}

// sharpen returns the kernel of an unsharp mask: the picture plus
// sharpenAmount times its difference from a blurred copy.
func sharpen() kernel {
	k := gaussian(sharpenRadius, sharpenSigma)
	left := int32(fixed)
	for i, w := range k.weights {
		k.weights[i] = int32(-sharpenAmount * float64(w))
		left -= k.weights[i]
	}
	k.weights[len(k.weights)/2] += left
	return k
}

// convolve applies a kernel to every pixel. Outside the picture it uses the nearest pixel
// of the border. The result is opaque, because JPEGs have no alpha.
//
// convolve yields the processor every yieldRows rows. Without this, on a host with
// GOMAXPROCS=1, the runtime would preempt it only after 10 ms, and one upload would delay
// every other request by that time.
func convolve(src *image.RGBA, k kernel) *image.RGBA {
	bounds := src.Bounds()
	width, height := bounds.Dx(), bounds.Dy()
	dst := image.NewRGBA(image.Rect(0, 0, width, height))
	side := 2*k.radius + 1
	padded := make([]uint8, side*(width+2*k.radius)*4) // a ring of padded rows
	rows := make([][]uint8, side)
	for y := -k.radius; y < k.radius; y++ {
		pad(ringRow(padded, y+k.radius, side), src, y, k.radius)
	}
	for y := range height {
		pad(ringRow(padded, y+2*k.radius, side), src, y+k.radius, k.radius)
		for i := range rows {
			rows[i] = ringRow(padded, y+i, side)
		}
		convolveRow(dst.Pix[y*dst.Stride:y*dst.Stride+4*width], rows, k)
		if y%yieldRows == yieldRows-1 {
			runtime.Gosched()
		}
	}
	return dst
}

// ringRow returns row n of a ring buffer with this number of rows.
func ringRow(ring []uint8, n, rows int) []uint8 {
	length := len(ring) / rows
	return ring[n%rows*length:][:length]
}

// pad copies row y of a picture to row, and repeats its outermost pixels radius times on
// both sides.
func pad(row []uint8, src *image.RGBA, y, radius int) {
	width := src.Rect.Dx()
	y = min(max(y, 0), src.Rect.Dy()-1)
	from := src.Pix[y*src.Stride:][:4*width]
	copy(row[4*radius:], from)
	for i := range radius {
		copy(row[4*i:], from[:4])
		copy(row[4*(radius+width+i):], from[4*(width-1):])
	}
}

// convolveRow computes one row of pixels from the rows around it.
func convolveRow(dst []uint8, rows [][]uint8, k kernel) {
	side := 2*k.radius + 1
	for x := 0; x < len(dst); x += 4 {
		var r, g, b int32
		for dy, row := range rows {
			weights := k.weights[dy*side:][:side]
			window := row[x:][:4*side]
			for dx, w := range weights {
				pixel := window[4*dx:][:4]
				r += w * int32(pixel[0])
				g += w * int32(pixel[1])
				b += w * int32(pixel[2])
			}
		}
		pixel := dst[x:][:4]
		pixel[0], pixel[1], pixel[2], pixel[3] = level(r), level(g), level(b), 0xff
	}
}

// level scales a weighted sum to a level of 0..255.
func level(sum int32) uint8 { return uint8(min(max((sum+fixed/2)/fixed, 0), 255)) }
