package store

// Ticket orders a fetch and the purges: a response is stored only if no purge of it came after its ticket.
type Ticket struct{ purges uint64 }

// Begin returns a ticket for a fetch that is about to start. The caller must call End when it is over.
func (s *Store) Begin() Ticket {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fetches++
	return Ticket{s.purges}
}

// End ends a fetch.
func (s *Store) End(Ticket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fetches--
	if s.fetches == 0 {
		s.forget()
	}
}

// Current reports whether no purge of the key or the groups came after the ticket.
func (s *Store) Current(t Ticket, key string, groups []string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current(t, key, groups)
}

// current is Current. The caller holds the mutex.
func (s *Store) current(t Ticket, key string, groups []string) bool {
	switch {
	case t.purges == s.purges:
		return true
	case t.purges < s.floor, t.purges < s.purged["k"+key]:
		return false
	}
	for _, group := range groups {
		if t.purges < s.purged["g"+group] {
			return false
		}
	}
	return true
}

// Purge removes all entries with these keys and groups. It returns the number of removed entries.
func (s *Store) Purge(keys, groups []string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.purges++
	s.remember("k", keys)
	s.remember("g", groups)
	if s.fetches == 0 || len(s.purged) > maxPurges {
		s.forget()
	}
	removed := 0
	for _, key := range keys {
		for variants := s.resources[key]; len(variants) > 0; variants = s.resources[key] {
			s.remove(variants[0])
			removed++
		}
	}
	for _, group := range groups {
		for it := range s.groups[group] {
			s.remove(it)
			removed++
		}
	}
	s.counters.Purged += int64(removed)
	return removed
}

// remember notes a purge. The caller holds the mutex.
func (s *Store) remember(prefix string, names []string) {
	for _, name := range names {
		s.purged[prefix+name] = s.purges
	}
}

// forget frees the memory of purges. Every ticket from before the last purge is old from now on: a request may still
// hold the ticket of a fetch that is over. The caller holds the mutex.
func (s *Store) forget() {
	clear(s.purged)
	s.floor = s.purges
}
