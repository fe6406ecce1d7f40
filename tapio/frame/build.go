package frame

import "encoding/binary"

// PutEth writes the Ethernet header of the frame in b, behind the virtio_net_hdr.
func PutEth(b []byte, dst, src MAC, etherType uint16) {
	h := b[VnetLen:L3Off]
	copy(h, dst[:])
	copy(h[6:], src[:])
	binary.BigEndian.PutUint16(h[12:], etherType)
}

// IP are the values of an IP header that is written.
type IP struct {
	Src, Dst  Addr
	Proto     uint8
	TTL       uint8 // or hop limit
	TOS       uint8 // or traffic class
	ID        uint16
	DF        bool   // don't fragment
	FlowLabel uint32 // IPv6, 20 bits
	Len       int    // bytes behind the header: layer 4 header and payload
}

// PutIPv4 writes an IPv4 header of IPv4Len bytes with its checksum to the beginning of b.
func PutIPv4(b []byte, ip *IP) {
	h := b[:IPv4Len]
	h[0], h[1] = 0x45, ip.TOS
	binary.BigEndian.PutUint16(h[2:], uint16(IPv4Len+ip.Len))
	binary.BigEndian.PutUint16(h[4:], ip.ID)
	var frag uint16
	if ip.DF {
		frag = 0x4000
	}
	binary.BigEndian.PutUint16(h[6:], frag)
	h[8], h[9], h[10], h[11] = ip.TTL, ip.Proto, 0, 0
	copy(h[12:16], ip.Src[12:])
	copy(h[16:20], ip.Dst[12:])
	binary.BigEndian.PutUint16(h[10:], Checksum(h, 0))
}

// SetIPv4Len changes the length in the IPv4 header at the beginning of b to n bytes behind the
// header, and its checksum to match (RFC 1624).
func SetIPv4Len(b []byte, n int) {
	_ = b[IPv4Len-1]
	total := uint16(int(b[0]&15)*4 + n)
	old := binary.BigEndian.Uint16(b[2:])
	sum := binary.BigEndian.Uint16(b[10:])
	binary.BigEndian.PutUint16(b[2:], total)
	binary.BigEndian.PutUint16(b[10:], UpdateChecksum(sum, old, total))
}

// UpdateChecksum returns what becomes of the checksum sum when one of the words it covers changes
// from old to new (RFC 1624).
func UpdateChecksum(sum, old, new uint16) uint16 {
	return ^Fold(uint32(^sum) + uint32(^old) + uint32(new))
}

// PutIPv6 writes an IPv6 header to the beginning of b.
func PutIPv6(b []byte, ip *IP) {
	h := b[:IPv6Len]
	binary.BigEndian.PutUint32(h, 6<<28|uint32(ip.TOS)<<20|ip.FlowLabel&0xfffff)
	binary.BigEndian.PutUint16(h[4:], uint16(ip.Len))
	h[6], h[7] = ip.Proto, ip.TTL
	copy(h[8:24], ip.Src[:])
	copy(h[24:40], ip.Dst[:])
}

// SetIPv6Len changes the length in the IPv6 header at the beginning of b to n bytes behind it.
func SetIPv6Len(b []byte, n int) { binary.BigEndian.PutUint16(b[4:], uint16(n)) }

// PutIP writes the header for ip's version and returns its length.
func PutIP(b []byte, ip *IP) int {
	if Is4(&ip.Src) {
		PutIPv4(b, ip)
		return IPv4Len
	}
	PutIPv6(b, ip)
	return IPv6Len
}

// PutUDP writes a UDP header for n bytes of payload with the given checksum field to the beginning
// of b. Over IPv4 a field of 0 means that there is none.
func PutUDP(b []byte, src, dst uint16, n int, sum uint16) {
	_ = b[UDPLen-1]
	binary.BigEndian.PutUint16(b, src)
	binary.BigEndian.PutUint16(b[2:], dst)
	binary.BigEndian.PutUint16(b[4:], uint16(UDPLen+n))
	binary.BigEndian.PutUint16(b[6:], sum)
}

// Pad fills the frame b[:n] with zeros up to MinFrame and returns its new length. b has room.
func Pad(b []byte, n int) int {
	if n >= MinFrame {
		return n
	}
	clear(b[n:MinFrame])
	return MinFrame
}
