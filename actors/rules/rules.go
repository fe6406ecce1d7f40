// Package rules says where a flow leads: it translates the addresses one side of the translator
// uses to those of the other side. It is pure; the first row that matches decides.
package rules

import "net/netip"

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
}

// Guest is where the guest was last seen. An invalid address is one that is not known.
type Guest struct {
	V4, V6, LinkLocal netip.Addr
}

var (
	loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	loopback6 = netip.IPv6Loopback()
)

// Out returns the host-side destination of a flow the guest opens to dst.
func (r *Rules) Out(dst netip.Addr) netip.Addr {
	switch {
	case r.HostLoopback4.IsValid() && dst == r.HostLoopback4:
		return loopback4
	case r.HostLoopback6.IsValid() && dst == r.HostLoopback6:
		return loopback6
	default:
		return dst
	}
}
