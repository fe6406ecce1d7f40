package actors

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"fusilli/actors/rules"
	"fusilli/tapio/frame"
)

// guestAddr is where the guest is: the addresses that what the host opens to the guest goes to. A
// guest may give itself other ones than it was assigned, and is followed, but not by the word of a
// frame: anything in the guest that may send raw frames could move all forwarded ports then.
//
// The source of a frame is a candidate. In a namespace the kernel says which addresses the link's
// interface has (Engine.GuestInterface), and no others are believed. For other guests, and for
// stations behind a bridge in a namespace, candidates are asked for on the link; see verifier.
//
// The reader notes candidates; anything may ask.
type guestAddr struct {
	// Set before the first note.
	frozen [kinds]bool
	never  map[frame.Addr]bool // addresses of ours on the link
	ours   frame.MAC
	setMAC func(frame.MAC) bool
	log    *zap.Logger

	current atomic.Pointer[current]
	turn    atomic.Uint32 // changes when a candidate that was turned down may be noted again

	mu        sync.Mutex
	guest     [kinds]frame.Addr // the zero Addr is none
	mac       frame.MAC         // broadcast: not known
	assigned6 netip.Addr
	iface     *guestInterface
	last      [kinds]station // candidates that were not believed
	verifier  verifier
	macTold   time.Time
}

// The guest has one address of each of these.
const (
	kind4 = iota
	kind6
	kindLocal
	kinds
)

func kindOf(a *frame.Addr) int {
	switch {
	case frame.Is4(a):
		return kind4
	case frame.IsLinkLocal(a):
		return kindLocal
	}
	return kind6
}

// station is an IP address and the Ethernet address that it is used with.
type station struct {
	addr frame.Addr
	mac  frame.MAC
}

// current is what frames usually come from.
type current struct {
	guest [kinds]frame.Addr
	mac   frame.MAC
}

// begin fills s, which is zero. setMAC is called with the guest's Ethernet address when that is
// another one, and reports whether it is.
func (s *guestAddr) begin(cfg *Config, setMAC func(frame.MAC) bool) {
	s.never, s.ours, s.mac, s.log, s.setMAC = make(map[frame.Addr]bool), cfg.OurMAC, cfg.GuestMAC, cfg.Log, setMAC
	s.guest = [...]frame.Addr{frame.AddrOf(cfg.Guest.V4), frame.AddrOf(cfg.Guest.V6), frame.AddrOf(cfg.Guest.LinkLocal)}
	s.frozen = [...]bool{cfg.Frozen4, cfg.Frozen6, false}
	s.assigned6 = cfg.Rules.Assigned6
	s.verifier.ringing = make(chan struct{}, 1)
	if s.mac == (frame.MAC{}) {
		s.mac = frame.Broadcast
	}
	r := &cfg.Rules
	for _, a := range []netip.Addr{
		r.OurTap4, r.OurLinkLocal, r.HostLoopback4, r.HostLoopback6, r.HostGuest4, r.HostGuest6,
		r.DNSMatch4, r.DNSMatch6, r.Echo4, r.Echo6, frame.NetIP(cfg.Neigh.LinkLocal), frame.NetIP(cfg.Neigh.Our4),
	} {
		s.never[frame.AddrOf(a)] = true // the unspecified one too
	}
	s.publish()
}

// publish is to be called when guest or mac has changed. mu is held, but by begin.
func (s *guestAddr) publish() { s.current.Store(&current{s.guest, s.mac}) }

// note notes that a packet of the guest's has come from src and mac. It need not be called again
// for the same before turn has changed.
func (s *guestAddr) note(src *frame.Addr, mac frame.MAC) {
	k := kindOf(src)
	if c := s.current.Load(); c.guest[k] == *src && c.mac == mac {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noteMAC(mac)
	if !frame.IsUnspecified(src) && !frame.IsLoopback(src) && !frame.IsMulticast(src) && s.usable(mac) {
		s.consider(k, station{*src, mac})
	}
}

// noteMAC takes the first Ethernet address that a guest is seen with for its own.
func (s *guestAddr) noteMAC(mac frame.MAC) {
	if s.mac == frame.Broadcast && s.usable(mac) {
		s.moveMAC(mac)
	}
}

// usable reports whether a station of the guest's may have the address mac.
func (s *guestAddr) usable(mac frame.MAC) bool {
	return mac[0]&1 == 0 && mac != s.ours && mac != frame.MAC{}
}

// consider decides what becomes of a candidate.
func (s *guestAddr) consider(k int, c station) {
	here := s.guest[k]
	moved := here != c.addr
	if s.never[c.addr] || moved && s.frozen[k] {
		return
	}
	if s.iface != nil {
		is, was := s.iface.ranks[c.addr], s.iface.ranks[here]
		if s.standsIn(k) {
			was = min(was, elsewhere)
		}
		switch {
		case is > 0 && is >= was:
			s.move(k, c.addr)
			return
		case was > 0:
			s.last[k] = c // perhaps the kernel's word is on its way
			return
		}
	}
	switch {
	case !moved && c.mac == s.mac:
	case here == (frame.Addr{}) && s.iface == nil:
		s.move(k, c.addr) // the first one
	default:
		s.verifier.candidate(k, c)
	}
}

// move makes a the guest's address.
func (s *guestAddr) move(k int, a frame.Addr) {
	if s.guest[k] == a {
		return
	}
	s.guest[k] = a
	if k == kindLocal {
		if !s.assigned6.IsValid() {
			s.assigned6 = frame.NetIP(a)
		}
		if s.standsIn(kind6) && !s.frozen[kind6] {
			s.guest[kind6] = a
		}
	}
	s.publish()
	s.log.Debug("The guest's address", zap.Stringer("guest", frame.NetIP(a)))
}

// standsIn reports whether there is no address of k: for a global one, the link-local one may stand
// in.
func (s *guestAddr) standsIn(k int) bool {
	return s.guest[k] == (frame.Addr{}) || k == kind6 && frame.IsLinkLocal(&s.guest[k])
}

// moveMAC makes mac the guest's Ethernet address.
func (s *guestAddr) moveMAC(mac frame.MAC) {
	if s.mac == mac {
		return
	}
	s.mac = mac
	s.publish()
	if !s.setMAC(mac) {
		return
	}
	// but not each if it changes all the time
	if now := time.Now(); now.Sub(s.macTold) > time.Second {
		s.macTold = now
		s.log.Info("New guest MAC address observed: " + net.HardwareAddr(mac[:]).String())
	}
}

// told6 notes that the guest with the address mac was told which IPv6 address is its own. It will
// be there once it has found that no other station has it.
func (s *guestAddr) told6(mac frame.MAC) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := frame.AddrOf(s.assigned6)
	if a != (frame.Addr{}) && s.guest[kind6] != a && s.iface == nil && !s.frozen[kind6] && !frame.IsLinkLocal(&a) && s.usable(mac) {
		s.verifier.expect(station{a, mac}, time.Now())
	}
}

// reconnected notes that another guest may be there: its Ethernet address is not known.
func (s *guestAddr) reconnected() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.iface == nil {
		s.mac = frame.Broadcast // frames go to the old one until then
		s.publish()
		s.turn.Add(1)
	}
}

// guestInterface is what a guest's kernel says.
type guestInterface struct {
	ranks map[frame.Addr]uint8
	first [kinds]frame.Addr // the best of each
}

// Ranks of addresses.
const (
	elsewhere = 1 // of another interface
	onLink    = 2
)

// Interface is what the kernel of a guest says about its end of the link.
type Interface struct {
	MAC frame.MAC
	// Addrs are the addresses of the interface, or of the bridge that it is a port of, the best
	// first, and Others those of other interfaces of the guest's. Loopback addresses are not among
	// them.
	Addrs, Others []netip.Addr
}

// GuestInterface says what the guest's kernel says, each time that it changes; nil: the kernel says
// nothing any more. One goroutine may call it, at any time from New on.
func (e *Engine) GuestInterface(i *Interface) {
	s := &e.guestAddr
	if i == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.iface = nil
		return
	}
	n := &guestInterface{ranks: make(map[frame.Addr]uint8, len(i.Addrs)+len(i.Others))}
	for rank, list := range [][]netip.Addr{elsewhere: i.Others, onLink: i.Addrs} {
		for _, a := range list {
			k := frame.AddrOf(a.Unmap().WithZone(""))
			if s.never[k] || frame.IsLoopback(&k) || frame.IsMulticast(&k) {
				continue
			}
			n.ranks[k] = uint8(rank)
			if f := kindOf(&k); rank == onLink && n.first[f] == (frame.Addr{}) {
				n.first[f] = k
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.iface = n
	s.turn.Add(1)
	if s.usable(i.MAC) {
		s.moveMAC(i.MAC)
	}
	for _, k := range [...]int{kindLocal, kind4, kind6} {
		if s.frozen[k] {
			continue
		}
		was, last := n.ranks[s.guest[k]], n.ranks[s.last[k].addr]
		if s.standsIn(k) {
			was = 0
		}
		switch {
		case last > 0 && last >= was:
			s.move(k, s.last[k].addr)
		case was == 0 && n.first[k] != (frame.Addr{}):
			s.move(k, n.first[k])
		}
		s.last[k] = station{}
	}
}

// Guest returns where the guest is: at first what Config says.
func (e *Engine) Guest() rules.Guest {
	c := e.guestAddr.current.Load()
	addr := func(k int) (a netip.Addr) {
		if c.guest[k] != (frame.Addr{}) {
			a = frame.NetIP(c.guest[k])
		}
		return a
	}
	return rules.Guest{V4: addr(kind4), V6: addr(kind6), LinkLocal: addr(kindLocal)}
}

// Rules returns the address rules: those of Config, and where no template gave the guest an IPv6
// address, the first link-local one of the guest's as that assigned to it.
func (e *Engine) Rules() rules.Rules {
	r := e.cfg.Rules
	e.guestAddr.mu.Lock()
	defer e.guestAddr.mu.Unlock()
	r.Assigned6 = e.guestAddr.assigned6
	return r
}

// present is Env.Present.
func (e *Engine) present(a netip.Addr) (netip.Addr, bool) {
	r := e.Rules()
	return r.In(a, e.Guest())
}
