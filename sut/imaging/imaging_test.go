package imaging_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/draw"
	"image/jpeg"
	"runtime"
	"testing"

	"github.com/stagebench/stagebench/sut/imaging"
	"github.com/stagebench/stagebench/sut/photos"
)

func TestProcess(t *testing.T) {
	t.Parallel()
	for _, size := range [][2]int{{160, 120}, {120, 160}, {320, 240}, {1, 1}, {1, 300}, {301, 2}, {1600, 100}} {
		t.Run(fmt.Sprintf("%dx%d", size[0], size[1]), func(t *testing.T) {
			t.Parallel()
			v, err := imaging.Process(imaging.Sample(1, size[0], size[1]))
			if err != nil {
				t.Fatal(err)
			}
			if v.Width != size[0] || v.Height != size[1] {
				t.Errorf("size is %dx%d", v.Width, v.Height)
			}
			if thumb := decode(t, v.Thumb).Bounds(); thumb.Dx() != 128 || thumb.Dy() != 128 {
				t.Errorf("thumb is %v", thumb)
			}
			want := image.Pt(size[0], size[1])
			if size[0] > 1280 {
				want = image.Pt(1280, 1280*size[1]/size[0])
			}
			for name, bytes := range map[string][]byte{"sharp": v.Sharp, "blur": v.Blur} {
				if got := decode(t, bytes).Bounds().Size(); got != want {
					t.Errorf("%s is %v, want %v", name, got, want)
				}
			}
		})
	}
}

// The thumb shows the middle of the picture.
func TestThumbIsCentred(t *testing.T) {
	t.Parallel()
	for _, size := range []image.Point{{300, 100}, {100, 300}} {
		picture := image.NewGray(image.Rectangle{Max: size})
		middle := picture.SubImage(image.Rect((size.X-100)/2, (size.Y-100)/2, (size.X+100)/2, (size.Y+100)/2)).(*image.Gray)
		draw.Draw(middle, middle.Bounds(), image.White, image.Point{}, draw.Src)
		var original bytes.Buffer
		if err := jpeg.Encode(&original, picture, nil); err != nil {
			t.Fatal(err)
		}
		v, err := imaging.Process(original.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if got := brightness(decode(t, v.Thumb)); got < 230 {
			t.Errorf("%v: brightness %.0f, want that of the white middle", size, got)
		}
	}
}

// Sharpening raises the contrast of neighbouring pixels, and blurring lowers it. Neither
// changes the brightness.
func TestSharpAndBlurChangeContrast(t *testing.T) {
	t.Parallel()
	original := imaging.Sample(3, 160, 120)
	v, err := imaging.Process(original)
	if err != nil {
		t.Fatal(err)
	}
	plain, sharp, blur := decode(t, original), decode(t, v.Sharp), decode(t, v.Blur)
	if c, s, b := contrast(plain), contrast(sharp), contrast(blur); s < 1.2*c || b > 0.8*c {
		t.Errorf("contrast of neighbours: original %.1f, sharp %.1f, blur %.1f", c, s, b)
	}
	for name, picture := range map[string]image.Image{"sharp": sharp, "blur": blur} {
		if before, after := brightness(plain), brightness(picture); after < before-3 || after > before+3 {
			t.Errorf("%s changed the brightness from %.1f to %.1f", name, before, after)
		}
	}
}

func TestProcessReadsEveryKindOfJPEG(t *testing.T) {
	grey := image.NewGray(image.Rect(0, 0, 40, 30))
	for i := range grey.Pix {
		grey.Pix[i] = uint8(i)
	}
	var out bytes.Buffer
	if err := jpeg.Encode(&out, grey, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := imaging.Process(out.Bytes()); err != nil {
		t.Errorf("greyscale: %v", err)
	}
	// Cameras often write bytes after the end of the picture.
	for _, trailer := range []string{"trailer", "a film with \xff\xda in it"} {
		if _, err := imaging.Process(append(imaging.Sample(1, 32, 32), trailer...)); err != nil {
			t.Errorf("a picture before %q: %v", trailer, err)
		}
	}
}

func TestBadOriginals(t *testing.T) {
	t.Parallel()
	good := imaging.Sample(1, 160, 120)
	for _, test := range []struct {
		name     string
		original []byte
		want     error
	}{
		{"empty", nil, photos.ErrTruncated},
		{"text", []byte("GIF89a, and a good day to you"), photos.ErrNotJPEG},
		{"png", []byte("\x89PNG\r\n\x1a\n0000"), photos.ErrNotJPEG},
		{"only the marker", good[:2], photos.ErrTruncated},
		{"header only", good[:100], photos.ErrTruncated},
		{"half", good[:len(good)/2], photos.ErrTruncated},
		{"last byte gone", good[:len(good)-1], photos.ErrTruncated},
		{"noise for a picture", scribble(good), photos.ErrNotJPEG},
		{"no width", resized(good, 0, 120), photos.ErrNotJPEG},
		{"no height", resized(good, 160, 0), photos.ErrNotJPEG},
		{"bomb", resized(good, 65535, 65535), photos.ErrTooManyPixels},
		{"too wide", resized(good, 4097, 1), photos.ErrTooManyPixels},
		{"too high", resized(good, 1, 4097), photos.ErrTooManyPixels},
		{"too many", resized(good, 4000, 3001), photos.ErrTooManyPixels},
		{"largest that is tried", resized(good, 4000, 3000), photos.ErrNotJPEG},
		{"a thousand scans", append(bytes.Clone(good), bytes.Repeat([]byte{0xff, 0xda}, 1000)...), photos.ErrNotJPEG},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := imaging.Process(test.original); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

func TestSamplesAreDistinctAndRepeatable(t *testing.T) {
	t.Parallel()
	seen := map[string]uint64{}
	for seed := range uint64(64) {
		sample := imaging.Sample(seed, 160, 120)
		if seed < 8 && !bytes.Equal(sample, imaging.Sample(seed, 160, 120)) {
			t.Fatalf("seed %d gives two pictures", seed)
		}
		if other, twice := seen[string(sample)]; twice {
			t.Fatalf("seeds %d and %d give one picture", seed, other)
		}
		seen[string(sample)] = seed
		if size := len(sample); size < 3_000 || size > 30_000 {
			t.Errorf("seed %d: %d bytes is not the size of a photograph of 160x120", seed, size)
		}
		if picture := decode(t, sample); contrast(picture) < 2 {
			t.Errorf("seed %d: the picture is blank", seed)
		}
	}
}

// FuzzProcess looks for an input that causes a panic, or an error that does not wrap an
// error of package photos.
func FuzzProcess(f *testing.F) {
	good := imaging.Sample(1, 48, 32)
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add(resized(good, 65535, 65535))
	f.Add(resized(good, 47, 33))
	f.Add(scribble(good))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, original []byte) {
		header, err := imaging.Inspect(original)
		if err == nil && header.Width*header.Height > 1<<16 {
			return // legal, and only slow
		}
		v, err := imaging.Process(original)
		switch {
		case err == nil:
			decode(t, v.Thumb)
			decode(t, v.Sharp)
			decode(t, v.Blur)
		case errors.Is(err, photos.ErrNotJPEG), errors.Is(err, photos.ErrTruncated), errors.Is(err, photos.ErrTooManyPixels):
		default:
			t.Errorf("untyped error: %v", err)
		}
	})
}

// No file makes Process take more memory than Inspect says.
func FuzzMemory(f *testing.F) {
	good := imaging.Sample(1, 48, 32)
	f.Add(good)
	f.Add(resized(good, 200, 300))
	f.Add(resized(good, 1, 4096))
	for components := byte(1); components <= 4; components++ {
		f.Add(progressive(200, 300, components))
	}
	f.Fuzz(func(t *testing.T, original []byte) {
		header, err := imaging.Inspect(original)
		if err != nil || header.Width*header.Height > 1<<18 {
			return
		}
		if taken := allocated(original); taken > header.Memory+fixedMemory {
			t.Errorf("a picture took %d bytes: %+v", taken, header)
		}
	})
}

// fixedMemory is what the decoder and the encoders take for any picture, also with the race detector.
const fixedMemory = 1 << 20

// allocated returns the bytes that Process allocates, including those that it does not need at the same time.
func allocated(original []byte) int64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, _ = imaging.Process(original) // its memory matters, not its result
	runtime.ReadMemStats(&after)
	return int64(after.TotalAlloc - before.TotalAlloc)
}

// The memory of a header is at least what Process takes, and not many times as much.
func TestMemory(t *testing.T) {
	for name, original := range map[string][]byte{
		"small":                  imaging.Sample(1, 160, 120),
		"display size":           imaging.Sample(1, 1280, 960),
		"12 million pixels":      blank(t, 4000, 3000),
		"progressive, grey":      progressive(2000, 1500, 1),
		"progressive, 3 samples": progressive(2000, 1500, 3),
		"progressive, 4 samples": progressive(2000, 1500, 4),
		"one row":                imaging.Sample(1, 4096, 1),
	} {
		header, err := imaging.Inspect(original)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		taken, bound := allocated(original), header.Memory
		t.Logf("%s: %d KB of %d KB", name, taken>>10, bound>>10)
		if taken > bound+fixedMemory || bound > 4*taken+fixedMemory {
			t.Errorf("%s: Process takes %d bytes, Inspect says %d", name, taken, bound)
		}
	}
	bomb := resized(imaging.Sample(1, 48, 32), 65535, 65535)
	if _, err := imaging.Inspect(bomb); !errors.Is(err, photos.ErrTooManyPixels) {
		t.Errorf("65535x65535: %v", err)
	}
}

// blank returns a JPEG of one colour.
func blank(t *testing.T, width, height int) []byte {
	var file bytes.Buffer
	picture := image.NewYCbCr(image.Rect(0, 0, width, height), image.YCbCrSubsampleRatio444)
	if err := jpeg.Encode(&file, picture, nil); err != nil {
		t.Fatal(err)
	}
	return file.Bytes()
}

// progressive returns the headers of a progressive JPEG, without the data of its pixels.
func progressive(width, height uint16, components byte) []byte {
	file := []byte{0xff, 0xd8, 0xff, 0xc2, 0, 8 + 3*components, 8}
	file = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(file, height), width)
	file = append(file, components)
	scan := []byte{0xff, 0xda, 0, 6 + 2*components, components}
	for i := range components {
		file = append(file, i+1, 0x11, 0)
		scan = append(scan, i+1, 0)
	}
	return append(append(append(file, scan...), 0, 0, 0), 0, 0xff, 0xd9)
}

func BenchmarkProcess(b *testing.B) {
	for _, size := range [][2]int{{160, 120}, {320, 240}, {1280, 960}, {4000, 3000}} {
		b.Run(fmt.Sprintf("%dx%d", size[0], size[1]), func(b *testing.B) {
			original := imaging.Sample(1, size[0], size[1])
			b.ReportAllocs()
			for b.Loop() {
				if _, err := imaging.Process(original); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkSample(b *testing.B) {
	for b.Loop() {
		imaging.Sample(1, 160, 120)
	}
}

// resized returns a JPEG whose frame header declares another size.
func resized(original []byte, width, height int) []byte {
	bomb := bytes.Clone(original)
	frame := bytes.Index(bomb, []byte{0xff, 0xc0}) // SOF0: length (2), precision (1), height (2), width (2)
	bomb[frame+5], bomb[frame+6] = byte(height>>8), byte(height)
	bomb[frame+7], bomb[frame+8] = byte(width>>8), byte(width)
	return bomb
}

// scribble returns a JPEG with corrupt quantisation and Huffman tables.
func scribble(original []byte) []byte {
	ruined := bytes.Clone(original)
	table := bytes.Index(ruined, []byte{0xff, 0xc4})
	for i := table + 4; i < table+40; i++ {
		ruined[i] = 0xee
	}
	return ruined
}

func decode(t *testing.T, data []byte) image.Image {
	t.Helper()
	picture, err := jpeg.Decode(bytes.NewReader(data))
	if err != nil {
		t.Fatalf("a variant is not a JPEG: %v", err)
	}
	return picture
}

// contrast is the mean difference between neighbouring grey levels.
func contrast(picture image.Image) float64 {
	var sum, n float64
	bounds := picture.Bounds()
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X + 1; x < bounds.Max.X; x++ {
			sum += max(grey(picture, x, y)-grey(picture, x-1, y), grey(picture, x-1, y)-grey(picture, x, y))
			n++
		}
	}
	return sum / n
}

func brightness(picture image.Image) float64 {
	var sum, n float64
	bounds := picture.Bounds()
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			sum += grey(picture, x, y)
			n++
		}
	}
	return sum / n
}

// grey returns the grey level of a pixel: its luma.
func grey(picture image.Image, x, y int) float64 {
	decoded := picture.(*image.YCbCr)
	return float64(decoded.Y[decoded.YOffset(x, y)])
}
