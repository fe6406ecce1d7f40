package rules

import "net/netip"

// Place is where a flow leads.
type Place uint8

// The places.
const (
	Nowhere   Place = iota // it is refused
	Tap                    // the guest's link
	Namespace              // a socket inside the guest's network namespace
	Host                   // a socket of the host
)

// Policy is what is decided about local traffic.
type Policy struct {
	Splice       bool // a flow between loopback addresses takes no tap
	SpliceOnly   bool // there is no tap
	KeepLoopback bool // what comes to the host's loopback goes to the namespace's
}

// Route is where a flow leads and between which addresses, as the place it leads to sees them. A
// source without an address leaves it to the kernel, with the given port for UDP and any for TCP.
type Route struct {
	Place    Place
	Src, Dst netip.AddrPort
}

// Inbound returns the route of a flow of TCP or UDP from the host's network to the guest. from is
// the peer, a unicast address, at the address of the host it used. target is the guest's address of
// the forwarding rule, invalid if that has none, and port the guest's port.
func (r *Rules) Inbound(p Policy, g Guest, from netip.AddrPort, at, target netip.Addr, port uint16) Route {
	dst := target
	if !dst.IsValid() && (at.IsMulticast() || at == broadcast || p.KeepLoopback && at.IsLoopback()) {
		dst = at
	}
	if p.Splice && !target.IsValid() && from.Addr().IsLoopback() {
		if !dst.IsValid() {
			dst = g.V6
			if from.Addr().Is4() {
				dst = g.V4
			}
		}
		return route(Namespace, unspecified(from), netip.AddrPortFrom(dst, port))
	}
	if p.SpliceOnly {
		return Route{}
	}
	src := r.Source(from.Addr(), g)
	if !dst.IsValid() {
		switch {
		case src.Is4():
			dst = g.V4
		case src.IsLinkLocalUnicast():
			dst = g.LinkLocal
		default:
			dst = g.V6
		}
	}
	if !src.IsValid() {
		return Route{}
	}
	return route(Tap, netip.AddrPortFrom(src, from.Port()), netip.AddrPortFrom(dst, port))
}

// Outbound returns the route of a flow of TCP or UDP inside the namespace's loopback that was taken
// up there, from one address of the namespace to another, to port port of the host.
func Outbound(from netip.AddrPort, at netip.Addr, port uint16) Route {
	if !from.Addr().IsLoopback() || !at.IsLoopback() {
		return Route{}
	}
	return route(Host, from, netip.AddrPortFrom(at, port))
}

// route refuses what has no destination or mixes the families.
func route(place Place, src, dst netip.AddrPort) Route {
	if !dst.Addr().IsValid() || dst.Addr().IsUnspecified() || src.Addr().Is4() != dst.Addr().Is4() || dst.Port() == 0 {
		return Route{}
	}
	return Route{Place: place, Src: src, Dst: dst}
}

// unspecified is a's port at an address of the kernel's choice, of a's family.
func unspecified(a netip.AddrPort) netip.AddrPort {
	if a.Addr().Is4() {
		return netip.AddrPortFrom(netip.IPv4Unspecified(), a.Port())
	}
	return netip.AddrPortFrom(netip.IPv6Unspecified(), a.Port())
}
