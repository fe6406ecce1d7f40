package splice

import "fusilli/actors/flow"

// reclaimer is the flow.Reclaimer of a splicer.
type reclaimer struct{ *Splicer }

// EvictUnanswered implements flow.Reclaimer. Flows without an answer are idle like others.
func (s reclaimer) EvictUnanswered() bool { return false }

// LongestIdle implements flow.Reclaimer.
func (s reclaimer) LongestIdle() (last flow.Time, end func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var idlest *datagrams
	looks := 0
	for f := range s.idle {
		if used := flow.Time(f.used.Load()); idlest == nil || used < last {
			idlest, last = f, used
		}
		if looks++; looks == flow.MaxLooks {
			break
		}
	}
	if idlest == nil {
		return 0, nil
	}
	return last, func() { s.giveWay(idlest) }
}

// giveWay has f end, if it has not done so.
func (s *Splicer) giveWay(f *datagrams) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.idle[f]; !ok {
		return // and its watch may be another's
	}
	delete(s.idle, f)
	f.over.Store(true)
	f.w.ring()
	s.counters.Evicted.Hit(s.cfg.Log, "Too many flows, spliced ones of UDP that are idle for longest give way to others")
}

// mayGiveWay has f give way when others need the room, until keep.
func (s *Splicer) mayGiveWay(f *datagrams) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle[f] = struct{}{}
}

// keep takes f out of those again, before its watch is free.
func (s *Splicer) keep(f *datagrams) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.idle, f)
}
