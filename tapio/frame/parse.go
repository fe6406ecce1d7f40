package frame

import "encoding/binary"

// Kind is what a frame is for, as far as the reader needs to know.
type Kind uint8

// The kinds.
const (
	Other      Kind = iota // nothing was parsed
	ARP                    // any ARP packet of at least ARPLen bytes
	TCP                    // one segment, or a row of them
	UDP                    // one datagram, or a row of them
	ICMPEcho               // ICMP echo request
	ICMPv6Echo             // ICMPv6 echo request
	NDP                    // router or neighbour solicitation or advertisement
	// ICMP or ICMPv6: a router behind the guest cannot forward a packet of ours; see QuotedTCP
	TooBig
	// a fragment of an IP packet; only L4, where its data begins, means something
	Fragment
)

// maxOptions bounds the bytes of IPv6 extension headers. Real packets carry one or two headers of
// 8 bytes; the bound keeps a packet of nothing but headers from costing time.
const maxOptions = 512

// Bounds of a row of segments, which is what a kernel asks a network card to cut up. What is beyond
// them only makes work, some 75 bytes of headers for each byte of payload.
const (
	// MinTCPSegment is the shortest payload that Linux cuts a stream into: tcp_min_snd_mss
	// (ip-sysctl) is at least 48, from which come up to 40 bytes of options. Other systems stop
	// earlier.
	MinTCPSegment = 8
	// MaxUDPSegments is the number of datagrams that Linux takes at a time with UDP_SEGMENT
	// (udp(7)), of any length: UDP_MAX_SEGMENTS, 64 before Linux 6.9.
	MaxUDPSegments = 128
)

// Packet is what Parse found in a frame: values and offsets, no pointers. Offsets count from the
// beginning of the buffer given to Parse.
type Packet struct {
	Kind      Kind
	V6        bool
	Proto     uint8  // of layer 4, behind all extension headers
	TTL       uint8  // or hop limit
	TOS       uint8  // or traffic class
	GSO       uint16 // bytes of payload in each segment if the frame is a row of them, else 0
	FlowLabel uint32 // IPv6

	Src, Dst         Addr   // for ARP unspecified
	SrcPort, DstPort uint16 // of TCP and UDP; identifier and 0 for echo

	L3      int // network header, always L3Off
	L4      int // TCP, UDP or ICMP header
	Payload int // behind that header and its options; ICMP headers count as ICMPLen bytes
	End     int // end of the packet, without padding
}

// Parse fills p from the frame in b and returns OK, or the reason to drop it; p is undefined then.
//
// It trusts no length in the frame and never reads past b. Frames that are taken: ARP, and IP
// packets with TCP, UDP, echo requests, NDP and what routers say about packets that are too big, or
// fragments of any protocol, whose addresses a guest may use. For UDP the length field is ignored:
// a packet of several datagrams (GSO) has none that would fit, and the IP header has said it
// already. A source of 0.0.0.0 is accepted to UDP port 67 only, :: in NDP only.
//
// Parse keeps nothing of b.
func Parse(b []byte, p *Packet) Reason {
	if len(b) < L3Off {
		return DropShort
	}
	if len(b) > MaxFrame {
		return DropLong
	}
	switch binary.BigEndian.Uint16(b[VnetLen+12:]) {
	case EtherIPv4:
		if r := p.ipv4(b); r != OK {
			return r
		}
	case EtherIPv6:
		if r := p.ipv6(b); r != OK {
			return r
		}
	case EtherARP:
		if len(b) < L3Off+ARPLen {
			return DropARP
		}
		*p = Packet{Kind: ARP, L3: L3Off, L4: L3Off, Payload: L3Off, End: len(b)}
	case EtherVLAN, EtherQinQ:
		return DropVLAN
	default:
		return DropEtherType
	}
	if b[0]&NeedsCsum != 0 || b[1] != GSONone {
		return p.vnet(b)
	}
	p.GSO = 0
	return OK
}

// vnet checks the virtio_net_hdr against the packet it came with.
func (p *Packet) vnet(b []byte) Reason {
	v := GetVnet(b)
	n := len(b) - VnetLen
	if v.Flags&NeedsCsum != 0 && (v.CsumStart < EthLen || int(v.CsumStart)+int(v.CsumOffset)+2 > n) {
		return DropVnetOffset
	}
	p.GSO = 0
	switch v.GSOType {
	case GSONone:
		return OK
	case GSOTCPv4, GSOTCPv4 | GSOECN:
		if p.Kind != TCP || p.V6 {
			return DropVnetGSO
		}
	case GSOTCPv6, GSOTCPv6 | GSOECN:
		if p.Kind != TCP || !p.V6 {
			return DropVnetGSO
		}
	case GSOUDP:
		if p.Kind != UDP {
			return DropVnetGSO
		}
	default:
		return DropVnetGSO
	}
	size := int(v.GSOSize)
	switch {
	case size == 0:
		return DropVnetGSO
	case p.Kind == TCP && size < MinTCPSegment, p.Kind == UDP && p.End-p.Payload > size*MaxUDPSegments:
		return DropGSOSize
	}
	if int(v.HdrLen) > n {
		return DropVnetOffset
	}
	p.GSO = v.GSOSize
	return OK
}

func (p *Packet) ipv4(b []byte) Reason {
	ip := b[L3Off:]
	if len(ip) < IPv4Len {
		return DropIPv4Header
	}
	hlen := int(ip[0]&15) * 4
	if ip[0]>>4 != 4 || hlen < IPv4Len || hlen > len(ip) {
		return DropIPv4Header
	}
	total := int(binary.BigEndian.Uint16(ip[2:]))
	if total < hlen || total > len(ip) {
		return DropIPv4Length
	}
	frag := binary.BigEndian.Uint16(ip[6:]) &^ 0x4000 // all but "don't fragment"
	if frag&0x8000 != 0 {
		return DropIPv4Fragment
	}
	src, dst := binary.BigEndian.Uint32(ip[12:]), binary.BigEndian.Uint32(ip[16:])
	if src>>24 == 127 || dst>>24 == 127 {
		return DropLoopback
	}
	if src>>28 == 14 || src == 0xffffffff {
		return DropSource
	}
	if dst == 0 {
		return DropDestination
	}
	multicast := dst>>28 == 14 || dst == 0xffffffff

	p.V6 = false
	p.Proto, p.TTL, p.TOS, p.FlowLabel = ip[9], ip[8], ip[1], 0
	binary.BigEndian.PutUint64(p.Src[:8], 0)
	binary.BigEndian.PutUint64(p.Src[8:], 0xffff<<32|uint64(src))
	binary.BigEndian.PutUint64(p.Dst[:8], 0)
	binary.BigEndian.PutUint64(p.Dst[8:], 0xffff<<32|uint64(dst))
	p.L3, p.L4, p.End = L3Off, L3Off+hlen, L3Off+total
	b = b[:p.End]
	if frag != 0 {
		if src == 0 {
			return DropSource
		}
		return p.fragment()
	}
	switch p.Proto {
	case ProtoTCP:
		return p.tcp(b, src == 0, multicast)
	case ProtoUDP:
		if r := p.udp(b); r != OK {
			return r
		}
		if src == 0 && p.DstPort != 67 {
			return DropSource
		}
		return OK
	case ProtoICMP:
		return p.echo(b, ICMPEcho, 8, src == 0, multicast)
	}
	return DropProtocol
}

func (p *Packet) ipv6(b []byte) Reason {
	ip := b[L3Off:]
	if len(ip) < IPv6Len || ip[0]>>4 != 6 {
		return DropIPv6Header
	}
	if int(binary.BigEndian.Uint16(ip[4:])) != len(ip)-IPv6Len {
		return DropIPv6Length
	}
	word := binary.BigEndian.Uint32(ip)
	p.V6 = true
	p.Proto, p.TTL, p.TOS, p.FlowLabel = ip[6], ip[7], uint8(word>>20), word&0xfffff
	p.Src, p.Dst = Addr(ip[8:24]), Addr(ip[24:40])
	unspecified := p.Src == Addr{}
	switch {
	case IsLoopback(&p.Src), IsLoopback(&p.Dst):
		// Also catches 127.0.0.0/8 in IPv4-mapped form.
		return DropLoopback
	case Is4(&p.Src), Is4(&p.Dst):
		// Would be taken for an IPv4 address from here on.
		return DropMapped
	case p.Src[0] == 0xff:
		return DropSource
	case p.Dst == Addr{}:
		return DropDestination
	}
	p.L3, p.L4, p.End = L3Off, L3Off+IPv6Len, len(b)
	for {
		switch p.Proto {
		case ProtoTCP:
			return p.tcp(b, unspecified, p.Dst[0] == 0xff)
		case ProtoUDP:
			if unspecified {
				return DropSource
			}
			return p.udp(b)
		case ProtoICMPv6:
			if len(b) < p.L4+ICMPLen {
				return DropICMPShort
			}
			if t := b[p.L4]; t >= 133 && t <= 136 {
				p.Kind, p.Payload = NDP, p.L4+ICMPLen
				p.SrcPort, p.DstPort = 0, 0
				return OK
			}
			return p.echo(b, ICMPv6Echo, 128, unspecified, p.Dst[0] == 0xff)
		case 0, 43, 60, 135, 139, 140, 253, 254:
			// Hop-by-hop, routing, destination options, mobility, HIP, Shim6 and the
			// experimental ones: next header, length in units of 8 bytes without the first.
			if p.L4+8 > len(b) {
				return DropIPv6Option
			}
			p.Proto, p.L4 = b[p.L4], p.L4+8*(int(b[p.L4+1])+1)
		case 44:
			// An atomic fragment (RFC 6946) is a whole packet.
			if p.L4+8 > len(b) {
				return DropIPv6Option
			}
			whole := binary.BigEndian.Uint16(b[p.L4+2:])&^6 == 0
			p.Proto, p.L4 = b[p.L4], p.L4+8
			if !whole && unspecified {
				return DropIPv6Fragment
			}
			if !whole {
				return p.fragment()
			}
		case 51:
			// Authentication: length in units of 4 bytes without the first two.
			if p.L4+8 > len(b) {
				return DropIPv6Option
			}
			p.Proto, p.L4 = b[p.L4], p.L4+4*(int(b[p.L4+1])+2)
		default:
			// ESP (50) among them: what follows it is encrypted.
			return DropProtocol
		}
		if p.L4 > len(b) || p.L4 > L3Off+IPv6Len+maxOptions {
			return DropIPv6Option
		}
	}
}

// fragment makes p that of a fragment whose data begin at L4.
func (p *Packet) fragment() Reason {
	p.Kind, p.Payload, p.SrcPort, p.DstPort = Fragment, p.L4, 0, 0
	return OK
}

// Fragment returns what the frame b, which p was made from and which is a fragment, says about its
// place: the identification of its datagram, the offset of its data in bytes, and whether more
// follows behind them.
func (p *Packet) Fragment(b []byte) (id uint32, off int, more bool) {
	if p.V6 {
		h := b[p.L4-8:]
		v := binary.BigEndian.Uint16(h[2:])
		return binary.BigEndian.Uint32(h[4:]), int(v &^ 7), v&1 != 0
	}
	h := b[p.L3:]
	v := binary.BigEndian.Uint16(h[6:])
	return uint32(binary.BigEndian.Uint16(h[4:])), int(v&0x1fff) * 8, v&0x2000 != 0
}

// tcp parses the TCP header at L4. b ends where the packet does.
func (p *Packet) tcp(b []byte, unspecified, multicast bool) Reason {
	h := b[p.L4:]
	if len(h) < TCPLen {
		return DropTCPShort
	}
	hlen := int(h[12]>>4) * 4
	if hlen < TCPLen || hlen > len(h) {
		return DropTCPOffset
	}
	if unspecified {
		return DropSource
	}
	if multicast {
		return DropMulticast
	}
	p.SrcPort, p.DstPort = binary.BigEndian.Uint16(h), binary.BigEndian.Uint16(h[2:])
	if p.SrcPort == 0 || p.DstPort == 0 {
		return DropPort
	}
	p.Kind, p.Payload = TCP, p.L4+hlen
	return OK
}

// udp parses the UDP header at L4. b ends where the packet does.
func (p *Packet) udp(b []byte) Reason {
	h := b[p.L4:]
	if len(h) < UDPLen {
		return DropUDPShort
	}
	p.SrcPort, p.DstPort = binary.BigEndian.Uint16(h), binary.BigEndian.Uint16(h[2:])
	if p.SrcPort == 0 || p.DstPort == 0 {
		return DropPort
	}
	p.Kind, p.Payload = UDP, p.L4+UDPLen
	return OK
}

// echo parses the ICMP header at L4, which must be an echo request, or say that a packet is too
// big. b ends where the packet does.
func (p *Packet) echo(b []byte, kind Kind, request uint8, unspecified, multicast bool) Reason {
	h := b[p.L4:]
	if len(h) < ICMPLen {
		return DropICMPShort
	}
	tooBig := kind == ICMPEcho && h[0] == 3 && h[1] == 4 || kind == ICMPv6Echo && h[0] == 2 && h[1] == 0
	if (h[0] != request || h[1] != 0) && !tooBig {
		return DropICMPType
	}
	if unspecified {
		return DropSource
	}
	if multicast {
		return DropMulticast
	}
	if tooBig {
		p.Kind, p.Payload, p.SrcPort, p.DstPort = TooBig, p.L4+ICMPLen, 0, 0
		return OK
	}
	p.SrcPort, p.DstPort = binary.BigEndian.Uint16(h[4:]), 0
	p.Kind, p.Payload = kind, p.L4+ICMPLen
	return OK
}
