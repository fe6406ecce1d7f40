package actors

import (
	"net/netip"
	"testing"

	"fusilli/tapio/frame"
)

// TestAddressesThatCannotBe: what comes from or goes to an address or port that nobody can have
// begins no flow, and nobody is told.
func TestAddressesThatCannotBe(t *testing.T) {
	for _, fam := range families {
		alias := fam.alias.String()
		ok := fam.guest().String()
		none, group, all := "0.0.0.0", "224.0.0.99", "255.255.255.255"
		if fam.alias.Is6() {
			none, group, all = "::", "ff02::99", "ff02::1"
		}
		for _, tt := range []struct {
			name     string
			src, dst string
			from, to uint16
			udp      bool // UDP too
		}{
			{"from no address", none, alias, 40000, 9, true},
			{"from a group", group, alias, 40000, 9, true},
			{"from everybody", all, alias, 40000, 9, true},
			{"to no address", ok, none, 40000, 9, true},
			{"to a group", ok, group, 40000, 9, false},
			{"to everybody", ok, all, 40000, 9, false},
			{"from port 0", ok, alias, 0, 9, true},
			{"to port 0", ok, alias, 40000, 0, true},
		} {
			t.Run(fam.name+" "+tt.name, func(t *testing.T) {
				b := newBed(t, options{})
				before := b.Counters()
				tcp, udp := before.TCP.Load(), before.UDP.Load()
				src, dst := frame.AddrOf(netip.MustParseAddr(tt.src)), frame.AddrOf(netip.MustParseAddr(tt.dst))
				send := func(proto uint8, l4 []byte) {
					f := make([]byte, frame.L3Off+frame.IPv6Len+len(l4))
					etherType := uint16(frame.EtherIPv4)
					if fam.alias.Is6() {
						etherType = frame.EtherIPv6
					}
					frame.PutEth(f, ourMAC, guestMAC, etherType)
					at := frame.L3Off + frame.PutIP(f[frame.L3Off:], &frame.IP{Src: src, Dst: dst, Proto: proto, TTL: 64, Len: len(l4)})
					b.link.Write(f[:at+copy(f[at:], l4)])
				}
				syn := make([]byte, frame.TCPLen)
				frame.PutTCP(syn, &frame.TCPFields{SrcPort: tt.from, DstPort: tt.to, Seq: 1, Flags: frame.SYN, Window: 4096})
				send(frame.ProtoTCP, syn)
				if tt.udp {
					d := make([]byte, frame.UDPLen+4)
					frame.PutUDP(d, tt.from, tt.to, 4, 0)
					send(frame.ProtoUDP, d)
				}
				// What works comes behind it.
				l := listen(t, fam)
				g, h := b.connect(fam, l)
				g.Close()
				h.Close()
				b.idle()
				c := b.Counters()
				if c.TCP.Load() != tcp+1 || c.UDP.Load() != udp || c.Panics.Load() != 0 {
					t.Errorf("%d connections, %d flows of UDP", c.TCP.Load()-tcp, c.UDP.Load()-udp)
				}
			})
		}
	}
}
