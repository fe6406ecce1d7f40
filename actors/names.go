package actors

import (
	"net/netip"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
	"fusilli/actors/udp"
	"fusilli/tapio/frame"
)

// namesake returns another flow of the guest's port of k that leads to host as k does, by another
// of its names on the guest's link; nil if there is none. If both had one port of the host the
// kernel could not tell their answers apart.
func (e *Engine) namesake(k *flow.Key, host netip.AddrPort) *flow.Port {
	addrs := e.Rules()
	for _, a := range addrs.Names(k.Proto, host) {
		if !a.IsValid() {
			continue
		}
		other := *k
		if other.Remote = frame.AddrOf(a); other == *k {
			continue
		}
		if p := e.table.Lookup(&other); p != nil && !p.Gone() {
			return p
		}
	}
	return nil
}

// dialer is what the socket of the UDP flow k to host comes from. It is asked for when k is in the
// table: of two that begin at the same time one at least sees the other.
func (e *Engine) dialer(k *flow.Key, host netip.AddrPort) udp.Dialer {
	if e.namesake(k, host) != nil {
		return anyPort{&e.cfg.Host}
	}
	return &e.cfg.Host
}

// anyPort is a Dialer whose sockets have a port of the kernel's choice.
type anyPort struct{ udp.Dialer }

// UDP implements udp.Dialer.
func (d anyPort) UDP(_ uint16, addr netip.AddrPort) (int, sock.Held, error) {
	return d.Dialer.UDP(0, addr)
}
