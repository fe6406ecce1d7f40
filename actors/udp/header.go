package udp

import (
	"encoding/binary"

	"fusilli/actors/flow"
	"fusilli/tapio/frame"
)

const (
	// maxSegments is the number of datagrams in a row: UDP_MAX_SEGMENTS of Linux before 6.9.
	maxSegments = 64
	// maxRow is the number of bytes of payload in a row: what fits a packet of 65535 bytes of
	// either version.
	maxRow = 65535 - frame.IPv6Len - frame.UDPLen
)

// header is the part of a flow's frames to the guest that stays the same, laid out as it is sent,
// and what is needed to finish it.
type header struct {
	b      [frame.L3Off + frame.IPv6Len + frame.UDPLen]byte
	len    int // of b that is used
	l4     int // where the UDP header begins
	v6     bool
	ipSum  uint32   // sum of the IPv4 header without its length
	marks  ipFields // what it says
	pseudo uint32   // sum of the pseudo-header without the length
	remote frame.Addr
	found  bool // the source's Ethernet address was looked up
}

// ipFields are time to live or hop limit, and type of service or traffic class.
type ipFields struct{ ttl, tos uint8 }

// set has the frames that are put from now on carry m.
func (h *header) set(m ipFields) {
	ip := h.b[frame.L3Off:h.l4]
	h.marks = m
	if h.v6 {
		ip[0], ip[1], ip[7] = 6<<4|m.tos>>4, m.tos<<4|ip[1]&0xf, m.ttl
		return
	}
	ip[1], ip[8] = m.tos, m.ttl
	h.ipSum = frame.Sum(ip, 0)
}

// init fills h for frames from k's remote end to its guest end.
func (h *header) init(env *flow.Env, k *flow.Key) {
	h.marks = ipFields{ttl: 255}
	h.remote = k.Remote
	ip := frame.IP{Src: k.Remote, Dst: k.Guest, Proto: frame.ProtoUDP, TTL: h.marks.ttl, DF: true}
	h.v6 = k.V6()
	etherType := uint16(frame.EtherIPv4)
	if h.v6 {
		etherType = frame.EtherIPv6
	}
	frame.PutEth(h.b[:], frame.MAC{}, env.OurMAC, etherType)
	h.l4 = frame.L3Off + frame.PutIP(h.b[frame.L3Off:], &ip)
	h.len = h.l4 + frame.UDPLen
	frame.PutUDP(h.b[h.l4:], k.RemotePort, k.GuestPort, 0, 0)
	if !h.v6 {
		clear(h.b[frame.L3Off+2 : frame.L3Off+4])
		clear(h.b[frame.L3Off+10 : frame.L3Off+12])
		h.ipSum = frame.Sum(h.b[frame.L3Off:h.l4], 0)
	}
	h.pseudo = frame.PseudoSum(&k.Remote, &k.Guest, frame.ProtoUDP, 0)
}

// put writes the header of a frame with n bytes of payload to b, which has room for h.len bytes. If
// n is more than size, the payload is a row of datagrams of size bytes.
func (h *header) put(b []byte, mac frame.MAC, n, size int) {
	copy(b, h.b[:h.len])
	copy(b[frame.VnetLen:], mac[:])
	l4len := frame.UDPLen + n
	ip := b[frame.L3Off:]
	if h.v6 {
		binary.BigEndian.PutUint16(ip[4:], uint16(l4len))
	} else {
		binary.BigEndian.PutUint16(ip[2:], uint16(frame.IPv4Len+l4len))
		binary.BigEndian.PutUint16(ip[10:], ^frame.Fold(h.ipSum+uint32(frame.IPv4Len+l4len)))
	}
	udp := b[h.l4:]
	binary.BigEndian.PutUint16(udp[4:], uint16(l4len))
	if !h.v6 && n <= size {
		return // no checksum, nothing to be computed by anybody
	}
	binary.BigEndian.PutUint16(udp[6:], frame.Fold(h.pseudo+uint32(l4len)))
	v := frame.Vnet{Flags: frame.NeedsCsum, CsumStart: uint16(h.l4 - frame.VnetLen), CsumOffset: 6}
	if n > size {
		v.GSOType, v.GSOSize, v.HdrLen = frame.GSOUDP, uint16(size), uint16(h.len-frame.VnetLen)
	}
	frame.PutVnet(b, v)
}

// most returns the length of the longest payload that fits a packet.
func (h *header) most() int {
	if h.v6 {
		return 65535 - frame.UDPLen
	}
	return 65535 - frame.IPv4Len - frame.UDPLen
}
