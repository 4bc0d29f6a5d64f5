package local

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/shard"
	"github.com/stagebench/stagebench/targets"
)

const (
	// collectBound is how long a database may take to read an old copy. A native one starts a server on it.
	collectBound = time.Minute
	// After a failed attempt to collect losses, the next one waits, for longer after each failure.
	shortestRetry, longestRetry = time.Second, 30 * time.Second
)

// losses is the ledger of the acknowledged writes that the system lost. A database keeps an old copy until the ledger
// has its loss. So no loss is forgotten when the node dies, or when the next failover comes before the collection.
type losses struct {
	kept       chan struct{} // has a value after a database has reported old copies; capacity 1
	collecting chan struct{} // has a value during a collection, which would remove the copies of another; capacity 1
	replaying  sync.Mutex    // held during a replay

	// mu guards the fields below.
	mu     sync.Mutex
	all    []sut.Lost            // in order of collection
	listed map[lostRow]bool      // the rows of all
	unread map[string][]sut.Lost // by node: the copies that it keeps and could not read
	sent   map[string]int        // by node and copy: number of changes that were replayed
}

// lostRow identifies a lost change. Two copies may have the same one: a primary, and a replica that was ahead of the
// promoted one. Two shards number their commits independently.
type lostRow struct {
	shard              int
	commit, table, key string
	op                 sut.Change
}

func newLosses() *losses {
	return &losses{
		kept: make(chan struct{}, 1), collecting: make(chan struct{}, 1), all: []sut.Lost{}, listed: map[lostRow]bool{},
		unread: map[string][]sut.Lost{}, sent: map[string]int{},
	}
}

// add adds a loss without the changes that are in the ledger already. It adds nothing if the loss is in the ledger, or
// if nothing was lost.
func (l *losses) add(lost sut.Lost) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if slices.ContainsFunc(l.all, lost.Same) {
		return
	}
	known, more := map[string]bool{}, map[string]bool{} // commits
	lost.Changes = slices.DeleteFunc(slices.Clone(lost.Changes), func(c sut.LostChange) bool {
		row := lostRow{lost.Shard, c.Commit, c.Table, c.Key, c.Op}
		if l.listed[row] {
			known[c.Commit] = true
			return true
		}
		l.listed[row], more[c.Commit] = true, true
		return false
	})
	for commit := range known {
		if !more[commit] {
			lost.Commits--
		}
	}
	if lost.Unknown || lost.Commits > 0 {
		l.all = append(l.all, lost)
	}
}

// keep replaces the list of the copies of a node that it could not read.
func (l *losses) keep(node string, unread []sut.Lost) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unread[node] = unread
}

// list returns all losses.
func (l *losses) list() []sut.Lost {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.all)
}

// keeps returns the copies of a node that it could not read.
func (l *losses) keeps(node string) []sut.Lost {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.unread[node]
}

// left returns the changes of a loss that were not replayed yet.
func (l *losses) left(lost sut.Lost) []sut.LostChange {
	l.mu.Lock()
	defer l.mu.Unlock()
	return lost.Changes[l.sent[lost.Node+"/"+lost.Copy]:]
}

// replayed records that more changes of a loss were replayed.
func (l *losses) replayed(lost sut.Lost, more int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	name := lost.Node + "/" + lost.Copy
	l.sent[name] += more
	for i := range l.all {
		l.all[i].Replayed = l.all[i].Replayed || lost.Same(l.all[i]) && l.sent[name] == len(lost.Changes)
	}
}

// noticeKept wakes the goroutine of collectLosses.
func (s *System) noticeKept() {
	select {
	case s.losses.kept <- struct{}{}:
	default: // it will look anyway
	}
}

// collectLosses collects the losses of old copies as soon as their nodes serve the present data, until the life of the
// system ends.
func (s *System) collectLosses() {
	retry := shortestRetry
	for {
		select {
		case <-s.losses.kept:
		case <-s.life.Done():
			return
		}
		left := false
		for _, n := range s.keepers() {
			left = s.collect(s.life, n) != nil || len(s.losses.keeps(n.Name)) > 0 || left
		}
		if !left {
			retry = shortestRetry
			continue
		}
		select {
		case <-time.After(retry):
		case <-s.life.Done():
		}
		retry = min(2*retry, longestRetry)
	}
}

// keepers lists the databases that keep old copies and hold the present data. The loss of an old copy is what the
// present one lacks.
func (s *System) keepers() (keepers []*node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nodes {
		if status, known := s.setOf(n).last(n.Name); known && len(status.Kept) > 0 && s.holdsPresent(n) {
			keepers = append(keepers, n)
		}
	}
	return keepers
}

// holdsPresent reports whether a database is the primary of its set, or a replica that has caught up with it since the
// last failover. The caller holds mu.
func (s *System) holdsPresent(n *node) bool {
	if n.state != targets.Serving {
		return false
	}
	set := s.setOf(n)
	status, known := set.last(n.Name)
	back := !slices.ContainsFunc(set.failovers(), func(f targets.Failover) bool {
		return f.From == n.Name && f.ReplaceNS == 0
	})
	return known && status.Serves &&
		(n.Name == set.roles.Primary || back && status.Connected && status.Following == set.roles.Primary)
}

// mayHoldLosses reports whether the data of a database, or its old copies, may be all that is left of acknowledged
// writes. A database that was never probed is new. The caller holds mu.
func (s *System) mayHoldLosses(n *node) bool {
	_, known := s.setOf(n).last(n.Name)
	return n.state != targets.Serving || known && !s.holdsPresent(n)
}

// collect adds the losses of a database to the ledger, copy by copy, and lets the database remove each copy that it has
// read. It waits for a collection that is under way.
func (s *System) collect(ctx context.Context, n *node) error {
	select {
	case s.losses.collecting <- struct{}{}:
		defer func() { <-s.losses.collecting }()
	case <-ctx.Done():
		return ctx.Err()
	}
	status, err := s.probe(ctx, n.Name)
	if err != nil {
		return err
	}
	var unread []sut.Lost
	for _, old := range status.Kept {
		lost, err := s.collectCopy(ctx, n, old)
		if err != nil {
			return err
		}
		if lost.Unread {
			unread = append(unread, lost)
		}
	}
	s.losses.keep(n.Name, unread)
	return nil
}

// collectCopy adds the loss of an old copy to the ledger, and then lets the database remove the copy. It changes
// nothing if the copy could not be read.
func (s *System) collectCopy(ctx context.Context, n *node, old string) (lost sut.Lost, err error) {
	ctx, cancel := context.WithTimeout(ctx, collectBound)
	defer cancel()
	path := sut.LostPath + "?copy=" + url.QueryEscape(old)
	err = s.call(ctx, n.Name, request{method: http.MethodGet, path: path, answer: &lost})
	lost.Shard = n.Shard
	if err != nil || lost.Unread {
		return lost, err
	}
	s.losses.add(lost)
	return lost, s.call(ctx, n.Name, request{method: http.MethodDelete, path: path})
}

// collectLast collects the losses of a database that will be removed with its old copies. If that is not possible, the
// ledger says so.
func (s *System) collectLast(ctx context.Context, n *node) {
	err := s.collect(ctx, n)
	s.mu.Lock()
	status, _ := s.setOf(n).last(n.Name)
	s.mu.Unlock()
	replaced := slices.ContainsFunc(s.Failovers(), func(f targets.Failover) bool {
		return f.From == n.Name && f.ReplaceNS == 0
	})
	if len(s.losses.keeps(n.Name)) == 0 && (err == nil || len(status.Kept) == 0 && !replaced) {
		return
	}
	reason := "it was removed before its lost writes were collected"
	for _, unread := range s.losses.keeps(n.Name) {
		reason += ": " + unread.Partial
	}
	if err != nil {
		reason += ": " + err.Error()
	}
	s.losses.keep(n.Name, nil)
	s.losses.add(unknownLoss(n, reason))
}

// unknownLoss is a loss whose size nobody will ever know.
func unknownLoss(n *node, reason string) sut.Lost {
	return sut.Lost{
		Node: n.Name, Shard: n.Shard, Copy: "unknown-" + strconv.FormatInt(time.Now().UnixNano(), 10),
		Changes: []sut.LostChange{}, Unknown: true, Partial: reason,
	}
}

// writesBack reports whether a node acknowledges writes that only its memory has.
func (s *System) writesBack(n *node) bool {
	return n.Role == sut.Cache && ladder.CacheOf(s.opts.Topology.Knobs).WritesBack()
}

// Losses returns the acknowledged writes that the system lost, as far as they are collected.
func (s *System) Losses() []sut.Lost { return s.losses.list() }

// Recover reports the failovers and the acknowledged writes that the system lost, each once: changes that an old copy
// of a database had and the new primary never received, and what died with the memory of a write-back cache. With
// replay, it replays each loss once, in order of epochs, at the current primary.
func (s *System) Recover(ctx context.Context, replay bool) (targets.Recovery, error) {
	recovery := targets.Recovery{Failovers: s.Failovers()}
	_, nodes := s.members()
	if len(s.sets()) == 0 && !slices.ContainsFunc(nodes, s.writesBack) {
		return recovery, fmt.Errorf("stage %s has no database replicas and no write-back cache, so it loses no "+
			"acknowledged writes", s.Topology().Stage)
	}
	var pending []sut.Lost
	for _, n := range nodes {
		s.mu.Lock()
		set := s.setOf(n)
		multiPrimary, ready := set != nil && set.roles.Primary == "", s.holdsPresent(n)
		status, _ := set.last(n.Name)
		s.mu.Unlock()
		if set == nil { // it is no database, or its shard has left
			continue
		}
		if multiPrimary {
			recovery.Discarded = append(recovery.Discarded, targets.Discarded{Node: n.Name, Discarded: status.Discarded})
			continue
		}
		unknown := sut.Lost{Node: n.Name, Shard: n.Shard, Changes: []sut.LostChange{}, Unknown: true, Unread: true}
		if !ready {
			unknown.Partial = "it does not serve the present data yet, so its lost writes are unknown: try again later"
			pending = append(pending, unknown)
		} else if err := s.collect(ctx, n); err != nil {
			unknown.Partial = "its lost writes are unknown: " + err.Error()
			pending = append(pending, unknown)
		} else {
			pending = append(pending, s.losses.keeps(n.Name)...)
		}
	}
	recovery.Lost = append(s.losses.list(), pending...)
	if replay {
		recovery.Replayed = s.replay(ctx)
	}
	return recovery, nil
}

// replayBatch is the number of changes in one request. A node accepts requests of at most 1 MiB.
const replayBatch = 100

// replay replays each loss of the ledger that was not replayed yet, in order of epochs.
func (s *System) replay(ctx context.Context) []targets.Replayed {
	s.losses.replaying.Lock()
	defer s.losses.replaying.Unlock()
	all := []targets.Replayed{}
	ordered := s.losses.list()
	slices.SortStableFunc(ordered, func(a, b sut.Lost) int { return cmp.Compare(a.Epoch, b.Epoch) })
	for _, lost := range ordered {
		if left := s.losses.left(lost); len(left) > 0 {
			all = append(all, targets.Replayed{Node: lost.Node, Epoch: lost.Epoch, Replayed: s.replayLoss(ctx, lost, left)})
		}
	}
	return all
}

// replayLoss replays changes of a loss at the primary of their shard, in their order, until one request fails.
func (s *System) replayLoss(ctx context.Context, lost sut.Lost, changes []sut.LostChange) sut.Replayed {
	sum := sut.Replayed{Done: map[string]int{}, Refused: []string{}}
	for batch := range slices.Chunk(changes, replayBatch) {
		primary, err := s.primaryOf(lost.Shard)
		if err != nil {
			sum.Refused = append(sum.Refused, err.Error())
			break
		}
		s.mu.Lock()
		order := sut.Replay{
			Databases: s.allDatabases(), Changes: shard.WithoutMoves(batch, lost.Changes),
			PushBelow: ladder.ShardOf(s.opts.Topology.Knobs).Pushing(),
		}
		s.mu.Unlock()
		var done sut.Replayed
		post := request{method: http.MethodPost, path: sut.LostPath, document: order, answer: &done}
		if err := s.call(ctx, primary.Node, post); err != nil {
			sum.Refused = append(sum.Refused, err.Error())
			break
		}
		s.losses.replayed(lost, len(batch))
		for op, times := range done.Done {
			sum.Done[op] += times
		}
		sum.AlreadyPresent += done.AlreadyPresent
		sum.Refused = append(sum.Refused, done.Refused...)
	}
	return sum
}

// primaryOf returns the primary of a shard, or of a database that is not sharded.
func (s *System) primaryOf(shard int) (sut.Peer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if set := setIn(s.replicaSets, shard); set != nil {
		return s.peers([]string{set.roles.Primary})[0], nil
	}
	return sut.Peer{}, fmt.Errorf("shard %d was removed, and others have its rows now", shard)
}
