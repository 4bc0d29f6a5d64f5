package capacity_test

import (
	"math"
	"math/rand/v2"

	"github.com/stagebench/stagebench/results/capacity"
)

// system is a simulated system: servers with one queue, and a CPU quota. Times are seconds.
type system struct {
	servers int
	service float64 // mean of the CPU time of an op
	quota   float64 // CPU time in each period
	period  float64
	bursts  float64 // share of ops that need twenty times as much
	stalls  float64 // mean time between two stalls, in which nothing is served; 0 = none
	stall   float64 // length of a stall
	truth   float64 // capacity at the usual speed
	drift   float64 // standard deviation of the logarithm of the speed, between visits
}

const (
	bound       = 0.1  // largest response time that meets the objective
	connections = 64   // of the client: more ops than these are not sent when a step ends
	stepNoise   = 0.10 // standard deviation of the logarithm of the speed, between steps of a visit
)

// peak returns the peak throughput at a speed.
func (s system) peak(speed float64) float64 {
	return float64(s.servers) * s.quota / s.period / (s.service * (1 + 19*s.bursts)) * speed
}

// offer returns the counts of each second of a step, without the time before cut: the slow or failed ops, and the
// failed ones.
func (s system) offer(random *rand.Rand, rate, speed, cut, length float64) []capacity.Batch {
	free := make([]float64, s.servers)
	seconds := make([]capacity.Batch, int(math.Ceil(length-cut)))
	for i := range seconds {
		seconds[i] = make(capacity.Batch, 2)
	}
	phase := random.Float64() * s.period
	// available is the time in which the servers may work until t, and when its inverse.
	available := func(t float64) float64 {
		n := math.Floor((t + phase) / s.period)
		return n*s.quota + min(t+phase-n*s.period, s.quota)
	}
	when := func(work float64) float64 {
		n := math.Ceil(work/s.quota) - 1
		return n*s.period + work - n*s.quota - phase
	}
	var stalls []float64 // their begins
	for at := random.ExpFloat64() * s.stalls; s.stalls > 0 && at < length; at += s.stall + random.ExpFloat64()*s.stalls {
		stalls = append(stalls, at)
	}
	// served returns when an op that may begin at a time ends.
	served := func(begin, work float64) float64 {
		for _, at := range stalls {
			if at <= begin && begin < at+s.stall {
				begin = at + s.stall
			}
		}
		end := when(available(begin) + work)
		for _, at := range stalls {
			if begin < at && at < end {
				end += s.stall
			}
		}
		return end
	}
	var late []float64 // intended times of the ops that were not done when the step ended
	for at := random.ExpFloat64() / rate; at < length; at += random.ExpFloat64() / rate {
		work := random.ExpFloat64() * s.service / speed
		if random.Float64() < s.bursts {
			work *= 20
		}
		first := 0
		for i := range free {
			if free[i] < free[first] {
				first = i
			}
		}
		free[first] = served(max(at, free[first]), work)
		if free[first] > length {
			late = append(late, at)
		}
		if at >= cut {
			second := seconds[int(at-cut)]
			second[0].Ops++
			second[1].Ops++
			if free[first]-at > bound {
				second[0].Missed++
			}
		}
	}
	for _, at := range late[min(len(late), connections):] {
		if at >= cut && at < length-bound {
			seconds[int(at-cut)][1].Missed++
		}
	}
	return seconds
}

// capacity returns the true capacity at speed 1, from a long simulation.
func (s system) capacity() float64 {
	low, high := 0.2*s.peak(1), 1.2*s.peak(1)
	for high/low > 1.002 {
		rate := math.Sqrt(low * high)
		var sum capacity.Count
		random := rand.New(rand.NewPCG(1, 1))
		for range 150 {
			speed := math.Exp(random.NormFloat64() * math.Hypot(stepNoise, s.drift))
			for _, b := range s.offer(random, rate, speed, 0.5, 4.5) {
				sum.Ops += b[0].Ops
				sum.Missed += b[0].Missed
			}
		}
		if float64(sum.Missed) <= 0.01*float64(sum.Ops) {
			low = rate
		} else {
			high = rate
		}
	}
	return low
}

// systems returns different systems, fixed by a seed.
func systems(n int) (all []system) {
	random := rand.New(rand.NewPCG(4711, 1))
	for len(all) < n {
		s := system{
			servers: 1 + random.IntN(4), period: 0.04, drift: 0.03 + 0.1*random.Float64(),
			bursts: []float64{0, 0, 0.001, 0.003}[random.IntN(4)],
		}
		s.quota = s.period * []float64{0.1, 0.2, 0.5, 1}[random.IntN(4)] * float64(s.servers)
		s.quota = min(s.quota, s.period)
		s.service = float64(s.servers) * s.quota / s.period / math.Exp(math.Log(60)+random.Float64()*math.Log(30))
		// Below a third of the peak, a system hardly has a rate at which it meets the objective.
		if random.IntN(3) == 0 { // as a disk that is flushed: some ops are slow at any rate
			s.stalls, s.stall = 10+20*random.Float64(), 0.1+0.1*random.Float64()
		}
		if s.truth = s.capacity(); s.truth > 0.35*s.peak(1) {
			all = append(all, s)
		}
	}
	return all
}

// estimate measures a system in some visits.
func (s system) estimate(seed uint64, visits int) (capacity.Interval, int, bool) {
	random := rand.New(rand.NewPCG(seed, 2))
	noise := func() float64 { return math.Exp(random.NormFloat64() * stepNoise) }
	e := capacity.New(capacity.Config{
		Allowed: []float64{0.01, 0.001}, Start: 100, Min: 1, Max: 50_000, First: 6, Steps: 3,
	})
	steps := 0
	for range visits {
		speed := math.Exp(random.NormFloat64() * s.drift)
		e.Begin(s.peak(speed) * noise())
		for {
			rate, ok := e.Next()
			if !ok {
				break
			}
			steps++
			seconds := s.offer(random, rate, speed*noise(), 0.5, 0.5+min(max(600/rate, 2), 4))
			var slow, all int64
			for _, b := range seconds {
				slow, all = slow+b[0].Missed, all+b[0].Ops
			}
			e.Observe(rate, slow <= max(1, all/100), seconds)
		}
	}
	estimate, ok := e.Estimate()
	return estimate.Interval, steps, ok
}
