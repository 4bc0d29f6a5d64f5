package balance

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// picks is the number of picks for each comparison of a policy with theory.
const picks = 1_000_000

// fleet makes available hosts with the given weights.
func fleet(weights ...float64) []candidate {
	hosts := make([]candidate, len(weights))
	for i, w := range weights {
		hosts[i] = candidate{available: true, weight: w, name: hashBytes(fmt.Sprintf("web-%d", i+1))}
	}
	return hosts
}

// TestRoundRobinShares: after a million picks, no host is more than one pick away from
// its share.
func TestRoundRobinShares(t *testing.T) {
	t.Parallel()
	hosts, counts, last := fleet(1, 1, 1, 1, 1, 1, 1), [7]int{}, -1
	for range picks {
		last = roundRobin(hosts, turn{last: last})
		counts[last]++
	}
	for i, n := range counts {
		if n != picks/7 && n != picks/7+1 {
			t.Errorf("host %d: %d picks of %d", i, n, picks)
		}
	}
}

// TestWeightedShares: after each of a million picks, every host is close to its share.
// The bounds are in the loop.
func TestWeightedShares(t *testing.T) {
	t.Parallel()
	for _, weights := range [][]float64{{1, 1, 1}, {5, 1, 1}, {3, 2, 1}, {0.1, 2.5, 100, 7}} {
		hosts, counts, sum := fleet(weights...), make([]float64, len(weights)), 0.0
		for _, w := range weights {
			sum += w
		}
		for n := 1; n <= picks; n++ {
			counts[weightedRoundRobin(hosts, turn{})]++
			for i, w := range weights {
				// A host may be ahead of its share by one pick. It may be behind by one
				// pick for each other host.
				if d := counts[i] - float64(n)*w/sum; d > 1.000001 || d < -float64(len(weights)-1) {
					t.Fatalf("weights %v: after %d picks host %d deviates by %v from its share", weights, n, i, d)
				}
			}
		}
	}
}

// TestWeightedMixes uses the example from nginx.
func TestWeightedMixes(t *testing.T) {
	t.Parallel()
	hosts, got := fleet(5, 1, 1), ""
	for range 14 {
		got += string(rune('a' + weightedRoundRobin(hosts, turn{})))
	}
	if want := "aabacaaaabacaa"; got != want {
		t.Errorf("picked %s, want %s", got, want)
	}
}

// TestWeightedReturnsWithoutABurst: a host that was down for long gets only its share
// when it is up again.
func TestWeightedReturnsWithoutABurst(t *testing.T) {
	t.Parallel()
	hosts := fleet(1, 1, 1)
	hosts[1].available = false
	for range 10_000 {
		weightedRoundRobin(hosts, turn{})
	}
	hosts[1].available = true
	counts := [3]int{}
	for range 30 {
		counts[weightedRoundRobin(hosts, turn{})]++
	}
	if counts[1] < 9 || counts[1] > 11 {
		t.Errorf("the host got %d of 30 picks after its return", counts[1])
	}
}

// clientHash returns the hash of the n-th client address.
func clientHash(n int) uint64 {
	var ip [4]byte
	binary.BigEndian.PutUint32(ip[:], 10<<24|uint32(n))
	return hashAddress(netip.AddrPortFrom(netip.AddrFrom4(ip), uint16(n)).String())
}

// chiSquare returns Pearson's chi-square statistic of the counts against equal counts.
// It ignores the host at index skipped.
func chiSquare(counts []int, skipped int) float64 {
	total, hosts := 0, 0
	for i, n := range counts {
		if i != skipped {
			total, hosts = total+n, hosts+1
		}
	}
	want, sum := float64(total)/float64(hosts), 0.0
	for i, n := range counts {
		if i != skipped {
			sum += (float64(n) - want) * (float64(n) - want) / want
		}
	}
	return sum
}

// TestIPHashShares spreads a million neighbouring addresses over seven hosts, and then
// stops one host. The bounds are the 99.9th percentiles of the chi-square distribution.
func TestIPHashShares(t *testing.T) {
	t.Parallel()
	hosts := fleet(1, 1, 1, 1, 1, 1, 1)
	home, counts := make([]int8, picks), make([]int, 7)
	for n := range home {
		i := ipHash(hosts, turn{client: clientHash(n)})
		home[n] = int8(i)
		counts[i]++
	}
	if x := chiSquare(counts, -1); x > 22.46 {
		t.Errorf("chi-square %v with 6 degrees of freedom: %v", x, counts)
	}
	const dead = 3
	hosts[dead].available = false
	moved := make([]int, 7)
	for n := range home {
		i := ipHash(hosts, turn{client: clientHash(n)})
		switch {
		case home[n] == dead:
			moved[i]++
		case int(home[n]) != i:
			t.Fatalf("address %d moved from host %d to %d, but only host %d is down", n, home[n], i, dead)
		}
	}
	if x := chiSquare(moved, dead); moved[dead] != 0 || x > 20.52 {
		t.Errorf("the addresses of the dead host moved to %v: chi-square %v with 5 degrees of freedom", moved, x)
	}
	hosts[dead].available = true
	for n := range home {
		if i := ipHash(hosts, turn{client: clientHash(n)}); i != int(home[n]) {
			t.Fatalf("with all hosts up again, address %d is on host %d, want %d", n, i, home[n])
		}
	}
}

func TestHashAddressIgnoresPorts(t *testing.T) {
	t.Parallel()
	one := hashAddress("192.0.2.1:1000")
	for address, same := range map[string]bool{
		"192.0.2.1:2000": true, "[::ffff:192.0.2.1]:1000": true,
		"192.0.2.2:1000": false, "[2001:db8::1]:1000": false, "@": false,
	} {
		if got := hashAddress(address) == one; got != same {
			t.Errorf("%s has the hash of 192.0.2.1: %v, want %v", address, got, same)
		}
	}
}

// queueing simulates hosts with a FIFO queue each. A host serves one request at a time,
// with exponentially distributed service times. All times are in seconds.
type queueing struct {
	random *rand.Rand
	policy policy
	hosts  []candidate
	rates  []float64 // service rate of each host, in requests per second
	broken int       // index of the host that answers with errors at once; -1 for none

	now     float64
	last    int
	ends    []float64   // per host: when its current request finishes
	arrived [][]float64 // per host: arrival times of its current and queued requests
	latency []latency
	picked  []int
	done    int
	waited  float64 // sum of the times from arrival to finish
}

func newQueueing(seed uint64, p policy, rates ...float64) *queueing {
	q := &queueing{
		random: rand.New(rand.NewPCG(seed, 0)), policy: p, hosts: fleet(rates...), rates: rates, broken: -1, last: -1,
		ends: make([]float64, len(rates)), arrived: make([][]float64, len(rates)),
		latency: make([]latency, len(rates)), picked: make([]int, len(rates)),
	}
	for i := range q.ends {
		q.ends[i] = math.Inf(1)
	}
	return q
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// arrive sends one request to the host that the policy picks.
func (q *queueing) arrive() {
	for i := range q.hosts {
		q.hosts[i].inFlight = len(q.arrived[i])
		q.hosts[i].latency = q.latency[i].now(seconds(q.now))
	}
	i := q.policy(q.hosts, turn{last: q.last})
	q.last = i
	q.picked[i]++
	q.arrived[i] = append(q.arrived[i], q.now)
	if len(q.arrived[i]) == 1 {
		q.begin(i)
	}
}

func (q *queueing) begin(i int) {
	q.ends[i] = q.now + q.random.ExpFloat64()/q.rates[i]
	if i == q.broken {
		q.ends[i] = q.now + 1e-5
	}
}

// next returns the host that finishes its current request first.
func (q *queueing) next() int {
	first := 0
	for i, end := range q.ends {
		if end < q.ends[first] {
			first = i
		}
	}
	return first
}

// finish ends the current request of a host.
func (q *queueing) finish(i int) {
	q.now = q.ends[i]
	took := q.now - q.arrived[i][0]
	q.latency[i] = q.latency[i].observe(seconds(q.now), seconds(took), i == q.broken)
	q.waited += took
	q.done++
	q.arrived[i] = q.arrived[i][1:]
	q.ends[i] = math.Inf(1)
	if len(q.arrived[i]) > 0 {
		q.begin(i)
	}
}

// closed simulates a closed loop: each client sends its next request when it gets an
// answer.
func (q *queueing) closed(clients int) *queueing {
	for range clients {
		q.arrive()
	}
	for n := clients; n < picks; n++ {
		q.finish(q.next())
		q.arrive()
	}
	return q
}

// open simulates an open loop: requests arrive as a Poisson process with the rate.
func (q *queueing) open(rate float64) *queueing {
	at := 0.0
	for range picks {
		at += q.random.ExpFloat64() / rate
		for i := q.next(); q.ends[i] <= at; i = q.next() {
			q.finish(i)
		}
		q.now = at
		q.arrive()
	}
	return q
}

func (q *queueing) share(i int) float64 { return float64(q.picked[i]) / picks }
func (q *queueing) mean() float64       { return q.waited / float64(q.done) }

// erlangC returns the probability that a request waits in an M/M/n queue with an
// offered load of a erlangs. Source: Kleinrock, Queueing Systems I, 1975, 3.5.
func erlangC(n int, a float64) float64 {
	sum, term := 0.0, 1.0
	for k := range n {
		sum += term
		term *= a / float64(k+1)
	}
	last := term * float64(n) / (float64(n) - a)
	return last / (sum + last)
}

// TestLoadAwareSharesOfBusyHosts: when no host is ever idle, the share of each host is
// proportional to its service rate.
func TestLoadAwareSharesOfBusyHosts(t *testing.T) {
	t.Parallel()
	rates := []float64{100, 200, 400, 300}
	for name, p := range map[string]policy{
		sut.PolicyLeastConn: leastConn, sut.PolicyLeastResponseTime: leastResponseTime,
	} {
		q := newQueueing(1, p, rates...).closed(200)
		for i, r := range rates {
			if got, want := q.share(i), r/1000; math.Abs(got-want) > 0.01*want+0.002 {
				t.Errorf("%s: host of rate %v has a share of %v, want %v", name, r, got, want)
			}
		}
	}
}

// TestLeastConnIsBetweenTheBounds: the mean response time with the shortest of three
// queues is longer than with one shared queue (M/M/3). It is much shorter than with
// three independent queues (M/M/1).
func TestLeastConnIsBetweenTheBounds(t *testing.T) {
	t.Parallel()
	const rate, load = 100.0, 0.8
	q := newQueueing(2, leastConn, rate, rate, rate).open(3 * load * rate)
	one := 1/rate + erlangC(3, 3*load)/(3*rate*(1-load))
	each := 1 / (rate * (1 - load))
	if got := q.mean(); got < one || got > (one+each)/2 {
		t.Errorf("mean %v s: want at least %v s, and far below %v s", got, one, each)
	}
	for i := range 3 {
		if s := q.share(i); math.Abs(s-1.0/3) > 0.01 {
			t.Errorf("host %d has a share of %v", i, s)
		}
	}
}

// TestLeastResponseTimeFindsTheFastHost: a host that is four times as fast as the others
// gets most of the requests. The mean response time is shorter than with the policies
// that do not measure latency.
func TestLeastResponseTimeFindsTheFastHost(t *testing.T) {
	t.Parallel()
	rates := []float64{50, 200, 50}
	mean := map[string]float64{}
	for name, p := range policies() {
		q := newQueueing(3, p, rates...).open(120)
		mean[name] = q.mean()
		if name == sut.PolicyLeastResponseTime && q.share(1) < 0.75 {
			t.Errorf("the fast host has a share of %v", q.share(1))
		}
	}
	if m := mean[sut.PolicyLeastResponseTime]; m > mean[sut.PolicyLeastConn] || m > mean[sut.PolicyRoundRobin]/2 {
		t.Errorf("mean response in seconds: %v", mean)
	}
}

// TestFastErrorsAttractNothing: a host that answers with errors at once gets few
// requests. If errors counted as fast answers, it would get most of them.
func TestFastErrorsAttractNothing(t *testing.T) {
	t.Parallel()
	q := newQueueing(4, leastResponseTime, 100, 100, 100)
	q.broken = 1
	q.open(150)
	if s := q.share(1); s > 0.01 || s == 0 {
		t.Errorf("the broken host has a share of %v, want a few tries", s)
	}
}

// TestUnknownHostIsTried: a host without a measured latency gets one request, and no
// second one before it answers.
func TestUnknownHostIsTried(t *testing.T) {
	t.Parallel()
	hosts := fleet(1, 1, 1)
	hosts[0].latency, hosts[2].latency = 1e6, 1e6
	if i := leastResponseTime(hosts, turn{last: 1}); i != 1 {
		t.Errorf("picked %d, want the unknown host", i)
	}
	hosts[1].inFlight = 1
	hosts[0].inFlight, hosts[2].inFlight = 500, 600
	if i := leastResponseTime(hosts, turn{last: 0}); i != 0 {
		t.Errorf("picked %d, want the measured host with the fewest requests in flight", i)
	}
}

func TestLatencyFollowsAndFades(t *testing.T) {
	t.Parallel()
	var l latency
	for i := range 1000 {
		l = l.observe(time.Duration(i)*10*time.Millisecond, 20*time.Millisecond, false)
	}
	for i := range 1000 { // ten seconds, five times the decay
		l = l.observe(10*time.Second+time.Duration(i)*10*time.Millisecond, 5*time.Millisecond, false)
	}
	if got := l.now(20 * time.Second); got < 4.9e6 || got > 5.2e6 {
		t.Errorf("after ten seconds of 5 ms: %v ns", got)
	}
	if got := l.now(40 * time.Second); got > 1e3 {
		t.Errorf("after twenty seconds without observations: %v ns", got)
	}
	// One failure has little effect. Consecutive failures have a large one.
	once := l.observe(20*time.Second, time.Millisecond, true)
	if got := once.now(20 * time.Second); got > 11e6 {
		t.Errorf("after one failure: %v ns", got)
	}
	for range 20 {
		l = l.observe(20*time.Second, time.Millisecond, true)
	}
	if got := l.now(20 * time.Second); got < 1e9 {
		t.Errorf("after twenty failures: %v ns", got)
	}
}
