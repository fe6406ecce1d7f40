package actors

import (
	"context"
	"sync/atomic"
	"time"

	"fusilli/actors/neigh"
	"fusilli/tapio/frame"
)

// Verification, in its order: the guest's address is asked for where it is known to be; then it and
// the candidate are asked for twice, on the whole link. The guest's address stays if it has
// answered; if only the candidate has, that is the new one. The times add up to less than a second,
// in which a guest is to be followed.
const (
	firstWait      = 60 * time.Millisecond  // for the guest's address alone
	secondWait     = 80 * time.Millisecond  // until both are asked for again
	thirdWait      = 160 * time.Millisecond // until that is all
	verifyInterval = 400 * time.Millisecond // from one beginning to the next, of one family
	// for which an address that was assigned by DHCPv6 is asked for
	expectTime = 5 * time.Second
)

// verifier asks on the link whether a candidate is where the guest is. Whatever a guest sends,
// there is one candidate at a time for each family, and one that waits: the latest. It is part of
// seen, whose mu guards it.
//
// Answers count if they are unicast to us, and come from the Ethernet address that they tell of. A
// program in the guest can give them too, but cannot keep the guest's kernel from answering for its
// own address.
type verifier struct {
	asked   [kinds]inquiry
	ringing chan struct{} // something has begun
	asking  atomic.Int32  // number of those under way
}

// inquiry is what is found out about one family's candidate.
type inquiry struct {
	waiting station // the next candidate; without an address there is none
	again   station // one that is asked for again, until then
	until   time.Time
	after   time.Time // when the next may begin

	round int // 0: nothing is under way
	due   time.Time
	old   station
	new   station
	found bool      // new has answered
	moved frame.MAC // from which old's address was answered for, if not from old's
}

func (v *verifier) ring() {
	select {
	case v.ringing <- struct{}{}:
	default:
	}
}

// candidate has c be asked for, when it is its turn.
func (v *verifier) candidate(k int, c station) {
	q := &v.asked[k]
	if q.round > 0 && q.new == c {
		return
	}
	known := q.round > 0 || q.waiting != station{}
	q.waiting = c
	if !known {
		v.ring()
	}
}

// expect has the global IPv6 address of c be asked for again and again for a time.
func (v *verifier) expect(c station, now time.Time) {
	q := &v.asked[kind6]
	q.again, q.until = c, now.Add(expectTime)
	v.ring()
}

// question is what is asked on the link: for of, at the Ethernet address to.
type question struct {
	of   frame.Addr
	to   frame.MAC
	kind int
	new  bool // of is a candidate's
}

// next does what is due, and returns what to ask, and when to come back; 0 for when there is
// something new.
func (s *guestAddr) next(now time.Time, ask []question) ([]question, time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var wait time.Duration
	for k := range s.verifier.asked {
		q := &s.verifier.asked[k]
		ask = s.step(k, q, now, ask)
		due := q.due
		switch {
		case q.round > 0:
		case q.waiting != station{} || q.again != station{}:
			due = q.after
		default:
			continue
		}
		if d := max(due.Sub(now), time.Millisecond); wait == 0 || d < wait {
			wait = d
		}
	}
	return ask, wait
}

// step takes q one step on, if it is due.
func (s *guestAddr) step(k int, q *inquiry, now time.Time, ask []question) []question {
	if q.round == 0 {
		if q.again != (station{}) && (now.After(q.until) || s.guest[k] == q.again.addr) {
			q.again = station{}
		}
		c := q.waiting
		if c == (station{}) {
			c = q.again
		}
		if c == (station{}) || now.Before(q.after) {
			return ask
		}
		*q = inquiry{again: q.again, until: q.until, after: now.Add(verifyInterval), old: station{s.guest[k], s.mac}, new: c}
		if c == q.old {
			return ask // by now
		}
		s.verifier.asking.Add(1)
		q.due = now
	}
	if now.Before(q.due) {
		return ask
	}
	if s.standsIn(k) && q.found {
		q.round = 3
	}
	q.round++
	switch q.round {
	case 1:
		q.due = now.Add(firstWait)
		if !s.standsIn(k) && q.old.mac != frame.Broadcast {
			return append(ask, question{q.old.addr, q.old.mac, k, false})
		}
		q.due = now
		return s.step(k, q, now, ask)
	case 2:
		q.due = now.Add(secondWait)
	case 3:
		q.due = now.Add(thirdWait)
	default:
		s.conclude(k, q)
		return ask
	}
	if !s.standsIn(k) {
		ask = append(ask, question{q.old.addr, frame.Broadcast, k, false})
	}
	if q.new.addr != q.old.addr {
		ask = append(ask, question{q.new.addr, q.new.mac, k, true})
	}
	return ask
}

// conclude ends q, for which the guest's address has not answered.
func (s *guestAddr) conclude(k int, q *inquiry) {
	s.end(q)
	switch {
	case s.guest[k] != q.old.addr:
		// The kernel has said something meanwhile.
	case q.new.addr == q.old.addr:
		if q.found {
			s.moveMAC(q.new.mac)
		}
	case q.moved != frame.MAC{}:
		s.moveMAC(q.moved) // it has its address, at another Ethernet address
	case q.found:
		s.move(k, q.new.addr)
		s.moveMAC(q.new.mac)
	}
}

// end ends what is under way.
func (s *guestAddr) end(q *inquiry) {
	q.round = 0
	s.turn.Add(1)
	s.verifier.asking.Add(-1)
	s.verifier.ring() // perhaps another one waits
}

// answered notes that the station mac says that it has the address a.
func (s *guestAddr) answered(a *frame.Addr, mac frame.MAC) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.usable(mac) {
		return
	}
	for k := range s.verifier.asked {
		q := &s.verifier.asked[k]
		if q.round == 0 {
			continue
		}
		if q.old == (station{*a, mac}) && !s.standsIn(k) {
			s.end(q)
			continue
		}
		if *a == q.old.addr {
			q.moved = mac
		}
		if q.new == (station{*a, mac}) {
			q.found = true
			if s.standsIn(k) {
				q.due = time.Time{}
				s.verifier.ring()
			}
		}
	}
}

// verify is the goroutine that asks.
func (e *Engine) verify(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var ask []question
	for {
		var wait time.Duration
		ask, wait = e.guestAddr.next(time.Now(), ask[:0])
		e.ask(ask)
		var due <-chan time.Time
		if wait > 0 {
			timer.Reset(wait)
			due = timer.C
		}
		select {
		case <-ctx.Done():
			return
		case <-e.guestAddr.verifier.ringing:
		case <-due:
		}
	}
}

func (e *Engine) ask(list []question) {
	if len(list) == 0 {
		return
	}
	buf := e.env.Buffer()
	defer e.env.PutBuffer(buf)
	for i := range list {
		q := &list[i]
		if q.new && e.cfg.HostHas != nil && e.cfg.HostHas(frame.NetIP(q.of)) {
			e.guestAddr.refuse(q.kind, &q.of)
			continue
		}
		e.send(buf[:e.cfg.Neigh.Probe(&q.of, q.to, buf[:])])
	}
}

// refuse ends what is found out about the candidate a, which the host has.
func (s *guestAddr) refuse(k int, a *frame.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if q := &s.verifier.asked[k]; q.round > 0 && q.new.addr == *a {
		s.end(q)
	}
}

// listen looks at what the guest says about its neighbours, which the frame b, parsed as pkt, is
// about.
func (s *guestAddr) listen(b []byte, pkt *frame.Packet) {
	if s.verifier.asking.Load() == 0 {
		return
	}
	if a, mac, ok := neigh.Answer(b, pkt, s.ours); ok {
		s.answered(&a, mac)
	}
}
