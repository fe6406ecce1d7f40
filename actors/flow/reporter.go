package flow

import (
	"net/netip"

	"fusilli/tapio/frame"
)

// Reporter returns the address by which the guest knows a, the sender of an error about the flow k,
// which leads to host, and whether it can know it at all: only then may it be told of the error.
func (e *Env) Reporter(k *Key, host, a netip.Addr) (frame.Addr, bool) {
	if a == host.WithZone("") {
		return k.Remote, true
	}
	if a.IsValid() && e.Present != nil {
		var ok bool
		if a, ok = e.Present(a); !ok {
			return frame.Addr{}, false
		}
	}
	f := frame.AddrOf(a)
	if !a.IsValid() || a.Is4() == k.V6() || a.IsLoopback() || a.IsUnspecified() || f == k.Guest {
		return f, false
	}
	return f, true
}
