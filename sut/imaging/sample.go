package imaging

import (
	"image"
	"image/color"
	"math"
	"math/rand/v2"
)

// Sample paints a landscape and returns it as a JPEG. It has a sky with a sun, ranges of
// hills, a foreground with trees or water, and film grain. The same seed and size give the
// same bytes with the same version of the JPEG encoder. Different seeds give different
// pictures. Width and height must be in 1..MaxSide.
func Sample(seed uint64, width, height int) []byte {
	s := newScene(rand.New(rand.NewPCG(seed, 0x5ca1ab1e)), width, height)
	s.paintSky()
	s.paintHills()
	if s.rng.IntN(3) == 0 {
		s.paintWater()
	} else {
		s.paintTrees()
	}
	s.addGrain()
	return encode(s.picture, 90)
}

// scene is a picture being painted.
type scene struct {
	rng     *rand.Rand
	picture *image.RGBA
	width   int
	height  int

	horizon float64 // share of the height that is sky
	zenith  rgb     // colour of the sky at the top
	haze    rgb     // colour of the sky at the horizon
	earth   rgb     // colour of the nearest hill
	sun     struct{ x, y, radius float64 }
}

// rgb is a colour with levels from 0 to 1.
type rgb struct{ r, g, b float64 }

func (c rgb) mix(o rgb, share float64) rgb {
	return rgb{c.r + (o.r-c.r)*share, c.g + (o.g-c.g)*share, c.b + (o.b-c.b)*share}
}

func newScene(rng *rand.Rand, width, height int) *scene {
	s := &scene{rng: rng, width: width, height: height, picture: image.NewRGBA(image.Rect(0, 0, width, height))}
	moods := []struct{ zenith, haze, earth rgb }{
		{rgb{0.16, 0.38, 0.72}, rgb{0.78, 0.88, 0.96}, rgb{0.13, 0.30, 0.16}}, // noon
		{rgb{0.20, 0.18, 0.42}, rgb{0.98, 0.62, 0.35}, rgb{0.16, 0.10, 0.16}}, // sunset
		{rgb{0.05, 0.07, 0.20}, rgb{0.30, 0.36, 0.58}, rgb{0.03, 0.05, 0.09}}, // dusk
		{rgb{0.60, 0.66, 0.72}, rgb{0.90, 0.90, 0.88}, rgb{0.26, 0.31, 0.28}}, // fog
		{rgb{0.35, 0.58, 0.80}, rgb{0.99, 0.87, 0.76}, rgb{0.45, 0.29, 0.15}}, // desert
	}
	mood := moods[rng.IntN(len(moods))]
	s.zenith, s.haze, s.earth = s.vary(mood.zenith), s.vary(mood.haze), s.vary(mood.earth)
	s.horizon = 0.45 + 0.25*rng.Float64()
	s.sun.x, s.sun.y = rng.Float64(), s.horizon*(0.2+0.7*rng.Float64())
	s.sun.radius = 0.03 + 0.05*rng.Float64()
	return s
}

// vary returns a colour near the given one.
func (s *scene) vary(c rgb) rgb {
	near := func(v float64) float64 { return min(max(v+0.12*(s.rng.Float64()-0.5), 0), 1) }
	return rgb{near(c.r), near(c.g), near(c.b)}
}

func (s *scene) set(x, y int, c rgb) {
	to := func(v float64) uint8 { return uint8(255 * min(max(v, 0), 1)) }
	s.picture.SetRGBA(x, y, color.RGBA{R: to(c.r), G: to(c.g), B: to(c.b), A: 0xff})
}

func (s *scene) at(x, y int) rgb {
	c := s.picture.RGBAAt(x, y)
	return rgb{float64(c.R) / 255, float64(c.G) / 255, float64(c.B) / 255}
}

func (s *scene) paintSky() {
	clouds := s.newRidge(6)
	white := rgb{1, 0.97, 0.9}
	for y := range s.height {
		down := float64(y) / float64(s.height)
		for x := range s.width {
			across := float64(x) / float64(s.width)
			c := s.zenith.mix(s.haze, min(down/s.horizon, 1))
			if cloud := clouds.at(across*1.5+down) + clouds.at(down*3-across) - 0.9; cloud > 0 {
				c = c.mix(white, min(cloud*0.8, 0.5))
			}
			far := math.Hypot((across-s.sun.x)*float64(s.width)/float64(s.height), down-s.sun.y) / s.sun.radius
			c = c.mix(white, math.Exp(-far*far)+0.25*math.Exp(-far/3))
			s.set(x, y, c)
		}
	}
}

// paintHills paints ranges of hills from far to near. Nearer ranges are more similar to
// the colour of the earth.
func (s *scene) paintHills() {
	ranges := 2 + s.rng.IntN(3)
	for i := range ranges {
		near := float64(i+1) / float64(ranges)
		ridge := s.newRidge(3 + i)
		base := s.horizon + (1-s.horizon)*0.55*near
		tall := 0.22 * (1.1 - 0.6*near)
		c := s.haze.mix(s.earth, 0.25+0.75*near)
		for x := range s.width {
			top := base - tall*ridge.at(float64(x)/float64(s.width))
			for y := max(int(top*float64(s.height)), 0); y < s.height; y++ {
				depth := float64(y)/float64(s.height) - top
				s.set(x, y, c.mix(s.haze, max(0.25-depth, 0)))
			}
		}
	}
}

// paintWater turns the lower part into a lake that mirrors the part above it.
func (s *scene) paintWater() {
	shore := int(float64(s.height) * (0.72 + 0.1*s.rng.Float64()))
	waves := s.newRidge(40)
	for y := shore; y < s.height; y++ {
		ripple := waves.at(float64(y)/float64(s.height)) - 0.5
		for x := range s.width {
			from := min(max(x+int(6*ripple), 0), s.width-1)
			mirrored := s.at(from, max(2*shore-y-1, 0))
			s.set(x, y, mirrored.mix(s.zenith, 0.3).mix(rgb{1, 1, 1}, 0.1*max(ripple, 0)))
		}
	}
}

// paintTrees paints firs in the foreground.
func (s *scene) paintTrees() {
	for range 4 + s.rng.IntN(8) {
		foot := (0.85 + 0.15*s.rng.Float64()) * float64(s.height)
		tall := (0.15 + 0.25*s.rng.Float64()) * float64(s.height)
		middle := s.rng.Float64() * float64(s.width)
		green := s.vary(s.earth.mix(rgb{}, 0.4))
		for y := max(int(foot-tall), 0); y < min(int(foot), s.height); y++ {
			share := 1 - (foot-float64(y))/tall // 0 at the tip
			half := tall * 0.22 * share * (0.7 + 0.3*math.Mod(share*7, 1))
			for x := max(int(middle-half), 0); x < min(int(middle+half)+1, s.width); x++ {
				s.set(x, y, green)
			}
		}
	}
}

// addGrain adds noise to every pixel and darkens the corners. Without it, the JPEGs would
// be much smaller than photographs of the same dimensions.
func (s *scene) addGrain() {
	strength := 0.02 + 0.03*s.rng.Float64()
	for y := range s.height {
		for x := range s.width {
			c, grain := s.at(x, y), strength*s.rng.NormFloat64()
			dx, dy := float64(x)/float64(s.width)-0.5, float64(y)/float64(s.height)-0.5
			shade := 1 - 0.45*(dx*dx+dy*dy)
			s.set(x, y, rgb{c.r*shade + grain, c.g*shade + grain, c.b*shade + grain})
		}
	}
}

// ridge is a smooth random function with values from 0 to 1: four octaves of value noise.
type ridge struct {
	points []float64
	scale  float64 // bumps per unit of length
}

func (s *scene) newRidge(bumps int) ridge {
	r := ridge{points: make([]float64, 64), scale: float64(bumps)}
	for i := range r.points {
		r.points[i] = s.rng.Float64()
	}
	return r
}

func (r ridge) at(x float64) float64 {
	var sum float64
	weight, scale := 0.5, r.scale
	for range 4 {
		at := x*scale + 1000 // the offset keeps it positive
		i := int(at)
		t := at - float64(i)
		t = t * t * (3 - 2*t)
		a, b := r.points[i%len(r.points)], r.points[(i+1)%len(r.points)]
		sum += weight * (a + (b-a)*t)
		weight, scale = weight/2, scale*2
	}
	return sum
}
