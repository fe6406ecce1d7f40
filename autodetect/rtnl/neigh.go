package rtnl

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// States of a neighbour in which its link-layer address is one to send to (linux/neighbour.h,
// NUD_VALID). The address of one in NUD_DELAY is as good as that of a stale one: the kernel has
// just begun to send to it.
const neighValid = unix.NUD_PERMANENT | unix.NUD_NOARP | unix.NUD_REACHABLE | unix.NUD_PROBE | unix.NUD_STALE | unix.NUD_DELAY

// Neighbour is a view of one RTM_NEWNEIGH or RTM_DELNEIGH message.
type Neighbour struct {
	Family uint8 // AF_INET, AF_INET6
	Index  int   // the interface's
	Addr   netip.Addr
	// MAC is the neighbour's Ethernet address; nil if it has none, or another kind of address, or
	// if it is not known at present.
	MAC net.HardwareAddr
}

// NeighbourBody returns the payload of a request about neighbours.
func NeighbourBody(family uint8, index int) []byte {
	b := make([]byte, unix.SizeofNdMsg)
	b[0] = family
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	return b
}

// Neighbours dumps the neighbours of one family on one interface. Those that make no sense are left
// out.
func (c *Conn) Neighbours(family uint8, index int) ([]Neighbour, error) {
	// Checked strictly, the index belongs into an attribute; else all interfaces' are returned.
	body := NeighbourBody(family, 0)
	if index > 0 {
		body = AppendUint32(body, unix.NDA_IFINDEX, uint32(index))
	}
	msgs, err := c.Dump(unix.RTM_GETNEIGH, unix.RTM_NEWNEIGH, body)
	if err != nil {
		return nil, err
	}
	var list []Neighbour
	for _, m := range msgs {
		if n, err := ParseNeighbour(m); err == nil && n.Family == family && n.Index == index {
			list = append(list, n)
		}
	}
	return list, nil
}

// ParseNeighbour reads the payload of an RTM_NEWNEIGH or RTM_DELNEIGH message.
func ParseNeighbour(b []byte) (Neighbour, error) {
	if len(b) < unix.SizeofNdMsg {
		return Neighbour{}, ErrMalformed
	}
	n := Neighbour{Family: b[0], Index: int(int32(binary.NativeEndian.Uint32(b[4:])))}
	state, flags := binary.NativeEndian.Uint16(b[8:]), b[10]
	if n.Family != unix.AF_INET && n.Family != unix.AF_INET6 || flags&unix.NTF_PROXY != 0 {
		return Neighbour{}, ErrMalformed // of a bridge, or one that we are to answer for
	}
	var mac net.HardwareAddr
	err := EachAttr(b[unix.SizeofNdMsg:], func(typ uint16, val []byte) (err error) {
		switch typ {
		case unix.NDA_DST:
			n.Addr, err = addrOf(n.Family, val)
		case unix.NDA_LLADDR:
			mac = append(mac[:0], val...)
		}
		return err
	})
	if err != nil {
		return Neighbour{}, err
	}
	if !n.Addr.IsValid() {
		return Neighbour{}, ErrMalformed
	}
	// No group has an address of its own, and neither has nobody.
	if state&neighValid != 0 && len(mac) == 6 && mac[0]&1 == 0 && [6]byte(mac) != [6]byte{} {
		n.MAC = mac
	}
	return n, nil
}
