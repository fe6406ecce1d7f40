// Package rules says where a flow leads: it translates the addresses one side of the translator
// uses to those of the other side. It is pure; the first row that matches decides.
package rules

import "net/netip"

// Rules are the guest-side addresses with a meaning of their own. The zero value translates
// nothing.
type Rules struct {
	// Guest-side aliases of the host's loopback addresses; invalid: none.
	HostLoopback4, HostLoopback6 netip.Addr
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
