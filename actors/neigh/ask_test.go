package neigh

import (
	"bytes"
	"net"
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
