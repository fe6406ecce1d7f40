// Package rules says where a flow leads: it translates the addresses one side of the translator
// uses to those of the other side. It is pure; of the rows of each function the first that matches
// decides.
//
// Three places have addresses of their own: the host's network, the guest's link (the tap), and,
// for a guest that is a namespace, sockets inside it. A flow the guest opens on its link always
// leads to the host ([Rules.Out]). A flow from the host leads to the guest, by its link or to a
// socket inside the namespace ([Rules.Inbound]). A flow inside the namespace's loopback leads to
// the host's ([Outbound]). Replies take the addresses of their flow and need no rule.
package rules

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// Rules are the addresses with a meaning of their own. An invalid address is one that is not set.
// The zero value translates nothing.
type Rules struct {
	// HostLoopback4 and HostLoopback6 are the guest's aliases of the host's loopback addresses.
	HostLoopback4, HostLoopback6 netip.Addr
	// HostGuest4 and HostGuest6 are the guest's aliases of its own address on the host.
	HostGuest4, HostGuest6 netip.Addr
	// Assigned4 and Assigned6 are the addresses assigned to the guest, on the host usually the
	// host's own.
	Assigned4, Assigned6 netip.Addr
	// DNSMatch4 and DNSMatch6 are guest-side addresses whose DNS goes to DNSHost4 and DNSHost6.
	DNSMatch4, DNSMatch6, DNSHost4, DNSHost6 netip.Addr
	// OurTap4 and OurLinkLocal are our own addresses on the guest's link.
	OurTap4, OurLinkLocal netip.Addr
	// Link4 and Link6 are networks that exist on the guest's link only: addresses in them that are
	// none of the above lead nowhere. In them, Echo4 and Echo6 answer echo requests, whatever else
	// they mean.
	Link4, Link6 netip.Prefix
	Echo4, Echo6 netip.Addr
}

// Guest is where the guest was last seen. An invalid address is one that is not known.
type Guest struct {
	V4, V6, LinkLocal netip.Addr
}

var (
	loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	loopback6 = netip.IPv6Loopback()
	broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})
)

// The ports of DNS: RFC 1035 and, over TLS, RFC 7858.
const (
	portDNS    = 53
	portDNSTLS = 853
)

// Out returns the host-side destination of a flow the guest opens to dst. proto is the IP protocol
// number; the port of dst means something for TCP and UDP only, and never changes.
func (r *Rules) Out(proto uint16, dst netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(r.out(proto, dst.Addr(), dst.Port()), dst.Port())
}

// Verdict is what becomes of a flow the guest opens.
type Verdict uint8

// The gates.
const (
	Open     Verdict = iota
	Silent           // nobody is there
	Refused          // somebody is there, with nothing behind: network unreachable
	Answered         // somebody is there, and answers to echo requests
)

// Verdict says what becomes of a flow the guest opens to dst.
func (r *Rules) Verdict(proto uint16, dst netip.AddrPort) Verdict {
	a := dst.Addr()
	switch {
	case !(r.Link4.IsValid() && r.Link4.Contains(a)) && !(r.Link6.IsValid() && r.Link6.Contains(a)):
		return Open
	case a == r.Echo4 && proto == unix.IPPROTO_ICMP, a == r.Echo6 && proto == unix.IPPROTO_ICMPV6:
		return Answered
	case r.out(proto, a, dst.Port()) != a:
		return Open
	case a == r.Echo4, a == r.Echo6:
		return Refused
	}
	return Silent
}

func (r *Rules) out(proto uint16, dst netip.Addr, port uint16) netip.Addr {
	dns := (port == portDNS || port == portDNSTLS) && (proto == unix.IPPROTO_TCP || proto == unix.IPPROTO_UDP)
	switch {
	case !dst.IsValid():
		return dst
	// Before the aliases: the resolver may have the address of one.
	case dns && dst == r.DNSMatch4 && r.DNSHost4.IsValid():
		return r.DNSHost4
	case dns && dst == r.DNSMatch6 && r.DNSHost6.IsValid():
		return r.DNSHost6
	case dst == r.HostLoopback4:
		return loopback4
	case dst == r.HostLoopback6:
		return loopback6
	case dst == r.HostGuest4 && r.Assigned4.IsValid():
		return r.Assigned4
	case dst == r.HostGuest6 && r.Assigned6.IsValid():
		return r.Assigned6
	}
	return dst
}

// Names returns the addresses by which a flow of the guest's gets to host, as Out has it; invalid
// ones are none.
func (r *Rules) Names(proto uint16, host netip.AddrPort) (names [4]netip.Addr) {
	names = [4]netip.Addr{host.Addr(), r.DNSMatch4, r.HostLoopback4, r.HostGuest4}
	if host.Addr().Is6() {
		names = [4]netip.Addr{host.Addr(), r.DNSMatch6, r.HostLoopback6, r.HostGuest6}
	}
	for i, a := range names {
		if r.out(proto, a, host.Port()) != host.Addr() {
			names[i] = netip.Addr{}
		}
	}
	return names
}

// In returns the address by which the guest knows src, an address of the host's network, and
// whether there is one. Besides the sources of flows it is for the senders of ICMP errors.
func (r *Rules) In(src netip.Addr, g Guest) (netip.Addr, bool) {
	switch {
	case src == loopback4 && r.HostLoopback4.IsValid(): // not the rest of 127/8
		return r.HostLoopback4, true
	case src == loopback6 && r.HostLoopback6.IsValid():
		return r.HostLoopback6, true
	case src == r.Assigned4 && r.HostGuest4.IsValid():
		return r.HostGuest4, true
	case src == r.Assigned6 && r.HostGuest6.IsValid():
		return r.HostGuest6, true
	case !src.IsValid(), src.IsLoopback(), src.IsUnspecified(),
		src == r.Assigned4, src == r.Assigned6, src == g.V4, src == g.V6:
		return netip.Addr{}, false // the guest would answer to itself
	}
	return src, true
}

// Source is In for the source of a flow: what the guest has no address for appears to come from us.
// It is invalid if we have no address on the guest's link either.
func (r *Rules) Source(src netip.Addr, g Guest) netip.Addr {
	if a, ok := r.In(src, g); ok {
		return a
	}
	if src.Is4() {
		return r.OurTap4
	}
	return r.OurLinkLocal
}
