package neigh

import (
	"encoding/binary"

	"fusilli/tapio/frame"
)

// AskARP writes a request for the guest's IPv4 address, from ours, to out, which has room for
// ReplyLen bytes, and returns its length with virtio_net_hdr and padding; 0 without such an
// address.
func (r *Responder) AskARP(out []byte) int {
	if !frame.Is4(&r.Guest4) || len(out) < ReplyLen {
		return 0
	}
	frame.PutVnet(out, frame.Vnet{})
	frame.PutEth(out, frame.Broadcast, r.MAC, frame.EtherARP)
	return putARP(out, r.MAC, &r.Our4, frame.Broadcast, &r.Guest4)
}

// putARP writes an ARP request from one to another, behind the Ethernet header of out, and returns
// the frame's length. What is no IPv4 address is 0.0.0.0.
func putARP(out []byte, fromMAC frame.MAC, from *frame.Addr, toMAC frame.MAC, to *frame.Addr) int {
	a := out[frame.L3Off:]
	binary.BigEndian.PutUint64(a, 0x0001_0800_0604_0001)
	copy(a[8:], fromMAC[:])
	clear(a[14:18])
	if frame.Is4(from) {
		copy(a[14:18], from[12:])
	}
	copy(a[18:], toMAC[:])
	copy(a[24:28], to[12:])
	return frame.Pad(out, frame.L3Off+frame.ARPLen)
}

// AskNDP writes a neighbour solicitation for the guest's IPv6 address to that address, since its
// owner takes it whatever groups it is in yet, and returns its length; 0 without such an address.
func (r *Responder) AskNDP(out []byte) int {
	if r.Prefix == (frame.Addr{}) || r.LinkLocal == (frame.Addr{}) || len(out) < ReplyLen {
		return 0
	}
	m := out[frame.L3Off+frame.IPv6Len:]
	clear(m[:8])
	m[0] = neighbourSolicitation
	copy(m[8:nsLen], r.Prefix[:])
	return r.finish(out, nsLen, frame.Broadcast, &r.Prefix)
}

// Probe writes a question for the address of, one that the guest may have, to out, which has room
// for ReplyLen bytes, and returns its length. It goes to the station to, or to all for
// frame.Broadcast.
func (r *Responder) Probe(of *frame.Addr, to frame.MAC, out []byte) int {
	if len(out) < ReplyLen {
		return 0
	}
	if frame.Is4(of) {
		frame.PutVnet(out, frame.Vnet{})
		frame.PutEth(out, to, r.MAC, frame.EtherARP)
		return putARP(out, r.MAC, &r.Our4, frame.MAC{}, of)
	}
	dst := *of
	if to == frame.Broadcast {
		// The solicited-node group (RFC 4291, 2.7.1), which the owner of an address is in.
		dst = frame.Addr{0: 0xff, 1: 0x02, 11: 1, 12: 0xff, 13: of[13], 14: of[14], 15: of[15]}
		to = frame.MAC{0x33, 0x33, dst[12], dst[13], dst[14], dst[15]}
	}
	m := out[frame.L3Off+frame.IPv6Len:]
	clear(m[:8])
	m[0] = neighbourSolicitation
	copy(m[8:nsLen], of[:])
	putLLAddr(m[nsLen:], optSourceLLAddr, r.MAC)
	from := *r
	if from.LinkLocal == (frame.Addr{}) {
		// NDP gets no replies from us; but to ask takes an address (RFC 4291, appendix A).
		from.LinkLocal = frame.Addr{0: 0xfe, 1: 0x80, 8: r.MAC[0] ^ 2, 9: r.MAC[1], 10: r.MAC[2], 11: 0xff, 12: 0xfe,
			13: r.MAC[3], 14: r.MAC[4], 15: r.MAC[5]}
	}
	return from.finish(out, nsLen+lladdrLen, to, &dst)
}

// Answer returns the address that the frame b, parsed as p, says the station mac has: it is a reply
// to us, the station our, and that station's own.
func Answer(b []byte, p *frame.Packet, our frame.MAC) (a frame.Addr, mac frame.MAC, ok bool) {
	mac = frame.Src(b)
	if frame.Dst(b) != our {
		return a, mac, false
	}
	switch p.Kind {
	case frame.ARP:
		q := b[frame.L3Off:]
		if binary.BigEndian.Uint64(q) != 0x0001_0800_0604_0002 || frame.MAC(q[8:14]) != mac {
			return a, mac, false
		}
		return frame.Addr4([4]byte(q[14:18])), mac, true
	case frame.NDP:
		m := b[p.L4:p.End]
		if p.TTL != hopLimit || len(m) < nsLen || m[0] != neighbourAdvert || m[1] != 0 || m[4]&solicited == 0 {
			return a, mac, false
		}
		for o := m[nsLen:]; len(o) > 0; o = o[int(o[1])*8:] {
			if len(o) < 8 || o[1] == 0 || int(o[1])*8 > len(o) || o[0] == optTargetLLAddr && frame.MAC(o[2:8]) != mac {
				return a, mac, false
			}
		}
		return frame.Addr(m[8:nsLen]), mac, true
	}
	return a, mac, false
}

// Sender returns the IPv4 address of the sender of the ARP packet b, which has ARPLen bytes;
// 0.0.0.0 if it has none, or is not of the Ethernet address that the frame comes from.
func Sender(b []byte) frame.Addr {
	q := b[frame.L3Off:]
	a := frame.Addr4([4]byte{})
	if binary.BigEndian.Uint32(q) == 0x0001_0800 && binary.BigEndian.Uint16(q[4:]) == 0x0604 && frame.MAC(q[8:14]) == frame.Src(b) {
		a = frame.Addr4([4]byte(q[14:18]))
	}
	return a
}
