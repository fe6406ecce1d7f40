package neigh

import (
	"encoding/binary"

	"fusilli/tapio/frame"
)

// AskARP writes a request for the guest's IPv4 address, from ours, to out, which has room for
// ReplyLen bytes, and returns its length with virtio_net_hdr and padding; 0 without such an address.
func (r *Responder) AskARP(out []byte) int {
	if !frame.Is4(&r.Guest4) || len(out) < ReplyLen {
		return 0
	}
	frame.PutVnet(out, frame.Vnet{})
	frame.PutEth(out, frame.Broadcast, r.MAC, frame.EtherARP)
	return putARP(out, r.MAC, &r.Our4, frame.Broadcast, &r.Guest4)
}

// putARP writes an ARP request from one to another, behind the Ethernet header of out, and returns the
// frame's length. What is no IPv4 address is 0.0.0.0.
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
