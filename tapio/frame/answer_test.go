package frame

import (
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// question returns a frame from the guest with a packet of proto, and what Parse found in it.
func question(t *testing.T, src, dst string, proto uint8, l4 []byte) ([]byte, Packet) {
	t.Helper()
	b := make([]byte, L3Off+IPv6Len+len(l4))
	ip := IP{Src: AddrOf(netip.MustParseAddr(src)), Dst: AddrOf(netip.MustParseAddr(dst)), Proto: proto, TTL: 64, Len: len(l4)}
	etherType := uint16(EtherIPv6)
	if Is4(&ip.Src) {
		etherType = EtherIPv4
	}
	PutEth(b, MAC{2, 2}, MAC{2, 1}, etherType)
	n := L3Off + PutIP(b[L3Off:], &ip)
	b = b[:n+copy(b[n:], l4)]
	var p Packet
	if r := Parse(b, &p); r != OK {
		t.Fatal(r)
	}
	return b, p
}

// inspect has an independent decoder look at a frame of ours.
func inspect(t *testing.T, b []byte) gopacket.Packet {
	t.Helper()
	p := gopacket.NewPacket(b[VnetLen:], layers.LayerTypeEthernet, gopacket.Default)
	if e := p.ErrorLayer(); e != nil {
		t.Fatal(e.Error())
	}
	if icmp, ok := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); ok {
		icmp.SetNetworkLayerForChecksum(p.NetworkLayer())
	}
	if err, bad := p.VerifyChecksums(); err != nil || len(bad) > 0 {
		t.Errorf("checksums: %v, %v", err, bad)
	}
	if eth := p.LinkLayer().(*layers.Ethernet); eth.DstMAC.String() != "02:01:00:00:00:00" || eth.SrcMAC.String() != "02:03:00:00:00:00" {
		t.Errorf("from %s to %s", eth.SrcMAC, eth.DstMAC)
	}
	return p
}

var syn = []byte{0x80, 1, 0, 80, 0, 0, 0, 7, 0, 0, 0, 0, 0x50, SYN, 0xff, 0xff, 0, 0, 0, 0}

func TestPutUnreachable(t *testing.T) {
	out := make([]byte, ICMPErrorLen)
	b, pkt := question(t, "10.0.2.100", "10.0.2.2", ProtoTCP, syn)
	p := inspect(t, out[:PutUnreachable(out, MAC{2, 3}, b, &pkt)])
	ip, icmp := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4), p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
	if ip.SrcIP.String() != "10.0.2.2" || ip.DstIP.String() != "10.0.2.100" {
		t.Errorf("%s -> %s", ip.SrcIP, ip.DstIP)
	}
	if icmp.TypeCode != layers.CreateICMPv4TypeCode(layers.ICMPv4TypeDestinationUnreachable, layers.ICMPv4CodeNet) {
		t.Errorf("type %s", icmp.TypeCode)
	}
	if string(icmp.Payload) != string(b[L3Off:L3Off+IPv4Len+8]) {
		t.Errorf("quotes % x", icmp.Payload)
	}

	b, pkt = question(t, "fd00::100", "fd00::2", ProtoTCP, syn)
	p = inspect(t, out[:PutUnreachable(out, MAC{2, 3}, b, &pkt)])
	icmp6 := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
	if icmp6.TypeCode != layers.CreateICMPv6TypeCode(layers.ICMPv6TypeDestinationUnreachable, layers.ICMPv6CodeNoRouteToDst) {
		t.Errorf("type %s", icmp6.TypeCode)
	}
	if want := b[L3Off:]; string(icmp6.Payload[4:]) != string(want) {
		t.Errorf("quotes % x", icmp6.Payload)
	}
}

func TestPutEchoReply(t *testing.T) {
	out := make([]byte, MaxFrame)
	b, pkt := question(t, "10.0.2.100", "10.0.2.2", ProtoICMP, []byte{8, 0, 0, 0, 0, 7, 0, 1, 'p', 'i', 'n', 'g'})
	p := inspect(t, out[:PutEchoReply(out, MAC{2, 3}, b, &pkt)])
	icmp := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
	if icmp.TypeCode.Type() != layers.ICMPv4TypeEchoReply || icmp.Id != 7 || icmp.Seq != 1 || string(icmp.Payload) != "ping" {
		t.Errorf("%+v", icmp)
	}
	b, pkt = question(t, "fd00::100", "fd00::2", ProtoICMPv6, []byte{128, 0, 0, 0, 0, 7, 0, 1, 'p', 'i', 'n', 'g'})
	p = inspect(t, out[:PutEchoReply(out, MAC{2, 3}, b, &pkt)])
	if icmp := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); icmp.TypeCode.Type() != layers.ICMPv6TypeEchoReply {
		t.Errorf("%+v", icmp)
	}
}
