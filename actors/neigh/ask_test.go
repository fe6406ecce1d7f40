package neigh

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"fusilli/tapio/frame"
)

// TestARPProbeOfQrap: everybody asks, from no address and for none.
func TestARPProbeOfQrap(t *testing.T) {
	in := arp(t, 1, "0.0.0.0", "0.0.0.0")
	copy(in[frame.VnetLen+6:], frame.Broadcast[:])
	out := make([]byte, ReplyLen)
	if n := responder.ARP(in, out); n != frame.MinFrame || frame.Dst(out) != frame.Broadcast {
		t.Errorf("reply % x", out[:n])
	}
}

func TestAskARP(t *testing.T) {
	r := *responder
	r.Our4 = frame.Addr4([4]byte{192, 0, 2, 1})
	out := bytes.Repeat([]byte{0xaa}, ReplyLen)
	n := r.AskARP(out)
	if n != frame.MinFrame || frame.Dst(out) != frame.Broadcast || frame.Src(out) != r.MAC {
		t.Fatalf("% x", out[:n])
	}
	a := gopacket.NewPacket(out[frame.VnetLen:n], layers.LayerTypeEthernet, gopacket.Default).Layer(layers.LayerTypeARP).(*layers.ARP)
	if a.Operation != 1 || !net.IP(a.SourceProtAddress).Equal(net.IP(r.Our4[:])) || !net.IP(a.DstProtAddress).Equal(net.IP(r.Guest4[:])) ||
		!bytes.Equal(a.SourceHwAddress, r.MAC[:]) {
		t.Errorf("%+v", a)
	}
	r.Guest4 = frame.Addr{}
	if n := r.AskARP(out); n != 0 {
		t.Errorf("asked for nobody: % x", out[:n])
	}
}

func TestAskNDP(t *testing.T) {
	r := *responder
	out := bytes.Repeat([]byte{0xaa}, ReplyLen)
	n := r.AskNDP(out)
	if n == 0 || frame.Dst(out) != frame.Broadcast {
		t.Fatalf("% x", out[:n])
	}
	p := gopacket.NewPacket(out[frame.VnetLen:n], layers.LayerTypeEthernet, gopacket.Default)
	ip := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
	ns, ok := p.Layer(layers.LayerTypeICMPv6NeighborSolicitation).(*layers.ICMPv6NeighborSolicitation)
	if !ok || !ns.TargetAddress.Equal(net.IP(r.Prefix[:])) || !ip.DstIP.Equal(net.IP(r.Prefix[:])) || !ip.SrcIP.Equal(net.IP(r.LinkLocal[:])) || ip.HopLimit != 255 {
		t.Errorf("%v", p)
	}
	var pkt frame.Packet
	if why := frame.Parse(out[:n], &pkt); why != frame.OK || pkt.Kind != frame.NDP {
		t.Errorf("parsed: %v, %+v", why, pkt)
	}
	r.Prefix = frame.Addr{}
	if n := r.AskNDP(out); n != 0 {
		t.Errorf("asked for nobody: % x", out[:n])
	}
}

// TestProbe is what the guest's stations are asked, as gopacket reads it.
func TestProbe(t *testing.T) {
	mac := frame.MAC{2, 0, 0, 0, 0, 9}
	for _, tt := range []struct {
		name    string
		of      string
		to, eth frame.MAC
		ip      string // destination of a neighbour solicitation
		noNDP   bool
	}{
		{"IPv4", "192.0.2.7", mac, mac, "", false},
		{"IPv4, all", "192.0.2.7", frame.Broadcast, frame.Broadcast, "", false},
		{"IPv6", "2001:db8::1:2345:6789", mac, mac, "2001:db8::1:2345:6789", false},
		{"IPv6, all", "2001:db8::1:2345:6789", frame.Broadcast, frame.MAC{0x33, 0x33, 0xff, 0x45, 0x67, 0x89}, "ff02::1:ff45:6789", false},
		{"link-local", "fe80::7", mac, mac, "fe80::7", false},
		{"IPv6 without NDP", "fe80::7", mac, mac, "fe80::7", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := *responder
			r.Our4 = frame.Addr4([4]byte{192, 0, 2, 1})
			from := net.IP(r.LinkLocal[:])
			if tt.noNDP {
				r.LinkLocal = frame.Addr{}
				from = net.ParseIP("fe80::9855:9aff:fe55:9a55")
			}
			of := frame.AddrOf(netip.MustParseAddr(tt.of))
			out := bytes.Repeat([]byte{0xaa}, ReplyLen)
			n := r.Probe(&of, tt.to, out)
			if n < frame.MinFrame || frame.Dst(out) != tt.eth || frame.Src(out) != r.MAC {
				t.Fatalf("% x", out[:n])
			}
			p := gopacket.NewPacket(out[frame.VnetLen:n], layers.LayerTypeEthernet, gopacket.Default)
			if tt.ip == "" {
				a := p.Layer(layers.LayerTypeARP).(*layers.ARP)
				if a.Operation != 1 || !net.IP(a.SourceProtAddress).Equal(net.IP(r.Our4[:])) || !bytes.Equal(a.SourceHwAddress, r.MAC[:]) ||
					!net.IP(a.DstProtAddress).Equal(net.IP(of[:])) {
					t.Errorf("%+v", a)
				}
				return
			}
			ip := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
			ns, ok := p.Layer(layers.LayerTypeICMPv6NeighborSolicitation).(*layers.ICMPv6NeighborSolicitation)
			if !ok || !ns.TargetAddress.Equal(net.IP(of[:])) || !ip.DstIP.Equal(net.ParseIP(tt.ip)) || !ip.SrcIP.Equal(from) || ip.HopLimit != 255 ||
				len(ns.Options) != 1 || ns.Options[0].Type != layers.ICMPv6OptSourceAddress || !bytes.Equal(ns.Options[0].Data, r.MAC[:]) {
				t.Errorf("%v", p)
			}
		})
	}
}

// TestAnswer: only what a station says about itself, to us and because we have asked, is an answer.
func TestAnswer(t *testing.T) {
	station := frame.MAC{2, 0, 0, 0, 0, 9}
	four := func(change func(b []byte)) []byte {
		b := make([]byte, frame.MinFrame)
		frame.PutEth(b, responder.MAC, station, frame.EtherARP)
		a := b[frame.L3Off:]
		copy(a, []byte{0, 1, 8, 0, 6, 4, 0, 2})
		copy(a[8:], station[:])
		copy(a[14:], []byte{192, 0, 2, 7})
		change(b)
		return b
	}
	six := func(change func(b []byte)) []byte {
		r := Responder{MAC: station, LinkLocal: frame.AddrOf(netip.MustParseAddr("fe80::7"))}
		b := make([]byte, ReplyLen)
		target := frame.AddrOf(netip.MustParseAddr("2001:db8::7"))
		b = b[:r.putAdvert(b, 0x60, &target, station, responder.MAC, &responder.LinkLocal)]
		change(b)
		return b
	}
	const m = frame.L3Off + frame.IPv6Len
	for _, tt := range []struct {
		name string
		in   []byte
		want string // "" for no answer
	}{
		{"ARP", four(func([]byte) {}), "192.0.2.7"},
		{"ARP request", four(func(b []byte) { b[frame.L3Off+7] = 1 }), ""},
		{"ARP of another network", four(func(b []byte) { b[frame.L3Off+1] = 6 }), ""},
		{"ARP to all", four(func(b []byte) { copy(b[frame.VnetLen:], frame.Broadcast[:]) }), ""},
		{"ARP about another station", four(func(b []byte) { b[frame.L3Off+13] = 8 }), ""},
		{"NDP", six(func([]byte) {}), "2001:db8::7"},
		{"NDP without options", six(func([]byte) {})[:m+nsLen], "2001:db8::7"},
		{"NDP that nobody has asked for", six(func(b []byte) { b[m+4] = 0x20 }), ""},
		{"NDP from afar", six(func(b []byte) { b[frame.L3Off+7] = 254 }), ""},
		{"NDP to all", six(func(b []byte) { copy(b[frame.VnetLen:], allNodesMAC[:]) }), ""},
		{"NDP about another station", six(func(b []byte) { b[m+nsLen+7] = 8 }), ""},
		{"neighbour solicitation", six(func(b []byte) { b[m] = neighbourSolicitation }), ""},
		{"NDP with a code", six(func(b []byte) { b[m+1] = 1 }), ""},
		{"NDP with an option of no length", six(func(b []byte) { b[m+nsLen+1] = 0 }), ""},
		{"NDP with an option that is cut off", six(func(b []byte) { b[m+nsLen+1] = 2 }), ""},
		{"NDP cut off", six(func([]byte) {})[:m+nsLen-1], ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := tt.in[:len(tt.in):len(tt.in)]
			if frame.Dst(in) == responder.MAC && in[frame.VnetLen+12] == 0x86 {
				frame.SetIPv6Len(in[frame.L3Off:], len(in)-m)
			}
			var p frame.Packet
			if why := frame.Parse(in, &p); why != frame.OK {
				p = frame.Packet{Kind: frame.NDP, L4: m, End: len(in), TTL: 255}
			}
			a, mac, ok := Answer(in, &p, responder.MAC)
			if ok != (tt.want != "") || ok && (frame.NetIP(a).String() != tt.want || mac != station) {
				t.Errorf("Answer = %v, %v, %v", frame.NetIP(a), mac, ok)
			}
		})
	}
}

// TestSender is the sender of an ARP packet that says so itself.
func TestSender(t *testing.T) {
	in := arp(t, 1, "192.0.2.9", "192.0.2.1")
	if got := frame.NetIP(Sender(in)).String(); got != "192.0.2.9" {
		t.Errorf("Sender = %s", got)
	}
	in[frame.VnetLen+6] ^= 4
	if got := frame.NetIP(Sender(in)).String(); got != "0.0.0.0" {
		t.Errorf("Sender of what another station has sent = %s", got)
	}
}
