package flow

import (
	"net/netip"

	"fusilli/tapio/frame"
)

// ICMPSource returns the address by which the guest knows a, the sender of an error about the flow
// k, which leads to host, and whether it can know it at all: only then may it be told of the error.
//
// An address of the host that the guest takes for its own (a firewall of the host's that rejects, a
// neighbour that does not answer) is replaced by the one that the guest has asked: a program in the
// guest hears of it then as it would on the host.
func (e *Env) ICMPSource(k *Key, host, a netip.Addr) (frame.Addr, bool) {
	if a == host.WithZone("") {
		return k.Remote, true
	}
	if !a.IsValid() || a.Is4() == k.V6() || a.IsUnspecified() {
		return frame.Addr{}, false
	}
	known := a
	if e.Present != nil {
		var ok bool
		if known, ok = e.Present(a); !ok {
			return k.Remote, !a.IsLoopback()
		}
	}
	f := frame.AddrOf(known)
	if f == k.Guest {
		return k.Remote, true
	}
	return f, !known.IsLoopback() && !known.IsUnspecified()
}
