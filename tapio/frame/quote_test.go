package frame

import (
	"encoding/binary"
	"testing"
)

// tooBig returns the message of a router at src that a segment of 60 bytes to its guest is too big
// for mtu.
func tooBig(v6 bool, mtu uint16) (f []byte, want Quoted) {
	l3, etherType, proto := IPv4Len, uint16(EtherIPv4), uint8(ProtoICMP)
	want = Quoted{MTU: int(mtu), Src: Addr4([4]byte{192, 0, 2, 1}), Dst: Addr4([4]byte{10, 0, 2, 15}), SrcPort: 80, DstPort: 40001, Seq: 0x12345678}
	if v6 {
		l3, etherType, proto = IPv6Len, EtherIPv6, ProtoICMPv6
		want.Src, want.Dst = Addr{0x20, 1, 15: 1}, Addr{0xfd, 15: 15}
	}
	f = make([]byte, L3Off+2*l3+ICMPLen+TCPLen)
	PutEth(f, MAC{2}, MAC{4}, etherType)
	PutIP(f[L3Off:], &IP{Src: want.Dst, Dst: want.Src, Proto: proto, TTL: 64, Len: ICMPLen + l3 + TCPLen})
	icmp := f[L3Off+l3:]
	icmp[0], icmp[1] = 3, 4
	if v6 {
		icmp[0], icmp[1] = 2, 0
	}
	binary.BigEndian.PutUint16(icmp[6:], mtu)
	PutIP(icmp[ICMPLen:], &IP{Src: want.Src, Dst: want.Dst, Proto: ProtoTCP, TTL: 64, Len: TCPLen})
	PutTCP(icmp[ICMPLen+l3:], &TCPFields{SrcPort: want.SrcPort, DstPort: want.DstPort, Seq: want.Seq, Flags: ACK})
	return f, want
}

func TestQuotedTCP(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		f, want := tooBig(v6, 1300)
		var p Packet
		if why := Parse(f, &p); why != OK || p.Kind != TooBig {
			t.Fatalf("IPv6 %v: %v, %+v", v6, why, p)
		}
		if got, ok := QuotedTCP(f, &p); !ok || got != want {
			t.Errorf("IPv6 %v: %+v, %v, want %+v", v6, got, ok, want)
		}
		for cut := p.Payload; cut < p.End-TCPLen+8; cut++ {
			q := p
			q.End = cut
			if _, ok := QuotedTCP(f, &q); ok {
				t.Errorf("IPv6 %v: taken with %d bytes quoted", v6, cut-p.Payload)
			}
		}
	}
}

// FuzzQuotedTCP: whatever a message quotes is read within it.
func FuzzQuotedTCP(f *testing.F) {
	for _, v6 := range []bool{false, true} {
		b, _ := tooBig(v6, 1300)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var p Packet
		if Parse(b, &p) == OK && p.Kind == TooBig {
			if q, ok := QuotedTCP(b[:p.End:p.End], &p); ok && (q.MTU < 0 || q.MTU > 65535 || Is4(&q.Src) == p.V6) {
				t.Errorf("%+v", q)
			}
		}
	})
}
