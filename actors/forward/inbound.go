package forward

import (
	"net/netip"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/actors/rules"
)

// inbound is a UDP listener of the host that an actor of the guest's link serves: the flow.Listener
// of that.
type inbound struct {
	s    *side
	now  atomic.Pointer[listener] // another one when the rules change
	stop func()                   // side.mu guards it

	removed atomic.Bool // flows go on without it
	closed  atomic.Bool // nothing goes on

	route rules.Route // of from: of the actor, like all below
	from  flow.Sender
}

// lend has an actor of the guest's link serve l, which has something, until there is nothing for a
// while.
func (s *side) lend(l *listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.has(l) || l.inbound != nil {
		return
	}
	fd, err := unix.FcntlInt(uintptr(l.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		s.rest(l, err)
		return
	}
	in := &inbound{s: s}
	in.now.Store(l)
	l.inbound = in
	s.unwatch(l)
	if in.stop, err = s.f.cfg.Tap.ServeUDP(fd, in); err != nil {
		l.inbound = nil
		s.rest(l, err)
	}
}

// end has the actor, if there is one, end. With removed, its flows go on with sockets of their own.
// side.mu is held.
func (in *inbound) end(removed bool) {
	if in == nil {
		return
	}
	if removed {
		in.removed.Store(true)
	} else {
		in.closed.Store(true)
	}
	in.stop()
}

// Route implements flow.Listener.
func (in *inbound) Route(s *flow.Sender) (flow.Key, bool) {
	in.from, in.route = *s, rules.Route{}
	from := endpoint{s.Peer, s.Scope}
	if in.removed.Load() || in.closed.Load() || !from.unicast() {
		return flow.Key{}, false
	}
	in.route = in.s.f.route(in.s.which, in.now.Load(), s.Peer, s.At)
	if in.route.Place != rules.Tap {
		return flow.Key{}, false
	}
	return key(in.route, unix.IPPROTO_UDP), true
}

// Elsewhere implements flow.Listener.
func (in *inbound) Elsewhere(s *flow.Sender, data []byte) {
	if in.removed.Load() || in.closed.Load() {
		return
	}
	l := in.now.Load()
	in.s.udp.sort(l.gathering(), l, in.datagram(s, data), func(Side, *listener, netip.AddrPort, netip.Addr) rules.Route {
		return in.route // of s, which Route was asked for just now
	})
}

func (in *inbound) datagram(s *flow.Sender, data []byte) datagram {
	return datagram{flowKey: flowKey{endpoint{s.Peer, s.Scope}, s.At}, ifIndex: s.Iface, data: data}
}

// Drained implements flow.Listener.
func (in *inbound) Drained() {
	l := in.now.Load()
	in.s.udp.begin(l.gathering(), l)
}

// Removed implements flow.Listener.
func (in *inbound) Removed() bool { return in.removed.Load() }

// Connect implements flow.Listener.
func (in *inbound) Connect(s *flow.Sender) (int, error) {
	return in.s.udp.connected(in.now.Load(), in.datagram(s, nil))
}

// Ended implements flow.Listener.
func (in *inbound) Ended(works bool) {
	s := in.s
	s.mu.Lock()
	defer s.mu.Unlock()
	l := in.now.Load()
	if !s.has(l) {
		return
	}
	l.inbound = nil
	if !works {
		s.rest(l, unix.ENOBUFS)
		return
	}
	s.watch(l)
}
