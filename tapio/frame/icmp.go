package frame

import "encoding/binary"

// Payload bytes of the original datagram that an ICMP error quotes.
const (
	quote4 = 8
	quote6 = 1232
)

// ICMPErrorLen is the room PutICMPError needs: the longest frame it writes.
const ICMPErrorLen = L3Off + IPv6Len + ICMPLen + IPv6Len + UDPLen + quote6

// ICMPError is an ICMP or ICMPv6 error message (RFC 792, RFC 4443) to the guest about a UDP
// datagram it sent. All addresses are of the same IP version.
type ICMPError struct {
	SrcMAC, DstMAC MAC
	Src            Addr // who reports the error
	Type, Code     uint8
	Info           uint32 // next-hop MTU where the type has one, else 0

	Guest, Remote         Addr // of the datagram as the guest sent it
	GuestPort, RemotePort uint16
	FlowLabel             uint32
	Payload               []byte // as much of it as is known; lent for the call
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
	payload := e.Payload[:min(len(e.Payload), quote)]
	icmp := b[L3Off+hlen:]
	n := ICMPLen + hlen + UDPLen + len(payload)

	PutVnet(b, Vnet{})
	PutEth(b, e.DstMAC, e.SrcMAC, etherType)
	PutIP(b[L3Off:], &IP{Src: e.Src, Dst: e.Guest, Proto: proto, TTL: 255, DF: true, FlowLabel: e.FlowLabel, Len: n})
	icmp[0], icmp[1], icmp[2], icmp[3] = e.Type, e.Code, 0, 0
	binary.BigEndian.PutUint32(icmp[4:], e.Info)
	orig := icmp[ICMPLen:]
	PutIP(orig, &IP{Src: e.Guest, Dst: e.Remote, Proto: ProtoUDP, TTL: 255, DF: true, Len: UDPLen + len(payload)})
	copy(orig[hlen+UDPLen:], payload)

	PutUDP(orig[hlen:], e.GuestPort, e.RemotePort, len(payload), 0)
	var sum uint32
	if !v4 {
		sum = PseudoSum(&e.Src, &e.Guest, ProtoICMPv6, n)
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
