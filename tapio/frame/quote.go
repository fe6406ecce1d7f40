package frame

import "encoding/binary"

// Quoted is the TCP segment of ours that a router behind the guest could not forward.
type Quoted struct {
	MTU              int // of the next hop; 0 if the router does not say (RFC 1191, section 5)
	Src, Dst         Addr
	SrcPort, DstPort uint16
	Seq              uint32
}

// QuotedTCP returns the segment that b, which p was made from and which is of kind TooBig, quotes
// (RFC 1191, section 4, RFC 4443, section 3.2). It returns false if that is something else, or cut
// off before the sequence number.
func QuotedTCP(b []byte, p *Packet) (q Quoted, ok bool) {
	icmp, ip := b[p.L4:p.Payload], b[p.Payload:p.End]
	l4 := IPv6Len
	if p.V6 {
		if len(ip) < IPv6Len || ip[0]>>4 != 6 || ip[6] != ProtoTCP {
			return q, false
		}
		q.MTU = int(min(binary.BigEndian.Uint32(icmp[4:]), 65535))
		q.Src, q.Dst = Addr(ip[8:24]), Addr(ip[24:40])
	} else {
		if len(ip) < IPv4Len || ip[0]>>4 != 4 || ip[9] != ProtoTCP {
			return q, false
		}
		l4 = int(ip[0]&15) * 4
		q.MTU = int(binary.BigEndian.Uint16(icmp[6:]))
		q.Src, q.Dst = Addr4([4]byte(ip[12:16])), Addr4([4]byte(ip[16:20]))
	}
	if l4 < IPv4Len || len(ip) < l4+8 {
		return q, false
	}
	tcp := ip[l4:]
	q.SrcPort, q.DstPort = binary.BigEndian.Uint16(tcp), binary.BigEndian.Uint16(tcp[2:])
	q.Seq = binary.BigEndian.Uint32(tcp[4:])
	return q, true
}
