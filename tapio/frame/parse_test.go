package frame

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

var (
	guestMAC = MAC{2, 0, 0, 0, 0, 1}
	ourMAC   = MAC{2, 0, 0, 0, 0, 2}
	guest4   = netip.MustParseAddr("192.0.2.10")
	remote4  = netip.MustParseAddr("198.51.100.20")
	guest6   = netip.MustParseAddr("2001:db8::10")
	remote6  = netip.MustParseAddr("2001:db8:1::20")
)

// build makes a frame out of layers as an independent encoder writes them.
func build(t testing.TB, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, opts, ls...); err != nil {
		t.Fatal(err)
	}
	return append(make([]byte, VnetLen), buf.Bytes()...)
}

func eth(etherType layers.EthernetType) *layers.Ethernet {
	return &layers.Ethernet{SrcMAC: guestMAC[:], DstMAC: ourMAC[:], EthernetType: etherType}
}

func ip4(proto layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{Version: 4, TTL: 64, TOS: 8, Flags: layers.IPv4DontFragment, Protocol: proto,
		SrcIP: guest4.AsSlice(), DstIP: remote4.AsSlice()}
}

func ip6(proto layers.IPProtocol) *layers.IPv6 {
	return &layers.IPv6{Version: 6, HopLimit: 63, TrafficClass: 4, FlowLabel: 0x12345, NextHeader: proto,
		SrcIP: guest6.AsSlice(), DstIP: remote6.AsSlice()}
}

func tcp(ip gopacket.NetworkLayer) *layers.TCP {
	l := &layers.TCP{SrcPort: 40000, DstPort: 80, Seq: 1000, Ack: 2000, ACK: true, PSH: true, Window: 500,
		Options: []layers.TCPOption{{OptionType: layers.TCPOptionKindNop}, {OptionType: layers.TCPOptionKindNop},
			{OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10, OptionData: make([]byte, 8)}}}
	l.SetNetworkLayerForChecksum(ip)
	return l
}

func udp(ip gopacket.NetworkLayer) *layers.UDP {
	l := &layers.UDP{SrcPort: 40000, DstPort: 53}
	l.SetNetworkLayerForChecksum(ip)
	return l
}

func echo6(ip gopacket.NetworkLayer) []gopacket.SerializableLayer {
	l := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(128, 0)}
	l.SetNetworkLayerForChecksum(ip)
	return []gopacket.SerializableLayer{l, &layers.ICMPv6Echo{Identifier: 77, SeqNumber: 3}}
}

func tcp4(t testing.TB) []byte {
	ip := ip4(6)
	return build(t, eth(EtherIPv4), ip, tcp(ip), gopacket.Payload("hello, world"))
}

func tcp6(t testing.TB) []byte {
	ip := ip6(6)
	return build(t, eth(EtherIPv6), ip, tcp(ip), gopacket.Payload("hello, world"))
}

func udp4(t testing.TB) []byte {
	ip := ip4(17)
	return build(t, eth(EtherIPv4), ip, udp(ip), gopacket.Payload("hello, world"))
}

// long is a datagram with n bytes of payload.
func long(t testing.TB, n int) []byte {
	ip := ip4(17)
	return build(t, eth(EtherIPv4), ip, udp(ip), gopacket.Payload(make([]byte, n)))
}

func udp6(t testing.TB) []byte {
	ip := ip6(17)
	return build(t, eth(EtherIPv6), ip, udp(ip), gopacket.Payload("hello, world"))
}

func icmp4(t testing.TB) []byte {
	return build(t, eth(EtherIPv4), ip4(1),
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 77, Seq: 3}, gopacket.Payload("hello, world"))
}

func icmp6(t testing.TB) []byte {
	ip := ip6(58)
	ls := append([]gopacket.SerializableLayer{eth(EtherIPv6), ip}, echo6(ip)...)
	return build(t, append(ls, gopacket.Payload("hello, world"))...)
}

func arp(t testing.TB) []byte {
	return build(t, eth(EtherARP), &layers.ARP{AddrType: 1, Protocol: EtherIPv4, HwAddressSize: 6, ProtAddressSize: 4,
		Operation: 1, SourceHwAddress: guestMAC[:], SourceProtAddress: guest4.AsSlice(),
		DstHwAddress: make([]byte, 6), DstProtAddress: remote4.AsSlice()})
}

func ns(t testing.TB) []byte {
	ip := ip6(58)
	ip.HopLimit = 255
	l := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(135, 0)}
	l.SetNetworkLayerForChecksum(ip)
	return build(t, eth(EtherIPv6), ip, l, &layers.ICMPv6NeighborSolicitation{TargetAddress: net.IP(remote6.AsSlice())})
}

// withOptions puts IPv6 extension headers between the IPv6 header and the rest of f.
func withOptions(f []byte, first uint8, ext []byte) []byte {
	const end = L3Off + IPv6Len
	b := append([]byte{}, f[:end]...)
	b = append(append(b, ext...), f[end:]...)
	b[L3Off+6] = first
	binary.BigEndian.PutUint16(b[L3Off+4:], uint16(len(b)-end))
	return b
}

// set returns a copy of b with bytes changed from offset off on.
func set(b []byte, off int, v ...byte) []byte {
	b = append([]byte{}, b...)
	copy(b[off:], v)
	return b
}

func vnet(b []byte, v Vnet) []byte {
	b = append([]byte{}, b...)
	PutVnet(b, v)
	return b
}

func TestParse(t *testing.T) {
	hello := len("hello, world")
	p4 := Packet{Src: AddrOf(guest4), Dst: AddrOf(remote4), TTL: 64, TOS: 8, L3: L3Off, L4: L3Off + 20}
	p6 := Packet{Src: AddrOf(guest6), Dst: AddrOf(remote6), TTL: 63, TOS: 4, FlowLabel: 0x12345, V6: true, L3: L3Off, L4: L3Off + 40}
	with := func(p Packet, k Kind, proto uint8, src, dst uint16, hlen int) Packet {
		p.Kind, p.Proto, p.SrcPort, p.DstPort = k, proto, src, dst
		p.Payload = p.L4 + hlen
		p.End = p.Payload + hello
		return p
	}
	shift := func(p Packet, n int) Packet {
		p.L4, p.Payload, p.End = p.L4+n, p.Payload+n, p.End+n
		return p
	}
	gso := func(p Packet, n uint16) Packet { p.GSO = n; return p }
	t4, t6 := with(p4, TCP, 6, 40000, 80, 32), with(p6, TCP, 6, 40000, 80, 32)
	u4, u6 := with(p4, UDP, 17, 40000, 53, 8), with(p6, UDP, 17, 40000, 53, 8)
	e4, e6 := with(p4, ICMPEcho, 1, 77, 0, 8), with(p6, ICMPv6Echo, 58, 77, 0, 8)
	many := gso(u4, 2)
	many.End = many.Payload + 256
	nd := p6
	nd.Kind, nd.Proto, nd.TTL, nd.Payload, nd.End = NDP, 58, 255, p6.L4+8, L3Off+40+24

	v4opts := ip4(6)
	v4opts.Options = []layers.IPv4Option{{OptionType: 1}, {OptionType: 1}, {OptionType: 1}, {OptionType: 0}}

	for _, tt := range []struct {
		name string
		in   []byte
		want Packet
	}{
		{"tcp over ipv4", tcp4(t), t4},
		{"tcp over ipv6", tcp6(t), t6},
		{"udp over ipv4", udp4(t), u4},
		{"udp over ipv6", udp6(t), u6},
		{"echo over ipv4", icmp4(t), e4},
		{"echo over ipv6", icmp6(t), e6},
		{"neighbour solicitation", ns(t), nd},
		{"arp", arp(t), Packet{Kind: ARP, L3: L3Off, L4: L3Off, Payload: L3Off, End: L3Off + 46}},
		{"ipv4 padding trimmed", append(udp4(t), 0, 0, 0, 0), u4},
		{"ipv4 options", build(t, eth(EtherIPv4), v4opts, tcp(v4opts), gopacket.Payload("hello, world")), shift(t4, 4)},
		{"udp length ignored", set(udp4(t), u4.L4+4, 0xff, 0xff), u4},
		{"dhcp from unspecified", set(set(udp4(t), L3Off+12, 0, 0, 0, 0, 255, 255, 255, 255), u4.L4+2, 0, 67),
			func() Packet {
				p := u4
				p.Src, p.Dst, p.DstPort = Addr4([4]byte{}), Addr4([4]byte{255, 255, 255, 255}), 67
				return p
			}()},
		{"udp to multicast", set(udp4(t), L3Off+16, 224, 0, 0, 251), func() Packet {
			p := u4
			p.Dst = Addr4([4]byte{224, 0, 0, 251})
			return p
		}()},
		{"hop-by-hop", withOptions(tcp6(t), 0, []byte{6, 0, 1, 4, 0, 0, 0, 0}), shift(t6, 8)},
		{"two extension headers", withOptions(udp6(t), 0, append([]byte{60, 0, 1, 4, 0, 0, 0, 0, 17, 1}, make([]byte, 14)...)), shift(u6, 24)},
		{"atomic fragment", withOptions(udp6(t), 44, []byte{17, 0xee, 0, 0, 1, 2, 3, 4}), shift(u6, 8)},
		{"authentication header", withOptions(udp6(t), 51, append([]byte{17, 1}, make([]byte, 10)...)), shift(u6, 12)},
		{"tso", vnet(tcp4(t), Vnet{Flags: NeedsCsum, GSOType: GSOTCPv4, GSOSize: 8, HdrLen: 66, CsumStart: 34, CsumOffset: 16}), gso(t4, 8)},
		{"tso with ecn", vnet(tcp6(t), Vnet{Flags: NeedsCsum, GSOType: GSOTCPv6 | GSOECN, GSOSize: 9, HdrLen: 86, CsumStart: 54, CsumOffset: 16}), gso(t6, 9)},
		{"uso", vnet(udp6(t), Vnet{Flags: NeedsCsum, GSOType: GSOUDP, GSOSize: 5, HdrLen: 62, CsumStart: 54, CsumOffset: 6}), gso(u6, 5)},
		{"128 datagrams of two bytes", vnet(long(t, 256), Vnet{Flags: NeedsCsum, GSOType: GSOUDP, GSOSize: 2, HdrLen: 42, CsumStart: 34, CsumOffset: 6}), many},
		{"checksum at the very end", vnet(udp4(t), Vnet{Flags: NeedsCsum, CsumStart: 34, CsumOffset: 24}), u4},
		{"checksum verified", vnet(tcp4(t), Vnet{Flags: DataValid}), t4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := Packet{GSO: 9, FlowLabel: 9, SrcPort: 9, DstPort: 9, V6: true}
			if r := Parse(tt.in, &got); r != OK {
				t.Fatalf("Parse = %v", r)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

// What stands between an IPv6 header and what we carry is skipped, whatever it says.
func TestParseExtensionHeaders(t *testing.T) {
	var plain Packet
	if r := Parse(tcp6(t), &plain); r != OK {
		t.Fatal(r)
	}
	for name, number := range map[string]uint8{
		"hop-by-hop": 0, "routing": 43, "destination": 60, "mobility": 135, "HIP": 139, "Shim6": 140, "experiment": 253, "another experiment": 254,
	} {
		t.Run(name, func(t *testing.T) {
			for _, units := range []uint8{0, 1, 5} {
				ext := make([]byte, 8*(int(units)+1))
				ext[0], ext[1] = 6, units
				want, got := plain, Packet{}
				want.L4, want.Payload, want.End = want.L4+len(ext), want.Payload+len(ext), want.End+len(ext)
				if r := Parse(withOptions(tcp6(t), number, ext), &got); r != OK {
					t.Fatal(r)
				}
				if d := cmp.Diff(want, got); d != "" {
					t.Errorf("-want +got:\n%s", d)
				}
			}
		})
	}
}

func TestParseFragments(t *testing.T) {
	for _, tt := range []struct {
		name    string
		in      []byte
		v6      bool
		id      uint32
		off, l4 int
		more    bool
	}{
		{"first over IPv4", set(udp4(t), L3Off+4, 0x12, 0x34, 0x20, 0), false, 0x1234, 0, L3Off + 20, true},
		{"last over IPv4", set(tcp4(t), L3Off+4, 0, 7, 0x1f, 0xff), false, 7, 65528, L3Off + 20, false},
		{"of a protocol that is not carried", set(set(tcp4(t), L3Off+9, 2), L3Off+4, 0, 7, 0, 1), false, 7, 8, L3Off + 20, false},
		{"first over IPv6", withOptions(udp6(t), 44, []byte{17, 0, 0, 1, 1, 2, 3, 4}), true, 0x01020304, 0, L3Off + 48, true},
		{"last over IPv6", withOptions(udp6(t), 44, []byte{17, 0, 0xff, 0xf8, 1, 2, 3, 4}), true, 0x01020304, 65528, L3Off + 48, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var p Packet
			if r := Parse(tt.in, &p); r != OK || p.Kind != Fragment || p.V6 != tt.v6 || p.L4 != tt.l4 {
				t.Fatalf("Parse = %v, %+v", r, p)
			}
			if id, off, more := p.Fragment(tt.in); id != tt.id || off != tt.off || more != tt.more {
				t.Errorf("Fragment = %#x, %d, %v", id, off, more)
			}
		})
	}
}

func TestParseDrops(t *testing.T) {
	const l4, l46 = L3Off + 20, L3Off + 40
	short4 := func(b []byte, n int) []byte { // cuts an IPv4 packet to n bytes behind its header
		b = append([]byte{}, b[:l4+n]...)
		binary.BigEndian.PutUint16(b[L3Off+2:], uint16(20+n))
		return b
	}
	short6 := func(b []byte, n int) []byte {
		b = append([]byte{}, b[:l46+n]...)
		binary.BigEndian.PutUint16(b[L3Off+4:], uint16(n))
		return b
	}
	addr := func(s string) []byte { return netip.MustParseAddr(s).AsSlice() }
	many := make([]byte, 1024)
	for i := 0; i < len(many); i += 8 {
		many[i] = 60
	}
	type row struct {
		name string
		in   []byte
		want Reason
	}
	rows := []row{
		{"empty", nil, DropShort},
		{"ethernet header cut off", tcp4(t)[:L3Off-1], DropShort},
		{"more than 64 KiB", make([]byte, MaxFrame+1), DropLong},
		{"vlan", set(tcp4(t), VnetLen+12, 0x81, 0), DropVLAN},
		{"qinq", set(tcp4(t), VnetLen+12, 0x88, 0xa8), DropVLAN},
		{"lldp", set(tcp4(t), VnetLen+12, 0x88, 0xcc), DropEtherType},
		{"802.3 length", set(tcp4(t), VnetLen+12, 0, 60), DropEtherType},
		{"arp cut off", arp(t)[:L3Off+27], DropARP},

		{"ipv4 nothing", tcp4(t)[:L3Off], DropIPv4Header},
		{"ipv4 cut off", tcp4(t)[:L3Off+19], DropIPv4Header},
		{"ipv4 version", set(tcp4(t), L3Off, 0x65), DropIPv4Header},
		{"ipv4 header length 16", set(tcp4(t), L3Off, 0x44), DropIPv4Header},
		{"ipv4 header length beyond frame", set(tcp4(t), L3Off, 0x4f)[:L3Off+40], DropIPv4Header},
		{"ipv4 total length below header", set(tcp4(t), L3Off+2, 0, 19), DropIPv4Length},
		{"ipv4 total length beyond frame", set(tcp4(t), L3Off+2, 0xff, 0xff), DropIPv4Length},
		{"ipv4 truncated", tcp4(t)[:L3Off+50], DropIPv4Length},
		{"ipv4 fragment from 0.0.0.0", set(set(udp4(t), L3Off+12, 0, 0, 0, 0), L3Off+6, 0x20, 0), DropSource},
		{"ipv4 fragment from loopback", set(set(udp4(t), L3Off+12, 127, 0, 0, 1), L3Off+6, 0x20, 0), DropLoopback},
		{"ipv4 reserved flag", set(tcp4(t), L3Off+6, 0x80, 0), DropIPv4Fragment},
		{"ipv4 loopback source", set(tcp4(t), L3Off+12, 127, 0, 0, 1), DropLoopback},
		{"ipv4 loopback destination", set(tcp4(t), L3Off+16, 127, 1, 2, 3), DropLoopback},
		{"ipv4 multicast source", set(udp4(t), L3Off+12, 224, 0, 0, 1), DropSource},
		{"ipv4 broadcast source", set(udp4(t), L3Off+12, 255, 255, 255, 255), DropSource},
		{"tcp from 0.0.0.0", set(tcp4(t), L3Off+12, 0, 0, 0, 0), DropSource},
		{"udp from 0.0.0.0", set(udp4(t), L3Off+12, 0, 0, 0, 0), DropSource},
		{"echo from 0.0.0.0", set(icmp4(t), L3Off+12, 0, 0, 0, 0), DropSource},
		{"tcp to 0.0.0.0", set(tcp4(t), L3Off+16, 0, 0, 0, 0), DropDestination},
		{"tcp to multicast", set(tcp4(t), L3Off+16, 239, 0, 0, 1), DropMulticast},
		{"tcp to broadcast", set(tcp4(t), L3Off+16, 255, 255, 255, 255), DropMulticast},
		{"echo to multicast", set(icmp4(t), L3Off+16, 224, 0, 0, 1), DropMulticast},
		{"igmp", set(tcp4(t), L3Off+9, 2), DropProtocol},
		{"icmpv6 over ipv4", set(tcp4(t), L3Off+9, 58), DropProtocol},

		{"ipv6 nothing", tcp6(t)[:L3Off], DropIPv6Header},
		{"ipv6 cut off", tcp6(t)[:L3Off+39], DropIPv6Header},
		{"ipv6 version", set(tcp6(t), L3Off, 0x45), DropIPv6Header},
		{"ipv6 padding", append(tcp6(t), 0), DropIPv6Length},
		{"ipv6 truncated", tcp6(t)[:L3Off+70], DropIPv6Length},
		{"ipv6 jumbogram", set(tcp6(t), L3Off+4, 0, 0), DropIPv6Length},
		{"ipv6 loopback source", set(tcp6(t), L3Off+8, addr("::1")...), DropLoopback},
		{"ipv6 loopback destination", set(tcp6(t), L3Off+24, addr("::1")...), DropLoopback},
		{"ipv4-mapped loopback destination", set(tcp6(t), L3Off+24, addr("::ffff:127.0.0.1")...), DropLoopback},
		{"ipv4-mapped destination", set(tcp6(t), L3Off+24, addr("::ffff:192.0.2.1")...), DropMapped},
		{"ipv4-mapped source", set(udp6(t), L3Off+8, addr("::ffff:192.0.2.1")...), DropMapped},
		{"ipv6 multicast source", set(udp6(t), L3Off+8, addr("ff02::1")...), DropSource},
		{"udp from ::", set(udp6(t), L3Off+8, addr("::")...), DropSource},
		{"tcp from ::", set(tcp6(t), L3Off+8, addr("::")...), DropSource},
		{"echo from ::", set(icmp6(t), L3Off+8, addr("::")...), DropSource},
		{"tcp to ::", set(tcp6(t), L3Off+24, addr("::")...), DropDestination},
		{"tcp to ipv6 multicast", set(tcp6(t), L3Off+24, addr("ff0e::1")...), DropMulticast},
		{"echo to ipv6 multicast", set(icmp6(t), L3Off+24, addr("ff02::1")...), DropMulticast},
		{"icmp over ipv6", set(tcp6(t), L3Off+6, 1), DropProtocol},
		{"esp", set(tcp6(t), L3Off+6, 50), DropProtocol},
		{"no next header", set(tcp6(t), L3Off+6, 59), DropProtocol},
		{"hop-by-hop cut off", set(short6(tcp6(t), 7), L3Off+6, 0), DropIPv6Option},
		{"hop-by-hop beyond the end", withOptions(tcp6(t), 0, []byte{6, 200, 0, 0, 0, 0, 0, 0}), DropIPv6Option},
		{"authentication cut off", set(short6(tcp6(t), 7), L3Off+6, 51), DropIPv6Option},
		{"fragment header cut off", set(short6(tcp6(t), 7), L3Off+6, 44), DropIPv6Option},
		{"ipv6 fragment from ::", set(withOptions(udp6(t), 44, []byte{17, 0, 0, 1, 1, 2, 3, 4}), L3Off+8, addr("::")...), DropIPv6Fragment},
		{"ipv4 row of fragments", vnet(set(udp4(t), L3Off+6, 0x20, 0), Vnet{Flags: NeedsCsum, GSOType: GSOUDP, GSOSize: 5, HdrLen: 42, CsumStart: 34, CsumOffset: 6}), DropVnetGSO},
		{"endless extension headers", withOptions(udp6(t), 60, many), DropIPv6Option},
		{"extension header and nothing", set(short6(withOptions(tcp6(t), 0, []byte{6, 0, 1, 4, 0, 0, 0, 0}), 8), L3Off+6, 0), DropTCPShort},

		{"tcp header cut off", short4(tcp4(t), 19), DropTCPShort},
		{"tcp header cut off, with padding", append(short4(tcp4(t), 10), make([]byte, 20)...), DropTCPShort},
		{"tcp header cut off over ipv6", short6(tcp6(t), 19), DropTCPShort},
		{"tcp data offset 16", set(tcp4(t), l4+12, 0x40), DropTCPOffset},
		{"tcp options beyond the end", set(tcp4(t), l4+12, 0xf0), DropTCPOffset},
		{"tcp source port 0", set(tcp4(t), l4, 0, 0), DropPort},
		{"tcp destination port 0", set(tcp4(t), l4+2, 0, 0), DropPort},
		{"udp header cut off", short4(udp4(t), 7), DropUDPShort},
		{"udp header cut off over ipv6", short6(udp6(t), 0), DropUDPShort},
		{"udp source port 0", set(udp4(t), l4, 0, 0), DropPort},
		{"udp destination port 0", set(udp6(t), l46+2, 0, 0), DropPort},
		{"icmp header cut off", short4(icmp4(t), 7), DropICMPShort},
		{"icmpv6 header cut off", short6(icmp6(t), 7), DropICMPShort},
		{"echo reply", set(icmp4(t), l4, 0), DropICMPType},
		{"echo with a code", set(icmp4(t), l4+1, 1), DropICMPType},
		{"unreachable", set(icmp4(t), l4, 3), DropICMPType},
		{"mld report", set(icmp6(t), l46, 143), DropICMPType},
		{"redirect", set(icmp6(t), l46, 137), DropICMPType},

		{"checksum start beyond frame", vnet(tcp4(t), Vnet{Flags: NeedsCsum, CsumStart: 0xffff, CsumOffset: 16}), DropVnetOffset},
		{"checksum offset beyond frame", vnet(tcp4(t), Vnet{Flags: NeedsCsum, CsumStart: 34, CsumOffset: 0xffff}), DropVnetOffset},
		{"checksum field half outside", vnet(udp4(t), Vnet{Flags: NeedsCsum, CsumStart: 34, CsumOffset: 25}), DropVnetOffset},
		{"checksum in the ethernet header", vnet(udp4(t), Vnet{Flags: NeedsCsum, CsumStart: 0, CsumOffset: 6}), DropVnetOffset},
		{"segments of nothing", vnet(tcp4(t), Vnet{GSOType: GSOTCPv4}), DropVnetGSO},
		{"header length beyond frame", vnet(tcp4(t), Vnet{GSOType: GSOTCPv4, GSOSize: 8, HdrLen: 1000}), DropVnetOffset},
		{"segments of seven bytes", vnet(tcp4(t), Vnet{GSOType: GSOTCPv4, GSOSize: 7}), DropGSOSize},
		{"segments of a byte over ipv6", vnet(tcp6(t), Vnet{GSOType: GSOTCPv6, GSOSize: 1}), DropGSOSize},
		{"129 datagrams", vnet(long(t, 258), Vnet{GSOType: GSOUDP, GSOSize: 2}), DropGSOSize},
		{"129 datagrams, the last one shorter", vnet(long(t, 257), Vnet{GSOType: GSOUDP, GSOSize: 2}), DropGSOSize},
		{"tso 4 on ipv6", vnet(tcp6(t), Vnet{GSOType: GSOTCPv4, GSOSize: 1}), DropVnetGSO},
		{"tso 6 on ipv4", vnet(tcp4(t), Vnet{GSOType: GSOTCPv6, GSOSize: 1}), DropVnetGSO},
		{"tso on udp", vnet(udp4(t), Vnet{GSOType: GSOTCPv4, GSOSize: 1}), DropVnetGSO},
		{"uso on tcp", vnet(tcp4(t), Vnet{GSOType: GSOUDP, GSOSize: 1}), DropVnetGSO},
		{"uso on arp", vnet(arp(t), Vnet{GSOType: GSOUDP, GSOSize: 1}), DropVnetGSO},
		{"uso with ecn", vnet(udp4(t), Vnet{GSOType: GSOUDP | GSOECN, GSOSize: 1}), DropVnetGSO},
		{"ufo", vnet(udp4(t), Vnet{GSOType: 3, GSOSize: 1}), DropVnetGSO},
		{"ecn alone", vnet(tcp4(t), Vnet{GSOType: GSOECN, GSOSize: 1}), DropVnetGSO},
	}
	seen := map[Reason]bool{}
	for _, tt := range rows {
		seen[tt.want] = true
		t.Run(tt.name, func(t *testing.T) {
			var p Packet
			// A tight capacity turns a read past the frame into a panic.
			if r := Parse(tt.in[:len(tt.in):len(tt.in)], &p); r != tt.want {
				t.Errorf("Parse = %v, want %v", r, tt.want)
			}
		})
	}
	names := map[string]bool{}
	for r := Reason(1); r < NumReasons; r++ {
		if r != DropFamily && !seen[r] {
			t.Errorf("no row for %v", r)
		}
		if names[r.String()] || r.String() == "" || r.String() == "unknown" {
			t.Errorf("reason %d has no name of its own: %q", r, r)
		}
		names[r.String()] = true
	}
}

func TestParsePrefixes(t *testing.T) {
	for _, b := range seeds(t) {
		for n := range b {
			var p Packet
			Parse(b[:n:n], &p)
		}
	}
}

func seeds(t testing.TB) [][]byte {
	return [][]byte{tcp4(t), tcp6(t), udp4(t), udp6(t), icmp4(t), icmp6(t), arp(t), ns(t),
		withOptions(udp6(t), 44, []byte{17, 0, 0, 0, 1, 2, 3, 4}),
		vnet(udp6(t), Vnet{Flags: NeedsCsum, GSOType: GSOUDP, GSOSize: 5, HdrLen: 62, CsumStart: 54, CsumOffset: 6})}
}

func FuzzParse(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		b = b[:len(b):len(b)]
		var p Packet
		if Parse(b, &p) != OK {
			return
		}
		if p.Kind == Other {
			t.Error("no kind")
		}
		if p.L3 != L3Off || p.L4 < p.L3 || p.Payload < p.L4 || p.End < p.Payload || p.End > len(b) {
			t.Errorf("offsets %d %d %d %d of %d", p.L3, p.L4, p.Payload, p.End, len(b))
		}
		if p.Payload > 0xffff || p.L4 > 0xffff {
			t.Errorf("offsets beyond 16 bits")
		}
		if p.Kind == ARP {
			return
		}
		if IsLoopback(&p.Src) || IsLoopback(&p.Dst) || Is4(&p.Src) == p.V6 || Is4(&p.Dst) == p.V6 {
			t.Errorf("addresses %v %v", NetIP(p.Src), NetIP(p.Dst))
		}
		if p.GSO != 0 && p.Kind != TCP && p.Kind != UDP {
			t.Errorf("kind %d in segments", p.Kind)
		}
		switch p.Kind {
		case TCP:
			ParseSYNOptions(b[p.L4+TCPLen : p.Payload])
			fallthrough
		case UDP:
			if p.SrcPort == 0 || p.DstPort == 0 {
				t.Error("port 0")
			}
		}
		// An independent decoder that finds the same layers finds the same values.
		pkt := gopacket.NewPacket(b[VnetLen:], layers.LayerTypeEthernet, gopacket.NoCopy)
		if l, ok := pkt.Layer(layers.LayerTypeUDP).(*layers.UDP); ok && p.Kind == UDP {
			if uint16(l.SrcPort) != p.SrcPort || uint16(l.DstPort) != p.DstPort {
				t.Errorf("ports %d %d, gopacket %v", p.SrcPort, p.DstPort, l)
			}
		}
	})
}

func TestParseAllocs(t *testing.T) {
	for _, b := range seeds(t) {
		var p Packet
		if n := testing.AllocsPerRun(100, func() { Parse(b, &p) }); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	for _, bb := range []struct {
		name string
		in   []byte
	}{
		{"tcp4", vnet(tcp4(b), Vnet{Flags: NeedsCsum, GSOType: GSOTCPv4, GSOSize: 8, HdrLen: 66, CsumStart: 34, CsumOffset: 16})},
		{"tcp6", tcp6(b)}, {"udp4", udp4(b)}, {"arp", arp(b)},
	} {
		b.Run(bb.name, func(b *testing.B) {
			var p Packet
			for b.Loop() {
				if Parse(bb.in, &p) != OK {
					b.Fatal("dropped")
				}
			}
		})
	}
}
