package frame

import (
	"encoding/binary"
	"net/netip"
)

// Lengths in bytes.
const (
	EthLen  = 14 // Ethernet header without VLAN tag
	ARPLen  = 28 // ARP packet for Ethernet and IPv4
	IPv4Len = 20 // IPv4 header without options
	IPv6Len = 40 // IPv6 header without extension headers
	TCPLen  = 20 // TCP header without options
	UDPLen  = 8
	ICMPLen = 8 // ICMP and ICMPv6 header of the types used here

	// L3Off is where the network header begins in every buffer.
	L3Off = VnetLen + EthLen
	// MinFrame is the length of the shortest buffer that is sent: Ethernet without its checksum.
	MinFrame = VnetLen + 60
	// MaxFrame is the length of the longest buffer: an IPv6 packet with a payload of 65535 bytes,
	// which is what its length field can say.
	MaxFrame = VnetLen + EthLen + IPv6Len + 65535
)

// EtherTypes.
const (
	EtherIPv4 = 0x0800
	EtherARP  = 0x0806
	EtherVLAN = 0x8100 // IEEE 802.1Q
	EtherQinQ = 0x88a8 // IEEE 802.1ad
	EtherIPv6 = 0x86dd
)

// IP protocol numbers.
const (
	ProtoICMP   = 1
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoICMPv6 = 58
)

// MAC is an Ethernet address.
type MAC [6]byte

// Broadcast is the Ethernet address of all stations.
var Broadcast = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// String returns the address in the usual notation with colons.
func (m MAC) String() string {
	const hex = "0123456789abcdef"
	var s [17]byte
	for i, c := range m {
		if i > 0 {
			s[3*i-1] = ':'
		}
		s[3*i], s[3*i+1] = hex[c>>4], hex[c&15]
	}
	return string(s[:])
}

// Src returns the source address of the frame in b, which has at least L3Off bytes.
func Src(b []byte) MAC { return MAC(b[VnetLen+6 : VnetLen+12]) }

// Dst returns the destination address of the frame in b, which has at least L3Off bytes.
func Dst(b []byte) MAC { return MAC(b[VnetLen : VnetLen+6]) }

// Addr is an IP address of either version, an IPv4 one in its IPv4-mapped form (RFC 4291, 2.5.5.2).
type Addr = [16]byte

// Addr4 returns the IPv4 address a.
func Addr4(a [4]byte) Addr {
	return Addr{10: 0xff, 11: 0xff, 12: a[0], 13: a[1], 14: a[2], 15: a[3]}
}

// AddrOf returns a without its zone. The zero netip.Addr gives the zero Addr.
func AddrOf(a netip.Addr) Addr {
	if !a.IsValid() {
		return Addr{}
	}
	return a.As16()
}

// NetIP returns a as netip has it, IPv4 addresses in their own form.
func NetIP(a Addr) netip.Addr { return netip.AddrFrom16(a).Unmap() }

// Is4 reports whether a is an IPv4 address.
func Is4(a *Addr) bool {
	return binary.BigEndian.Uint64(a[:]) == 0 && binary.BigEndian.Uint32(a[8:]) == 0xffff
}

// IsLinkLocal reports whether a is an IPv6 link-local unicast address, fe80::/10.
func IsLinkLocal(a *Addr) bool { return a[0] == 0xfe && a[1]&0xc0 == 0x80 }

// IsMulticast reports whether a is a multicast address of either version or 255.255.255.255.
func IsMulticast(a *Addr) bool {
	if !Is4(a) {
		return a[0] == 0xff
	}
	return a[12]>>4 == 14 || binary.BigEndian.Uint32(a[12:]) == 0xffffffff
}

// IsUnspecified reports whether a is :: or 0.0.0.0.
func IsUnspecified(a *Addr) bool {
	return *a == Addr{} || *a == Addr{10: 0xff, 11: 0xff}
}

// IsLoopback reports whether a is ::1 or in 127.0.0.0/8.
func IsLoopback(a *Addr) bool {
	return *a == Addr{15: 1} || a[12] == 127 && Is4(a)
}
