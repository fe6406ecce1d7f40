package actors

import (
	"net/netip"

	"fusilli/tapio/frame"
)

// Neighbour is a station on the host's link. A zero MAC is one that is not known, or not any more.
type Neighbour struct {
	Addr netip.Addr // as the host knows it
	MAC  frame.MAC
}

// Neighbours notes what was found out about the host's neighbours: with all, there are no others.
// They go to the table of Config's Neigh, which must have one, by the addresses that the guest
// knows them by; a greeted guest is told of new ones. One goroutine may call it.
func (e *Engine) Neighbours(list []Neighbour, all bool) {
	t := e.cfg.Neigh.Neighbours
	kept := make(map[frame.Addr]bool, len(list))
	for i := range list {
		n := &list[i]
		a, ok := e.present(n.Addr.Unmap().WithZone(""))
		if !ok || a.IsMulticast() || a.Is4() && !e.cfg.V4 || a.Is6() && !e.cfg.V6 {
			continue
		}
		k := frame.AddrOf(a)
		if n.MAC == (frame.MAC{}) {
			t.Remove(&k)
			continue
		}
		kept[k] = true
		if t.Set(&k, n.MAC) && e.greeted.Load() {
			e.tell(&k, n.MAC)
		}
	}
	if all {
		t.Retain(func(a *frame.Addr) bool { return kept[*a] })
	}
}

// tell tells the guest that a has the Ethernet address mac.
func (e *Engine) tell(a *frame.Addr, mac frame.MAC) {
	buf := e.env.Buffer()
	defer e.env.PutBuffer(buf)
	r := e.responder()
	e.send(buf[:r.Tell(a, mac, buf[:])])
}
