package neigh

import (
	"sync"

	"fusilli/tapio/frame"
)

// MaxNeighbours is how many neighbours a Table holds. What is beyond them has our Ethernet address.
const MaxNeighbours = 512

// Table is the Ethernet addresses of the stations that the guest's link appears to have: the host's
// neighbours, by the addresses that the guest knows them by. Nobody in it can take the place of a
// fixed address. Anyone may use it at any time; it is asked once a flow, not on a frame's path. A
// nil Table knows nobody.
type Table struct {
	ours     frame.MAC
	gateways [2]frame.Addr // IPv4, IPv6: where all others are behind
	fixed    map[frame.Addr]struct{}

	mu  sync.RWMutex
	mac map[frame.Addr]frame.MAC
}

// NewTable returns a table in which the fixed addresses have our Ethernet address for ever. Zero
// addresses do not count.
func NewTable(ours frame.MAC, gateway4, gateway6 frame.Addr, fixed ...frame.Addr) *Table {
	t := &Table{
		ours: ours, gateways: [2]frame.Addr{gateway4, gateway6},
		fixed: make(map[frame.Addr]struct{}), mac: make(map[frame.Addr]frame.MAC),
	}
	for _, a := range fixed {
		if a != (frame.Addr{}) {
			t.fixed[a] = struct{}{}
		}
	}
	return t
}

// Lookup returns the Ethernet address of a: its own, else that of the gateway, else ours.
func (t *Table) Lookup(a *frame.Addr) frame.MAC {
	t.mu.RLock()
	defer t.mu.RUnlock()
	gateway := &t.gateways[1]
	if frame.Is4(a) {
		gateway = &t.gateways[0]
	}
	for _, k := range [...]*frame.Addr{a, gateway} {
		if mac, ok := t.mac[*k]; ok {
			return mac
		}
		if _, ok := t.fixed[*k]; ok {
			break
		}
	}
	return t.ours
}

// Set notes that a has the Ethernet address mac and reports whether the guest should hear of it: it
// is not what was known of a.
func (t *Table) Set(a *frame.Addr, mac frame.MAC) bool {
	if _, ok := t.fixed[*a]; ok {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	old, ok := t.mac[*a]
	if ok && old == mac || !ok && len(t.mac) == MaxNeighbours {
		return false
	}
	t.mac[*a] = mac
	return mac != t.ours || ok
}

// Remove forgets a.
func (t *Table) Remove(a *frame.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.mac, *a)
}

// Retain forgets all for which keep reports false. keep must not use the table.
func (t *Table) Retain(keep func(*frame.Addr) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for a := range t.mac {
		if !keep(&a) {
			delete(t.mac, a)
		}
	}
}

// macOf returns the Ethernet address that the guest is told a has.
func (r *Responder) macOf(a *frame.Addr) frame.MAC {
	if r.Neighbours == nil {
		return r.MAC
	}
	return r.Neighbours.Lookup(a)
}

// Tell writes to out, which has room for ReplyLen bytes, what tells the guest unasked that a has
// the Ethernet address mac, an ARP announcement (RFC 5227, 3) or a neighbour advertisement to all
// nodes (RFC 4861, 7.2.6), and returns its length; 0 if it cannot be told.
func (r *Responder) Tell(a *frame.Addr, mac frame.MAC, out []byte) int {
	if len(out) < ReplyLen {
		return 0
	}
	if !frame.Is4(a) {
		if r.LinkLocal == (frame.Addr{}) {
			return 0
		}
		// Router and override, as in answers: a guest forgets its routes by who is a router no
		// more. Not solicited: what is sent to a group is no answer, and kernels drop one that
		// claims to be.
		return r.putAdvert(out, 0xa0, a, mac, allNodesMAC, &allNodes)
	}
	frame.PutVnet(out, frame.Vnet{})
	frame.PutEth(out, frame.Broadcast, mac, frame.EtherARP)
	return putARP(out, mac, a, frame.MAC{}, a)
}
