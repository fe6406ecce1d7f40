package actors

import (
	"net/netip"
	"sync"

	"fusilli/actors/rules"
	"fusilli/tapio/frame"
)

// seen is where the guest was last seen: the source addresses of its packets. What the host opens
// to the guest goes there, so that a guest is reached that has given itself another address than it
// was assigned.
//
// The reader notes; anyone may ask.
type seen struct {
	frozen4, frozen6 bool // set before the first note

	mu        sync.Mutex
	guest     rules.Guest
	assigned6 netip.Addr
}

// note notes that the guest has sent a packet from src, which is no loopback or multicast address.
// It is called when src is not the source of the packet before.
func (s *seen) note(src *frame.Addr) {
	if frame.IsUnspecified(src) {
		return
	}
	a := frame.NetIP(*src)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case a.Is4():
		if !s.frozen4 {
			s.guest.V4 = a
		}
		return
	case frame.IsLinkLocal(src):
		s.guest.LinkLocal = a
		if !s.assigned6.IsValid() {
			s.assigned6 = a
		}
		if s.guest.V6.IsValid() {
			return
		}
	}
	if !s.frozen6 {
		s.guest.V6 = a
	}
}

// told6 notes that the guest was told which IPv6 address is its own.
func (s *seen) told6() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.assigned6.IsValid() && !s.frozen6 {
		s.guest.V6 = s.assigned6
	}
}

// Guest returns where the guest was last seen: at first what Config says.
func (e *Engine) Guest() rules.Guest {
	e.seen.mu.Lock()
	defer e.seen.mu.Unlock()
	return e.seen.guest
}

// Rules returns the address rules: those of Config, and where no template gave the guest an IPv6
// address, the first link-local one it was seen with as that assigned to it.
func (e *Engine) Rules() rules.Rules {
	r := e.cfg.Rules
	e.seen.mu.Lock()
	defer e.seen.mu.Unlock()
	r.Assigned6 = e.seen.assigned6
	return r
}

// present is Env.Present.
func (e *Engine) present(a netip.Addr) (netip.Addr, bool) {
	r := e.Rules()
	return r.In(a, e.Guest())
}
