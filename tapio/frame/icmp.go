package frame

import "encoding/binary"

// Payload bytes of the original datagram that an ICMP error quotes: over IPv6 as many as leave the
// whole packet within the least MTU (RFC 4443, section 2.4).
const (
	quote4 = 8
	quote6 = 1280 - IPv6Len - ICMPLen - IPv6Len - UDPLen
)

// ICMPErrorLen is the room PutICMPError needs: the longest frame it writes.
const ICMPErrorLen = L3Off + IPv6Len + ICMPLen + IPv6Len + UDPLen + quote6

// ICMPError is an ICMP or ICMPv6 error message (RFC 792, RFC 4443) to the guest about a UDP
// datagram or an echo request it sent. All addresses are of the same IP version.
type ICMPError struct {
	SrcMAC, DstMAC MAC
	Src            Addr // who reports the error
	Type, Code     uint8
	Info           uint32 // next-hop MTU where the type has one, else 0

	Guest, Remote         Addr // of the datagram as the guest sent it
	GuestPort, RemotePort uint16
	FlowLabel             uint32
	Payload               []byte // as much of it as is known; lent for the call

	// Echo says that it was an echo request: there are no ports, and Payload begins with its
	// ICMPLen bytes of header, as the guest sent them.
	Echo bool
}

// PutICMPError writes the whole frame to b, which has at least ICMPErrorLen bytes, and returns its
// length with padding. The quoted packet is made up again from e, with the lengths of what is
// quoted and not of the original, which nobody knows any more.
func PutICMPError(b []byte, e *ICMPError) int {
	v4 := Is4(&e.Src)
	proto, hlen, quote, etherType := uint8(ProtoICMPv6), IPv6Len, quote6, uint16(EtherIPv6)
	if v4 {
		proto, hlen, quote, etherType = ProtoICMP, IPv4Len, quote4, EtherIPv4
	}
	quoted, l4 := uint8(ProtoUDP), UDPLen
	if e.Echo {
		quoted, l4 = proto, 0
		quote += UDPLen // as long a header, but among the payload
	}
	payload := e.Payload[:min(len(e.Payload), quote)]
	icmp := b[L3Off+hlen:]
	n := ICMPLen + hlen + l4 + len(payload)

	PutVnet(b, Vnet{})
	PutEth(b, e.DstMAC, e.SrcMAC, etherType)
	PutIP(b[L3Off:], &IP{Src: e.Src, Dst: e.Guest, Proto: proto, TTL: 255, DF: true, FlowLabel: e.FlowLabel, Len: n})
	icmp[0], icmp[1], icmp[2], icmp[3] = e.Type, e.Code, 0, 0
	binary.BigEndian.PutUint32(icmp[4:], e.Info)
	orig := icmp[ICMPLen:]
	PutIP(orig, &IP{Src: e.Guest, Dst: e.Remote, Proto: quoted, TTL: 255, DF: true, Len: l4 + len(payload)})
	copy(orig[hlen+l4:], payload)

	var sum uint32
	if !v4 {
		sum = PseudoSum(&e.Src, &e.Guest, ProtoICMPv6, n)
	}
	if !e.Echo {
		PutUDP(orig[hlen:], e.GuestPort, e.RemotePort, len(payload), 0)
	}
	if !v4 && !e.Echo {
		udp := PseudoSum(&e.Guest, &e.Remote, ProtoUDP, UDPLen+len(payload))
		field := Checksum(orig[hlen:hlen+UDPLen+len(payload)], udp)
		if field == 0 {
			field = 0xffff
		}
		binary.BigEndian.PutUint16(orig[hlen+6:], field)
	}
	binary.BigEndian.PutUint16(icmp[2:], Checksum(icmp[:n], sum))
	return Pad(b, L3Off+hlen+n)
}

// PutEchoReply writes to b, which has room for in, the reply to the echo request in from its
// destination, and returns its length with padding. p is what was found in it; our is our hardware
// address.
func PutEchoReply(b []byte, our MAC, in []byte, p *Packet) int {
	n := p.End - p.L4
	proto, hlen, etherType, kind := uint8(ProtoICMP), IPv4Len, uint16(EtherIPv4), uint8(0)
	var sum uint32
	if p.V6 {
		proto, hlen, etherType, kind = ProtoICMPv6, IPv6Len, EtherIPv6, 129
		sum = PseudoSum(&p.Dst, &p.Src, ProtoICMPv6, n)
	}
	PutVnet(b, Vnet{})
	PutEth(b, Src(in), our, etherType)
	PutIP(b[L3Off:], &IP{Src: p.Dst, Dst: p.Src, Proto: proto, TTL: 255, DF: true, Len: n})
	icmp := b[L3Off+hlen:][:n]
	copy(icmp, in[p.L4:p.End])
	icmp[0], icmp[2], icmp[3] = kind, 0, 0
	binary.BigEndian.PutUint16(icmp[2:], Checksum(icmp, sum))
	return Pad(b, L3Off+hlen+n)
}

// PutUnreachable writes to b, which has at least ICMPErrorLen bytes, what tells the sender of in
// that there is no way to its destination, who reports that itself (RFC 792, RFC 4443, section
// 3.1), and returns its length with padding. in is a frame and p what was found in it; our is our
// hardware address.
func PutUnreachable(b []byte, our MAC, in []byte, p *Packet) int {
	proto, hlen, etherType, kind := uint8(ProtoICMP), IPv4Len, uint16(EtherIPv4), uint8(3)
	quote := in[p.L3:min(p.End, p.L4+quote4)]
	var sum uint32
	if p.V6 {
		proto, hlen, etherType, kind = ProtoICMPv6, IPv6Len, EtherIPv6, 1
		quote = in[p.L3:min(p.End, p.L3+IPv6Len+quote6)]
		sum = PseudoSum(&p.Dst, &p.Src, ProtoICMPv6, ICMPLen+len(quote))
	}
	n := ICMPLen + len(quote)
	PutVnet(b, Vnet{})
	PutEth(b, Src(in), our, etherType)
	PutIP(b[L3Off:], &IP{Src: p.Dst, Dst: p.Src, Proto: proto, TTL: 255, DF: true, Len: n})
	icmp := b[L3Off+hlen:][:n]
	clear(icmp[:ICMPLen])
	icmp[0] = kind // code 0: no route to the network
	copy(icmp[ICMPLen:], quote)
	binary.BigEndian.PutUint16(icmp[2:], Checksum(icmp, sum))
	return Pad(b, L3Off+hlen+n)
}
