package neigh

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	mdlayher "github.com/mdlayher/ndp"

	"fusilli/internal/dnsname"
	"fusilli/tapio/frame"
)

var (
	guestMAC = frame.MAC{2, 0, 0, 0, 0, 1}
	guest4   = netip.MustParseAddr("192.0.2.10")
	guest6   = netip.MustParseAddr("fe80::10")
	global6  = netip.MustParseAddr("2001:db8:1:2:3:4:5:6")
	any6     = netip.MustParseAddr("2001:db8:9::9")

	responder = &Responder{
		MAC:       frame.MAC{0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55},
		Guest4:    frame.AddrOf(guest4),
		LinkLocal: frame.AddrOf(netip.MustParseAddr("fe80::1")),
		Prefix:    frame.AddrOf(global6),
		MTU:       65520,
		Managed:   true,
	}
)

func build(t testing.TB, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		t.Fatal(err)
	}
	return append(make([]byte, frame.VnetLen), buf.Bytes()...)
}

func arp(t testing.TB, op uint16, from, to string) []byte {
	return build(t, &layers.Ethernet{SrcMAC: guestMAC[:], DstMAC: frame.Broadcast[:], EthernetType: layers.EthernetTypeARP},
		&layers.ARP{AddrType: 1, Protocol: 0x0800, HwAddressSize: 6, ProtAddressSize: 4, Operation: op,
			SourceHwAddress: guestMAC[:], SourceProtAddress: netip.MustParseAddr(from).AsSlice(),
			DstHwAddress: make([]byte, 6), DstProtAddress: netip.MustParseAddr(to).AsSlice()})
}

// ndp makes an NDP message out of its bytes behind the checksum.
func ndp(t testing.TB, typ uint8, src netip.Addr, body ...[]byte) []byte {
	ip := &layers.IPv6{Version: 6, HopLimit: 255, NextHeader: 58, SrcIP: src.AsSlice(), DstIP: netip.MustParseAddr("ff02::2").AsSlice()}
	l := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(typ, 0)}
	l.SetNetworkLayerForChecksum(ip)
	return build(t, &layers.Ethernet{SrcMAC: guestMAC[:], DstMAC: allNodesMAC[:], EthernetType: layers.EthernetTypeIPv6},
		ip, l, gopacket.Payload(bytes.Join(body, nil)))
}

var (
	zero4    = make([]byte, 4)
	slla     = append([]byte{1, 1}, guestMAC[:]...)
	nonce    = []byte{14, 1, 1, 2, 3, 4, 5, 6}
	unspec   = netip.IPv6Unspecified()
	allNodeA = netip.MustParseAddr("ff02::1")
)

func set(b []byte, off int, v ...byte) []byte {
	b = bytes.Clone(b)
	copy(b[off:], v)
	return b
}

func TestARP(t *testing.T) {
	const l3 = frame.L3Off
	for _, tt := range []struct {
		name  string
		in    []byte
		reply string // address that is answered for; "bad": malformed
	}{
		{"gateway", arp(t, 1, "192.0.2.10", "192.0.2.1"), "192.0.2.1"},
		{"any other address", arp(t, 1, "192.0.2.10", "203.0.113.99"), "203.0.113.99"},
		{"from another address", arp(t, 1, "192.0.2.77", "192.0.2.1"), "192.0.2.1"},
		{"probe for another address", arp(t, 1, "0.0.0.0", "192.0.2.1"), "192.0.2.1"},
		{"with padding", append(arp(t, 1, "192.0.2.10", "192.0.2.1"), make([]byte, 40)...), "192.0.2.1"},
		{"probe for the guest's own", arp(t, 1, "0.0.0.0", "192.0.2.10"), ""},
		{"question for the guest's own", arp(t, 1, "192.0.2.77", "192.0.2.10"), ""},
		{"announcement", arp(t, 1, "192.0.2.77", "192.0.2.77"), ""},
		{"announcement of the guest's own", arp(t, 1, "192.0.2.10", "192.0.2.10"), ""},
		{"reply", arp(t, 2, "192.0.2.10", "192.0.2.1"), ""},
		{"no operation", arp(t, 0, "192.0.2.10", "192.0.2.1"), "bad"},
		{"hardware type", set(arp(t, 1, "192.0.2.10", "192.0.2.1"), l3, 0, 6), "bad"},
		{"protocol type", set(arp(t, 1, "192.0.2.10", "192.0.2.1"), l3+2, 0x86, 0xdd), "bad"},
		{"hardware length", set(arp(t, 1, "192.0.2.10", "192.0.2.1"), l3+4, 8), "bad"},
		{"protocol length", set(arp(t, 1, "192.0.2.10", "192.0.2.1"), l3+5, 16), "bad"},
		{"from a group", set(arp(t, 1, "192.0.2.10", "192.0.2.1"), frame.VnetLen+6, 0xff), "bad"},
		{"cut off", arp(t, 1, "192.0.2.10", "192.0.2.1")[:l3+27], "bad"},
		{"empty", nil, "bad"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out := bytes.Repeat([]byte{0xaa}, ReplyLen)
			n := responder.ARP(tt.in, out)
			if want := map[string]int{"": 0, "bad": Malformed}; tt.reply == "" || tt.reply == "bad" {
				if n != want[tt.reply] {
					t.Errorf("ARP = %d, want %d", n, want[tt.reply])
				}
				return
			}
			if n != frame.MinFrame || !bytes.Equal(out[frame.L3Off+frame.ARPLen:n], make([]byte, n-frame.L3Off-frame.ARPLen)) {
				t.Fatalf("%d bytes: % x", n, out[:n])
			}
			pkt := gopacket.NewPacket(out[frame.VnetLen:n], layers.LayerTypeEthernet, gopacket.Default)
			e := pkt.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
			if !bytes.Equal(e.SrcMAC, responder.MAC[:]) || !bytes.Equal(e.DstMAC, guestMAC[:]) {
				t.Errorf("ethernet %v to %v", e.SrcMAC, e.DstMAC)
			}
			a := pkt.Layer(layers.LayerTypeARP).(*layers.ARP)
			q := gopacket.NewPacket(tt.in[frame.VnetLen:], layers.LayerTypeEthernet, gopacket.Default).Layer(layers.LayerTypeARP).(*layers.ARP)
			want := layers.ARP{AddrType: 1, Protocol: 0x0800, HwAddressSize: 6, ProtAddressSize: 4, Operation: 2,
				SourceHwAddress: responder.MAC[:], SourceProtAddress: netip.MustParseAddr(tt.reply).AsSlice(),
				DstHwAddress: guestMAC[:], DstProtAddress: q.SourceProtAddress}
			a.BaseLayer = layers.BaseLayer{}
			if d := cmp.Diff(want, *a); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

// reply has r answer in, and gopacket read and check the answer.
func reply(t *testing.T, r *Responder, in []byte) gopacket.Packet {
	t.Helper()
	var p frame.Packet
	if why := frame.Parse(in, &p); why != frame.OK {
		t.Fatalf("Parse = %v", why)
	}
	out := bytes.Repeat([]byte{0xaa}, ReplyLen)
	n := r.NDP(&p, in, out)
	if n <= 0 {
		return nil
	}
	if out := out[:frame.VnetLen]; !bytes.Equal(out, make([]byte, frame.VnetLen)) {
		t.Errorf("virtio_net_hdr % x", out)
	}
	pkt := gopacket.NewPacket(out[frame.VnetLen:n], layers.LayerTypeEthernet, gopacket.Default)
	if e := pkt.ErrorLayer(); e != nil {
		t.Fatal(e.Error())
	}
	pkt.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6).SetNetworkLayerForChecksum(pkt.NetworkLayer())
	if err, wrong := pkt.VerifyChecksums(); err != nil || len(wrong) > 0 {
		t.Errorf("checksums: %v, %v", err, wrong)
	}
	ip := pkt.NetworkLayer().(*layers.IPv6)
	if ip.HopLimit != 255 || !ip.SrcIP.Equal(netip.MustParseAddr("fe80::1").AsSlice()) {
		t.Errorf("ip %+v", ip)
	}
	if e := pkt.Layer(layers.LayerTypeEthernet).(*layers.Ethernet); !bytes.Equal(e.SrcMAC, responder.MAC[:]) {
		t.Errorf("ethernet source %v", e.SrcMAC)
	}
	return pkt
}

func destination(t *testing.T, pkt gopacket.Packet, mac frame.MAC, ip netip.Addr) {
	t.Helper()
	e := pkt.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
	if !bytes.Equal(e.DstMAC, mac[:]) || !pkt.NetworkLayer().(*layers.IPv6).DstIP.Equal(ip.AsSlice()) {
		t.Errorf("to %v, %v; want %v, %v", e.DstMAC, pkt.NetworkLayer().(*layers.IPv6).DstIP, mac, ip)
	}
}

func TestNeighbourSolicitation(t *testing.T) {
	const l4 = frame.L3Off + frame.IPv6Len
	target := any6.AsSlice()
	for _, tt := range []struct {
		name   string
		in     []byte
		target netip.Addr // zero: no reply
	}{
		{"any address", ndp(t, 135, guest6, zero4, target, slla), any6},
		{"from a global address", ndp(t, 135, global6, zero4, target, slla), any6},
		{"the guest's own address", ndp(t, 135, guest6, zero4, global6.AsSlice(), slla), global6},
		{"no option", ndp(t, 135, guest6, zero4, target), any6},
		{"several options", ndp(t, 135, guest6, zero4, target, nonce, slla), any6},
		{"duplicate address detection", ndp(t, 135, unspec, zero4, target, nonce), netip.Addr{}},
		{"hop limit 254", set(ndp(t, 135, guest6, zero4, target, slla), frame.L3Off+7, 254), netip.Addr{}},
		{"code 1", set(ndp(t, 135, guest6, zero4, target, slla), l4+1, 1), netip.Addr{}},
		{"no target", ndp(t, 135, guest6, zero4), netip.Addr{}},
		{"target cut off", ndp(t, 135, guest6, zero4, target[:15]), netip.Addr{}},
		{"multicast target", ndp(t, 135, guest6, zero4, allNodes[:], slla), netip.Addr{}},
		{"unspecified target", ndp(t, 135, guest6, zero4, unspec.AsSlice(), slla), netip.Addr{}},
		{"option of length 0", ndp(t, 135, guest6, zero4, target, []byte{1, 0, 1, 2, 3, 4, 5, 6}), netip.Addr{}},
		{"option beyond the end", ndp(t, 135, guest6, zero4, target, []byte{1, 2, 1, 2, 3, 4, 5, 6}), netip.Addr{}},
		{"option cut off", ndp(t, 135, guest6, zero4, target, slla, slla[:7]), netip.Addr{}},
		{"one byte of an option", ndp(t, 135, guest6, zero4, target, slla[:1]), netip.Addr{}},
		{"from a group", set(ndp(t, 135, guest6, zero4, target, slla), frame.VnetLen+6, 1), netip.Addr{}},
		{"advertisement", ndp(t, 136, guest6, zero4, target), netip.Addr{}},
		{"router advertisement", ndp(t, 134, guest6, make([]byte, 12)), netip.Addr{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pkt := reply(t, responder, tt.in)
			if !tt.target.IsValid() {
				if pkt != nil {
					t.Errorf("reply %v", pkt)
				}
				return
			}
			if pkt == nil {
				t.Fatal("no reply")
			}
			asked := gopacket.NewPacket(tt.in[frame.VnetLen:], layers.LayerTypeEthernet, gopacket.Default).NetworkLayer().(*layers.IPv6)
			src, _ := netip.AddrFromSlice(asked.SrcIP)
			destination(t, pkt, guestMAC, src)
			a, ok := pkt.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
			if !ok {
				t.Fatalf("reply %v", pkt)
			}
			if a.Flags != 0xe0 || !a.TargetAddress.Equal(tt.target.AsSlice()) {
				t.Errorf("flags %#x, target %v", a.Flags, a.TargetAddress)
			}
			want := layers.ICMPv6Options{{Type: layers.ICMPv6OptTargetAddress, Data: responder.MAC[:]}}
			if d := cmp.Diff(want, a.Options); d != "" {
				t.Errorf("options, -want +got:\n%s", d)
			}
		})
	}
	if pkt := reply(t, &Responder{MAC: responder.MAC}, ndp(t, 135, guest6, zero4, target, slla)); pkt != nil {
		t.Error("reply without a link-local address")
	}
}

func TestRouterSolicitation(t *testing.T) {
	prefix := layers.ICMPv6Option{Type: layers.ICMPv6OptPrefixInfo, Data: append([]byte{64, 0xc0,
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0x20, 1, 0xd, 0xb8, 0, 1, 0, 2}, make([]byte, 8)...)}
	lladdr := layers.ICMPv6Option{Type: layers.ICMPv6OptSourceAddress, Data: responder.MAC[:]}
	mtu := layers.ICMPv6Option{Type: layers.ICMPv6OptMTU, Data: []byte{0, 0, 0, 0, 0xff, 0xf0}}
	all := layers.ICMPv6Options{prefix, lladdr, mtu}
	change := func(f func(r *Responder)) *Responder {
		r := *responder
		f(&r)
		return &r
	}
	for _, tt := range []struct {
		name  string
		r     *Responder
		in    []byte
		to    netip.Addr // zero: no reply
		mac   frame.MAC
		flags uint8
		want  layers.ICMPv6Options
	}{
		{"link-local source", responder, ndp(t, 133, guest6, zero4, slla), guest6, guestMAC, 0x80, all},
		{"no option", responder, ndp(t, 133, guest6, zero4), guest6, guestMAC, 0x80, all},
		{"no source yet", responder, ndp(t, 133, unspec, zero4), allNodeA, allNodesMAC, 0x80, all},
		{"not managed", change(func(r *Responder) { r.Managed = false }), ndp(t, 133, guest6, zero4), guest6, guestMAC, 0, all},
		{"no mtu", change(func(r *Responder) { r.MTU = 0 }), ndp(t, 133, guest6, zero4), guest6, guestMAC, 0x80, all[:2]},
		{"no prefix", change(func(r *Responder) { r.Prefix = frame.Addr{} }), ndp(t, 133, guest6, zero4), guest6, guestMAC, 0x80, all[1:]},
		{"no advertisements", change(func(r *Responder) { r.NoRA = true }), ndp(t, 133, guest6, zero4), netip.Addr{}, guestMAC, 0, nil},
		{"no source but its link-layer address", responder, ndp(t, 133, unspec, zero4, slla), netip.Addr{}, guestMAC, 0, nil},
		{"hop limit 64", responder, set(ndp(t, 133, guest6, zero4), frame.L3Off+7, 64), netip.Addr{}, guestMAC, 0, nil},
		{"code 3", responder, set(ndp(t, 133, guest6, zero4), frame.L3Off+frame.IPv6Len+1, 3), netip.Addr{}, guestMAC, 0, nil},
		{"option of length 0", responder, ndp(t, 133, guest6, zero4, make([]byte, 8)), netip.Addr{}, guestMAC, 0, nil},
		{"option cut off", responder, ndp(t, 133, guest6, zero4, slla[:5]), netip.Addr{}, guestMAC, 0, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pkt := reply(t, tt.r, tt.in)
			if !tt.to.IsValid() {
				if pkt != nil {
					t.Errorf("reply %v", pkt)
				}
				return
			}
			if pkt == nil {
				t.Fatal("no reply")
			}
			destination(t, pkt, tt.mac, tt.to)
			a, ok := pkt.Layer(layers.LayerTypeICMPv6RouterAdvertisement).(*layers.ICMPv6RouterAdvertisement)
			if !ok {
				t.Fatalf("reply %v", pkt)
			}
			if a.HopLimit != 255 || a.Flags != tt.flags || a.RouterLifetime != 65535 || a.ReachableTime != 0 || a.RetransTimer != 0 {
				t.Errorf("%+v", a)
			}
			if d := cmp.Diff(tt.want, a.Options); d != "" {
				t.Errorf("options, -want +got:\n%s", d)
			}
		})
	}
}

// What is announced about names, as another implementation reads it.
func TestNamesInRouterAdvertisements(t *testing.T) {
	resolvers := func(n int) (list []netip.Addr) {
		for i := range n {
			list = append(list, netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", i+1)))
		}
		return list
	}
	for _, tt := range []struct {
		name      string
		resolvers []netip.Addr
		search    []string
		rdnss     int
		dnssl     []string
		length    int
	}{
		{"nothing", nil, nil, 0, nil, 0},
		{"a resolver", resolvers(1), nil, 1, nil, 24},
		{"three and one too many", resolvers(4), nil, 3, nil, 56},
		{"search list alone", nil, []string{"a.example"}, 0, []string{"a.example"}, 24},
		{"a search list that needs padding", nil, []string{"a.example", "b.c"}, 0, []string{"a.example", "b.c"}, 24},
		{"one that needs none", nil, []string{"a.exampl", "bc"}, 0, []string{"a.exampl", "bc"}, 24},
		{"both", resolvers(2), []string{"a.example"}, 2, []string{"a.example"}, 40 + 24},
		{"a search list beyond the limit", nil, slices.Repeat([]string{strings.Repeat("x", 60) + ".example"}, 17), 0, nil, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := *responder
			r.Resolvers, r.Search = tt.resolvers, dnsname.AppendList(nil, tt.search)
			out := bytes.Repeat([]byte{0xaa}, ReplyLen)
			n := r.Announce(out)
			pkt := gopacket.NewPacket(out[frame.VnetLen:n], layers.LayerTypeEthernet, gopacket.Default)
			destination(t, pkt, allNodesMAC, allNodeA)
			l := pkt.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
			l.SetNetworkLayerForChecksum(pkt.NetworkLayer())
			if err, wrong := pkt.VerifyChecksums(); err != nil || len(wrong) > 0 {
				t.Errorf("checksums: %v, %v", err, wrong)
			}
			if n > frame.L3Off+1280 || n != frame.L3Off+frame.IPv6Len+raLen+prefixLen+lladdrLen+mtuLen+tt.length {
				t.Errorf("%d bytes", n)
			}
			m, err := mdlayher.ParseMessage(out[frame.L3Off+frame.IPv6Len : n])
			if err != nil {
				t.Fatal(err)
			}
			ra := m.(*mdlayher.RouterAdvertisement)
			want := []mdlayher.Option{
				&mdlayher.PrefixInformation{PrefixLength: 64, OnLink: true, AutonomousAddressConfiguration: true,
					ValidLifetime: mdlayher.Infinity, PreferredLifetime: mdlayher.Infinity, Prefix: netip.MustParseAddr("2001:db8:1:2::")},
				&mdlayher.LinkLayerAddress{Direction: mdlayher.Source, Addr: responder.MAC[:]},
				mdlayher.NewMTU(65520),
			}
			if tt.rdnss > 0 {
				want = append(want, &mdlayher.RecursiveDNSServer{Lifetime: mdlayher.Infinity, Servers: tt.resolvers[:tt.rdnss]})
			}
			if tt.dnssl != nil {
				want = append(want, &mdlayher.DNSSearchList{Lifetime: mdlayher.Infinity, DomainNames: tt.dnssl})
			}
			if d := cmp.Diff(want, ra.Options, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
				t.Errorf("options, -want +got:\n%s", d)
			}
			if !ra.ManagedConfiguration || ra.OtherConfiguration || ra.RouterLifetime != 65535*time.Second || ra.CurrentHopLimit != 255 {
				t.Errorf("%+v", ra)
			}
		})
	}
	// The library above counts the bytes of an option in 8 bits.
	long := *responder
	long.Search = dnsname.AppendList(nil, slices.Repeat([]string{strings.Repeat("x", 60) + ".example"}, 15))
	out := bytes.Repeat([]byte{0xaa}, ReplyLen)
	n := long.Announce(out)
	ra := gopacket.NewPacket(out[frame.VnetLen:n], layers.LayerTypeEthernet, gopacket.Default).
		Layer(layers.LayerTypeICMPv6RouterAdvertisement).(*layers.ICMPv6RouterAdvertisement)
	want := slices.Concat([]byte{0, 0, 0xff, 0xff, 0xff, 0xff}, long.Search, make([]byte, 6))
	if o := ra.Options[len(ra.Options)-1]; o.Type != 31 || !bytes.Equal(o.Data, want) {
		t.Errorf("long search list: option %v", o)
	}
	quiet := *responder
	quiet.NoRA = true
	if n := quiet.Announce(make([]byte, ReplyLen)); n != 0 {
		t.Errorf("Announce = %d without advertisements", n)
	}
}

// What is malformed is told from what is in order but wants no reply.
func TestMalformedNDP(t *testing.T) {
	target := any6.AsSlice()
	noRA := *responder
	noRA.NoRA = true
	for _, tt := range []struct {
		name string
		r    *Responder
		in   []byte
		want int
	}{
		{"duplicate address detection", responder, ndp(t, 135, unspec, zero4, target, nonce), 0},
		{"advertisement", responder, ndp(t, 136, guest6, zero4, target), 0},
		{"no advertisements", &noRA, ndp(t, 133, guest6, zero4), 0},
		{"no NDP", &Responder{}, ndp(t, 135, guest6, zero4, target[:3]), 0},
		{"hop limit 254", responder, set(ndp(t, 135, guest6, zero4, target, slla), frame.L3Off+7, 254), Malformed},
		{"target cut off", responder, ndp(t, 135, guest6, zero4, target[:15]), Malformed},
		{"multicast target", responder, ndp(t, 135, guest6, zero4, allNodes[:], slla), Malformed},
		{"option of length 0", responder, ndp(t, 135, unspec, zero4, target, make([]byte, 8)), Malformed},
		{"no source but its link-layer address", responder, ndp(t, 133, unspec, zero4, slla), Malformed},
		{"option cut off", responder, ndp(t, 133, guest6, zero4, slla[:5]), Malformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var p frame.Packet
			if why := frame.Parse(tt.in, &p); why != frame.OK {
				t.Fatal(why)
			}
			if n := tt.r.NDP(&p, tt.in, make([]byte, ReplyLen)); n != tt.want {
				t.Errorf("NDP = %d, want %d", n, tt.want)
			}
		})
	}
}

func TestShortOut(t *testing.T) {
	in := ndp(t, 133, guest6, zero4)
	var p frame.Packet
	frame.Parse(in, &p)
	out := make([]byte, ReplyLen-1)
	if n := responder.NDP(&p, in, out); n != Malformed {
		t.Errorf("NDP = %d", n)
	}
	if n := responder.ARP(arp(t, 1, "192.0.2.10", "192.0.2.1"), out); n != Malformed {
		t.Errorf("ARP = %d", n)
	}
}

func TestAllocs(t *testing.T) {
	out := make([]byte, ReplyLen)
	a, ns, rs := arp(t, 1, "192.0.2.10", "192.0.2.1"), ndp(t, 135, guest6, zero4, any6.AsSlice(), slla), ndp(t, 133, guest6, zero4, slla)
	if n := testing.AllocsPerRun(100, func() {
		var p frame.Packet
		sum := responder.ARP(a, out)
		frame.Parse(ns, &p)
		sum += responder.NDP(&p, ns, out)
		frame.Parse(rs, &p)
		sum += responder.NDP(&p, rs, out)
		if sum < 3*frame.MinFrame {
			t.Error("no reply")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzARP(f *testing.F) {
	f.Add(arp(f, 1, "192.0.2.10", "192.0.2.1"))
	f.Add(arp(f, 1, "0.0.0.0", "192.0.2.10"))
	f.Fuzz(func(t *testing.T, in []byte) {
		out := make([]byte, ReplyLen)
		n := responder.ARP(in[:len(in):len(in)], out)
		if n <= 0 {
			return
		}
		var p frame.Packet
		if n != frame.MinFrame || frame.Parse(out[:n], &p) != frame.OK || p.Kind != frame.ARP {
			t.Errorf("reply % x", out[:n])
		}
		if responder.ARP(out[:n], make([]byte, ReplyLen)) != 0 {
			t.Error("a reply is answered")
		}
	})
}

func FuzzNDP(f *testing.F) {
	f.Add(ndp(f, 135, guest6, zero4, any6.AsSlice(), slla))
	f.Add(ndp(f, 135, unspec, zero4, any6.AsSlice(), nonce))
	f.Add(ndp(f, 133, guest6, zero4, slla))
	f.Add(ndp(f, 133, unspec, zero4))
	f.Fuzz(func(t *testing.T, in []byte) {
		in = in[:len(in):len(in)]
		var p frame.Packet
		if frame.Parse(in, &p) != frame.OK {
			return
		}
		out := make([]byte, ReplyLen)
		n := responder.NDP(&p, in, out)
		if n <= 0 {
			return
		}
		if why := frame.Parse(out[:n], &p); why != frame.OK || p.Kind != frame.NDP || p.TTL != 255 || p.End != n {
			t.Errorf("reply (%v) % x", why, out[:n])
		}
		if responder.NDP(&p, out[:n], make([]byte, ReplyLen)) != 0 {
			t.Error("a reply is answered")
		}
	})
}
