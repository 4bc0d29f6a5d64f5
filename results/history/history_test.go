package history_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/history"
)

func write(user int, sent, done, version int64) history.Observation {
	return history.Observation{Write: true, User: user, Sent: sent, Done: done, Version: version}
}

func read(user int, sent, done, version int64) history.Observation {
	return history.Observation{User: user, Sent: sent, Done: done, Version: version}
}

func hit(user int, sent, done, version int64) history.Observation {
	return history.Observation{Cached: true, User: user, Sent: sent, Done: done, Version: version}
}

type judgeCase struct {
	before, seen []history.Observation
	reads, hits  int64
	want         []history.StaleRead
}

func checkJudge(t *testing.T, cases map[string]judgeCase) {
	t.Helper()
	for name, test := range cases {
		t.Run(name, func(t *testing.T) {
			_, past := history.Judge(history.State{}, test.before)
			slices.Reverse(test.seen) // the order of the ops must not matter
			v, _ := history.Judge(past, test.seen)
			if v.Reads != test.reads || v.Hits != test.hits {
				t.Errorf("%d reads and %d hits judged, want %d and %d", v.Reads, v.Hits, test.reads, test.hits)
			}
			byAge := cmpopts.SortSlices(func(a, b history.StaleRead) bool { return a.AgeNS < b.AgeNS })
			if diff := cmp.Diff(test.want, v.Stale, cmpopts.EquateEmpty(), byAge); diff != "" {
				t.Errorf("stale (-want +got)\n%s", diff)
			}
		})
	}
}

func TestJudgeOneWrite(t *testing.T) {
	checkJudge(t, map[string]judgeCase{
		"no ops":                       {},
		"newest version":               {seen: []history.Observation{write(1, 0, 10, 2), read(2, 20, 30, 2)}, reads: 1},
		"newer than acknowledged":      {seen: []history.Observation{write(1, 0, 10, 2), read(2, 20, 30, 5)}, reads: 1},
		"no record and no known write": {seen: []history.Observation{read(1, 5, 6, 0)}},
		"no record before the ack":     {seen: []history.Observation{read(1, 5, 12, 0), write(1, 0, 10, 2)}},
		"older version": {
			seen:  []history.Observation{write(1, 0, 10, 2), read(2, 25, 30, 1)},
			reads: 1, want: []history.StaleRead{{AgeNS: 15}},
		},
		"older version, read by the writer": {
			seen:  []history.Observation{write(1, 0, 10, 2), read(1, 25, 30, 1)},
			reads: 1, want: []history.StaleRead{{AgeNS: 15, OwnWrite: true}},
		},
		"ops without a user have no own writes": {
			seen:  []history.Observation{write(-1, 0, 10, 2), read(-1, 25, 30, 1)},
			reads: 1, want: []history.StaleRead{{AgeNS: 15}},
		},
		"a read that overlaps the write is not stale": {
			seen:  []history.Observation{write(1, 0, 10, 2), read(2, 5, 30, 1), read(2, 10, 30, 1)},
			reads: 2,
		},
		"no record after the ack": {
			seen:  []history.Observation{write(1, 0, 10, 1), read(1, 15, 16, 0)},
			reads: 1, want: []history.StaleRead{{AgeNS: 5, OwnWrite: true}},
		},
		"stale cache hits": {
			seen: []history.Observation{
				write(1, 0, 10, 2), hit(2, 5, 6, 1), hit(2, 15, 16, 1), read(2, 17, 18, 1), hit(2, 19, 20, 2),
				hit(1, 21, 22, 1),
			},
			reads: 5, hits: 4,
			want: []history.StaleRead{{AgeNS: 5, Cached: true}, {AgeNS: 7}, {AgeNS: 11, OwnWrite: true, Cached: true}},
		},
	})
}

func TestJudgeManyWrites(t *testing.T) {
	checkJudge(t, map[string]judgeCase{
		"the age counts from the first newer version": {
			seen: []history.Observation{
				write(1, 0, 10, 2), write(1, 11, 20, 3), write(1, 21, 30, 4),
				read(2, 40, 50, 2), read(2, 41, 50, 1), read(2, 42, 50, 3),
			},
			reads: 3, want: []history.StaleRead{{AgeNS: 20}, {AgeNS: 31}, {AgeNS: 12}},
		},
		"acknowledgements in another order than versions": {
			// Version 3 is acknowledged at 10, before version 2. A read of version 1 is stale from 10 on.
			seen: []history.Observation{
				write(1, 0, 20, 2), write(2, 0, 10, 3), read(3, 15, 50, 1), read(3, 30, 50, 2), read(1, 31, 50, 1),
			},
			reads: 3, want: []history.StaleRead{{AgeNS: 5}, {AgeNS: 20}, {AgeNS: 21, OwnWrite: true}},
		},
		"own write returned, a newer one of another user not": {
			seen:  []history.Observation{write(1, 0, 10, 2), write(2, 11, 20, 3), read(1, 30, 31, 2)},
			reads: 1, want: []history.StaleRead{{AgeNS: 10}},
		},
		"acknowledged in an earlier step": {
			before: []history.Observation{write(1, 0, 10, 2), read(1, 5, 6, 1), write(2, 11, 12, 3)},
			seen: []history.Observation{
				read(1, 100, 101, 1), read(1, 102, 103, 2), write(1, 110, 120, 4), read(1, 130, 131, 3),
			},
			reads: 3, want: []history.StaleRead{{AgeNS: 90, OwnWrite: true}, {AgeNS: 90}, {AgeNS: 10, OwnWrite: true}},
		},
		"after a loss, reads are stale until the version is reached again": {
			seen: []history.Observation{
				write(1, 0, 10, 11), write(1, 11, 20, 12), // lost with their primary
				read(2, 100, 101, 10), write(2, 110, 120, 11), read(2, 130, 131, 11),
				write(2, 140, 150, 12), read(2, 160, 161, 12),
			},
			reads: 3, want: []history.StaleRead{{AgeNS: 90}, {AgeNS: 110}},
		},
	})
}

// Judge does not change its arguments: two calls with the same past agree.
func TestJudgeIsPure(t *testing.T) {
	_, past := history.Judge(history.State{}, []history.Observation{write(1, 0, 10, 2)})
	for range 2 {
		v, _ := history.Judge(past, []history.Observation{read(1, 12, 13, 1), write(1, 14, 15, 3), read(1, 20, 21, 2)})
		if len(v.Stale) != 2 || v.Stale[0].AgeNS != 2 || v.Stale[1].AgeNS != 5 {
			t.Fatalf("%+v", v)
		}
	}
}

// naive judges one read by the definition: it compares the read with every write.
func naive(all []history.Observation, r history.Observation) (stale, own bool, age int64) {
	first := int64(-1)
	for _, w := range all {
		if !w.Write || w.Done >= r.Sent || w.Version <= r.Version {
			continue
		}
		stale = true
		own = own || w.User == r.User && r.User >= 0
		if first < 0 || w.Done < first {
			first = w.Done
		}
	}
	return stale, own, r.Sent - first
}

// Judge agrees with the definition for random small histories over two steps.
func TestJudgeAgainstTheDefinition(t *testing.T) {
	for seed := range uint64(3000) {
		random := rand.New(rand.NewPCG(seed, 1))
		// The second step begins after the last op of the first step.
		var steps [2][]history.Observation
		var all []history.Observation
		for i := range steps {
			for range random.IntN(8) {
				s := history.Observation{
					Write: random.IntN(2) == 0, User: random.IntN(3) - 1,
					Sent: int64(i*100 + random.IntN(20)), Version: 1 + int64(random.IntN(6)),
				}
				s.Done = s.Sent + 1 + int64(random.IntN(10))
				steps[i] = append(steps[i], s)
				all = append(all, s)
			}
		}
		var want, got []history.StaleRead
		for _, s := range all {
			if stale, own, age := naive(all, s); !s.Write && stale {
				want = append(want, history.StaleRead{AgeNS: age, OwnWrite: own})
			}
		}
		var past history.State
		for _, step := range steps {
			var v history.Verdict
			v, past = history.Judge(past, step)
			got = append(got, v.Stale...)
		}
		less := cmpopts.SortSlices(func(a, b history.StaleRead) bool {
			return a.AgeNS < b.AgeNS || a.AgeNS == b.AgeNS && !a.OwnWrite && b.OwnWrite
		})
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty(), less); diff != "" {
			t.Fatalf("seed %d: %+v\n(-want +got)\n%s", seed, steps, diff)
		}
	}
}

func acks(versions ...int64) (all []history.Ack) {
	for i, v := range versions {
		all = append(all, history.Ack{Sent: int64(10 * i), Done: int64(10*i + 5), Version: v})
	}
	return all
}

// concurrent returns writes that overlap in time.
func concurrent(versions ...int64) (all []history.Ack) {
	for i, v := range versions {
		all = append(all, history.Ack{Sent: 0, Done: int64(100 + i), Version: v})
	}
	return all
}

type resolveCase struct {
	written history.Written
	final   int64 // -1 = the record could not be read
	want    results.Writes
}

func checkResolve(t *testing.T, cases map[string]resolveCase) {
	t.Helper()
	for name, test := range cases {
		t.Run(name, func(t *testing.T) {
			test.written.Record = "/r"
			readBack := map[string]int64{}
			if test.final >= 0 {
				readBack["/r"] = test.final
			}
			if diff := cmp.Diff(test.want, history.Resolve([]history.Written{test.written}, readBack)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestResolveAcknowledged(t *testing.T) {
	checkResolve(t, map[string]resolveCase{
		"no loss": {
			history.Written{Acks: acks(2, 3, 4), Lowest: 1},
			4,
			results.Writes{Acknowledged: 3},
		},
		"acknowledged in another order": {
			history.Written{Acks: concurrent(4, 2, 3), Lowest: 1},
			4,
			results.Writes{Acknowledged: 3},
		},
		"other clients wrote": {
			history.Written{Acks: acks(2, 3), Lowest: 1},
			9,
			results.Writes{Acknowledged: 2},
		},
		"the last writes are lost": {
			history.Written{Acks: acks(2, 3, 4), Lowest: 1},
			2,
			results.Writes{Acknowledged: 3, Lost: 2},
		},
		"the record no longer exists": {
			history.Written{Acks: acks(2, 3, 4), Lowest: 1},
			0,
			results.Writes{Acknowledged: 3, Lost: 3},
		},
		"unread": {
			history.Written{Acks: acks(2, 3, 4), Lowest: 1},
			-1,
			results.Writes{Acknowledged: 3, Unread: 1},
		},
		"unread, but a version was reused": {
			history.Written{Acks: acks(2, 3, 3), Lowest: 1},
			-1,
			results.Writes{Acknowledged: 3, Lost: 1, Unread: 1},
		},
		"failover: only the old primary had 11 to 13, the new one continued after 10": {
			history.Written{Acks: acks(9, 10, 11, 12, 13, 11, 12), Lowest: 8},
			12,
			results.Writes{Acknowledged: 7, Lost: 3},
		},
		"failover, then more writes than were lost": {
			history.Written{Acks: acks(10, 11, 12, 11, 12, 13, 14), Lowest: 9},
			14,
			results.Writes{Acknowledged: 7, Lost: 2},
		},
		"two failovers, the second loses the versions that were reused after the first": {
			history.Written{Acks: acks(2, 3, 2, 3, 2), Lowest: 1},
			2,
			results.Writes{Acknowledged: 5, Lost: 4},
		},
	})
}

func TestResolveAmbiguous(t *testing.T) {
	checkResolve(t, map[string]resolveCase{
		"an ambiguous write reused version 12, found because 13 is acknowledged twice": {
			history.Written{Acks: acks(11, 12, 13, 13), Ambiguous: 1, Lowest: 10},
			13,
			results.Writes{Acknowledged: 4, Lost: 1, Ambiguous: 1},
		},
		"ambiguous writes reused 12 and 13, found because a later write got 11": {
			history.Written{Acks: acks(11, 12, 13, 11), Ambiguous: 2, Lowest: 10},
			13,
			results.Writes{Acknowledged: 4, Lost: 3, Ambiguous: 2},
		},
		"an ambiguous write took effect": {
			history.Written{Acks: acks(2, 4), Ambiguous: 1, Lowest: 1},
			4,
			results.Writes{Acknowledged: 2, Ambiguous: 1, AmbiguousApplied: 1},
		},
		"an ambiguous write did not take effect": {
			history.Written{Acks: acks(2, 3), Ambiguous: 1, Lowest: 1},
			3,
			results.Writes{Acknowledged: 2, Ambiguous: 1},
		},
		"two of three ambiguous writes took effect last": {
			history.Written{Acks: acks(2, 3), Ambiguous: 3, Lowest: 1},
			5,
			results.Writes{Acknowledged: 2, Ambiguous: 3, AmbiguousApplied: 2},
		},
		"an ambiguous write, and other clients wrote": {
			history.Written{Acks: acks(2), Ambiguous: 1, Lowest: 1},
			9,
			results.Writes{Acknowledged: 1, Ambiguous: 1, AmbiguousApplied: 1},
		},
		"only ambiguous writes after a read": {
			history.Written{Ambiguous: 2, Lowest: 7},
			8,
			results.Writes{Ambiguous: 2, AmbiguousApplied: 1},
		},
		"only ambiguous writes and no read": {
			history.Written{Ambiguous: 2},
			8,
			results.Writes{Ambiguous: 2},
		},
	})
}

// In random small histories, a primary dies whose replica lags behind. The number
// of lost writes is exactly that of a model.
func TestResolveOfFailovers(t *testing.T) {
	for seed := range uint64(2000) {
		random := rand.New(rand.NewPCG(seed, 2))
		w := history.Written{Record: "/r", Lowest: 1}
		version, now, lost := int64(1), int64(0), int64(0)
		for range 1 + random.IntN(3) { // primaries
			written := random.IntN(5)
			for range written {
				version++
				w.Acks = append(w.Acks, history.Ack{Sent: now, Done: now + 1, Version: version})
				now += 2
			}
			behind := random.IntN(written + 1)
			version -= int64(behind)
			lost += int64(behind)
		}
		random.Shuffle(len(w.Acks), func(i, j int) { w.Acks[i], w.Acks[j] = w.Acks[j], w.Acks[i] })
		if got := history.Resolve([]history.Written{w}, map[string]int64{"/r": version}); got.Lost != lost {
			t.Fatalf("seed %d: lost %d, want %d: final %d, %+v", seed, got.Lost, lost, version, w.Acks)
		}
	}
}

func TestRecorder(t *testing.T) {
	r := history.New()
	op := func(o results.Outcome) { r.Record(o) }
	shown := func(write bool, sent, version int64) results.Outcome {
		return results.Outcome{Record: "/r", Write: write, User: 3, Sent: sent, Done: sent + 5, Status: 200, Version: version}
	}
	op(shown(false, 0, 1))
	op(shown(true, 10, 2))
	op(shown(false, 20, 1)) // stale, age 5
	for _, o := range []results.Outcome{
		{Record: "/r", Write: true, Sent: 30, Done: 40, Fate: results.Timeout},
		{Record: "/r", Write: true, Sent: 30, Done: 40, Fate: results.TransportError},
		{Record: "/r", Write: true, Sent: 30, Done: 40, Fate: results.InFlight},
		{Record: "/r", Write: true, Sent: 30, Done: 40, Fate: results.HTTPError, Status: 503},
		{Record: "/new", Write: true, Sent: 30, Done: 40, Fate: results.Timeout},
		// These ops changed nothing for certain, or say nothing about the record.
		{Record: "/r", Write: true, Sent: 30, Done: 40, Fate: results.HTTPError, Status: 409},
		{Record: "/r", Write: true, Sent: -1, Fate: results.Unsent},
		{Record: "/r", Write: true, Sent: -1, Fate: results.ConnectError},
		{Record: "/r", Sent: 30, Done: 40, Fate: results.Timeout},
		{Record: "/r", Sent: 30, Done: 40, Fate: results.HTTPError, Status: 503},
		{Record: "/r", Sent: 30, Done: 40, Status: 200}, // without a version
		{Sent: 30, Done: 40, Status: 200, Version: 99},  // a list
	} {
		op(o)
	}
	var stale []history.StaleRead
	keep := func(s history.StaleRead) { stale = append(stale, s) }
	if diff := cmp.Diff(results.Stale{Reads: 2, Stale: 1, RYWViolations: 1}, r.EndStep(1000, keep)); diff != "" {
		t.Errorf("first step (-want +got)\n%s", diff)
	}
	// The second step begins 1000 after the first. Its reads are judged by the writes of both.
	op(results.Outcome{Record: "/r", User: 3, Sent: 5, Done: 6, Status: 404, Fate: results.HTTPError})
	op(shown(true, 10, 4))
	op(shown(false, 20, 4))
	for _, version := range []int64{3, 4} { // reads that a cache answers
		o := shown(false, 30, version)
		o.Cached = true
		op(o)
	}
	second := results.Stale{Reads: 4, Stale: 2, RYWViolations: 2, Hits: 2, StaleHits: 1}
	if diff := cmp.Diff(second, r.EndStep(2000, keep)); diff != "" {
		t.Errorf("second step (-want +got)\n%s", diff)
	}
	want := []history.StaleRead{
		{AgeNS: 5, OwnWrite: true}, {AgeNS: 990, OwnWrite: true}, {AgeNS: 15, OwnWrite: true, Cached: true},
	}
	if diff := cmp.Diff(want, stale); diff != "" {
		t.Errorf("stale (-want +got)\n%s", diff)
	}
	written := []history.Written{
		{Record: "/new", Ambiguous: 1},
		{
			Record: "/r", Ambiguous: 4, Lowest: 1,
			Acks: []history.Ack{{Sent: 1010, Done: 1015, Version: 2}, {Sent: 2010, Done: 2015, Version: 4}},
		},
	}
	if diff := cmp.Diff(written, r.Written()); diff != "" {
		t.Errorf("written (-want +got)\n%s", diff)
	}
}

// A step of 30 s at 5,000 ops/s. Half of the ops are writes, a fifth of all ops is on one record,
// and most reads are stale.
func BenchmarkStep(b *testing.B) {
	random := rand.New(rand.NewPCG(1, 1))
	outcomes := make([]results.Outcome, 150_000)
	for i := range outcomes {
		o := &outcomes[i]
		*o = results.Outcome{
			Record: "/hot", Write: i%2 == 0, User: i % 256, Sent: int64(i) * 200_000, Status: 200,
			Version: int64(i/20) + 2,
		}
		if i%10 > 1 {
			o.Record = "/r/" + string(rune('a'+random.IntN(1000)))
		}
		if !o.Write {
			o.Version = max(1, o.Version-500)
		}
		o.Done = o.Sent + 1_000_000
	}
	b.ReportAllocs()
	for b.Loop() {
		r := history.New()
		for _, o := range outcomes {
			r.Record(o)
		}
		r.EndStep(0, func(history.StaleRead) {})
		history.Resolve(r.Written(), map[string]int64{})
	}
}
