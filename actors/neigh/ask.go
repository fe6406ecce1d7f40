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
	a := out[frame.L3Off:]
	binary.BigEndian.PutUint64(a, 0x0001_0800_0604_0001)
	copy(a[8:], r.MAC[:])
	clear(a[14:18])
	if frame.Is4(&r.Our4) {
		copy(a[14:18], r.Our4[12:])
	}
	copy(a[18:], frame.Broadcast[:])
	copy(a[24:28], r.Guest4[12:])
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
