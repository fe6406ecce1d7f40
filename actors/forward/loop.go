package forward

import (
	"fmt"
	"net/netip"

	"fusilli/actors/rules"
	"fusilli/autodetect/ports"
	"fusilli/config"
)

// With Policy.KeepLoopback a connection to the host's loopback goes to the namespace's, and one
// there that is forwarded outwards goes to the host's: rules of both directions may lead in a
// circle, and one connection would make others until descriptors run out. Rules that do so are
// refused. Where it depends on which ports could be had, or on what a scan has found, the circles
// are looked for among the listeners there are, and what arrives at one of their ports is refused.

// circles is the ports that lead back to themselves, for an address: by side and protocol.
type circles map[netip.Addr]*[2][2]ports.Set

var (
	home4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	// stands for those of 127/8 that no rule names
	other4 = netip.AddrFrom4([4]byte{127, 255, 255, 255})
)

// has reports whether a flow from loopback to port at is on a circle.
func (c circles) has(which Side, proto config.Protocol, at netip.Addr, port uint16) bool {
	on := c[at]
	if on == nil && at.Is4() && at.IsLoopback() {
		on = c[other4]
	}
	return on != nil && on[which][proto].Has(port)
}

// open is the ports that rule i of a direction listens on.
type open func(dir config.Direction, i int) *ports.Set

// findCircles returns the circles that lists lead in, nil if there are none.
func findCircles(lists [2][]config.Rule, open open) circles {
	if len(lists[config.Inbound]) == 0 || len(lists[config.Outbound]) == 0 {
		return nil
	}
	addrs := map[netip.Addr]bool{home4: true, other4: true, netip.IPv6Loopback(): true}
	for _, list := range lists {
		for _, r := range list {
			if r.Listen.IsLoopback() {
				addrs[r.Listen] = true
			}
		}
	}
	var found circles
	for a := range addrs {
		for _, proto := range []config.Protocol{config.TCP, config.UDP} {
			if on, ok := circlesAt(lists, open, a, proto); ok {
				if found == nil {
					found = make(circles)
				}
				if found[a] == nil {
					found[a] = new([2][2]ports.Set)
				}
				found[a][Host][proto], found[a][Namespace][proto] = on[Host], on[Namespace]
			}
		}
	}
	return found
}

// circlesAt is findCircles for one address and protocol.
func circlesAt(lists [2][]config.Rule, open open, a netip.Addr, proto config.Protocol) (on [2]ports.Set, any bool) {
	var next [2][]uint16 // by direction and port: where that leads; 0: nowhere
	for dir, list := range lists {
		for i := range list {
			r := &list[i]
			if r.Protocol != proto || r.Target.IsValid() || r.IfName != "" && r.IfName != "lo" || !listensAt(r.Listen, a) {
				continue
			}
			if next[dir] == nil {
				next[dir] = make([]uint16, 1<<16)
			}
			set := open(config.Direction(dir), i)
			for p := int(r.Ports.First); p <= int(r.Ports.Last); p++ {
				if set.Has(uint16(p)) {
					next[dir][p] = r.To + uint16(p) - r.Ports.First
				}
			}
		}
		if next[dir] == nil {
			return on, false
		}
	}
	// Each port leads to one at most, so that a walk ends, or comes to where it was before.
	const fresh, here, done = 0, 1, 2
	state := make([]uint8, 1<<16) // of the host's ports
	for first := range state {
		p := uint16(first)
		for state[p] == fresh && p != 0 {
			state[p] = here
			p = follow(next, p)
		}
		if state[p] == here && p != 0 {
			any = true
			for q := p; !on[Host].Has(q); q = follow(next, q) {
				on[Host].Add(q)
				on[Namespace].Add(next[config.Inbound][q])
			}
		}
		for p = uint16(first); state[p] == here; p = follow(next, p) {
			state[p] = done
		}
	}
	return on, any
}

// follow returns the port of the host that one of the host leads to by way of the namespace, 0 if
// to none.
func follow(next [2][]uint16, p uint16) uint16 {
	q := next[config.Inbound][p]
	if q == 0 {
		return 0
	}
	return next[config.Outbound][q]
}

func listensAt(listen, a netip.Addr) bool {
	return !listen.IsValid() || listen == a || listen.IsUnspecified() && listen.Is4() == a.Is4()
}

// refuseCircles returns an error if lists lead in a circle whichever ports a scan finds.
func (f *Forwarder) refuseCircles(lists [2][]config.Rule) error {
	if !f.cfg.Policy.KeepLoopback || f.cfg.Splice == nil {
		return nil
	}
	wants := func(dir config.Direction, i int) *ports.Set {
		var set ports.Set
		if r := lists[dir][i]; !r.Scan {
			fill(&set, r.Ports)
		}
		return &set
	}
	for a, on := range findCircles(lists, wants) {
		for _, in := range lists[config.Inbound] {
			for p := int(in.Ports.First); p <= int(in.Ports.Last); p++ {
				if on[Host][in.Protocol].Has(uint16(p)) && listensAt(in.Listen, a) {
					return fmt.Errorf("%s: port %d leads back to itself by way of the namespace's loopback: leave it out in one direction", in, p)
				}
			}
		}
	}
	return nil
}

// lookForCircles notes which of the ports that are listened on lead in a circle. f.mu is held.
func (f *Forwarder) lookForCircles() {
	if !f.cfg.Policy.KeepLoopback || f.cfg.Splice == nil {
		return
	}
	found := findCircles(f.with(config.Inbound, nil), func(dir config.Direction, i int) *ports.Set { return &f.rules[dir][i].open })
	f.circles.Store(&found)
}

// circular reports whether a flow to port at of a side, from r's peer, comes back there.
func (f *Forwarder) circular(which Side, l *listener, r rules.Route, at netip.Addr) bool {
	c := f.circles.Load()
	return c != nil && (r.Place == rules.Namespace || r.Place == rules.Host) && c.has(which, l.rule.Protocol, at, l.port)
}
