package neigh

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"fusilli/tapio/frame"
)

var (
	macA = frame.MAC{2, 0, 0, 0, 0xa, 0}
	macB = frame.MAC{2, 0, 0, 0, 0xb, 0}
	ours = responder.MAC
)

func of(s string) *frame.Addr {
	a := frame.AddrOf(netip.MustParseAddr(s))
	return &a
}

func TestTable(t *testing.T) {
	type act func(t *Table)
	set := func(a string, mac frame.MAC, told bool) act {
		return func(tab *Table) {
			if got := tab.Set(of(a), mac); got != told {
				t.Errorf("Set(%s, %v) = %v", a, mac, got)
			}
		}
	}
	remove := func(a string) act { return func(tab *Table) { tab.Remove(of(a)) } }
	for _, tt := range []struct {
		name  string
		fixed []frame.Addr
		acts  []act
		want  map[string]frame.MAC
	}{
		{"nobody", nil, nil, map[string]frame.MAC{"192.0.2.7": ours, "192.0.2.1": ours, "2001:db8::7": ours}},
		{"a neighbour", nil, []act{set("192.0.2.7", macA, true)},
			map[string]frame.MAC{"192.0.2.7": macA, "192.0.2.8": ours, "198.51.100.1": ours}},
		{"the gateway, with all behind it", nil, []act{set("192.0.2.1", macA, true)},
			map[string]frame.MAC{"192.0.2.1": macA, "198.51.100.1": macA, "2001:db8:9::1": ours}},
		{"the other gateway", nil, []act{set("fe80::1", macA, true), set("2001:db8::7", macB, true)},
			map[string]frame.MAC{"192.0.2.1": ours, "198.51.100.1": ours, "2001:db8:9::1": macA, "2001:db8::7": macB}},
		{"the gateway is fixed", []frame.Addr{*of("192.0.2.1"), *of("192.0.2.99")},
			[]act{set("192.0.2.1", macA, false), set("192.0.2.7", macB, true)},
			map[string]frame.MAC{"192.0.2.1": ours, "198.51.100.1": ours, "192.0.2.7": macB}},
		{"fixed before the gateway", []frame.Addr{*of("192.0.2.99"), {}},
			[]act{set("192.0.2.1", macA, true), set("192.0.2.99", macB, false)},
			map[string]frame.MAC{"192.0.2.99": ours, "192.0.2.98": macA}},
		{"again, another, and gone", nil,
			[]act{set("192.0.2.7", macA, true), set("192.0.2.7", macA, false), set("192.0.2.7", macB, true),
				set("192.0.2.8", macA, true), remove("192.0.2.8"), remove("192.0.2.9")},
			map[string]frame.MAC{"192.0.2.7": macB, "192.0.2.8": ours}},
		{"one that has our address", nil, []act{set("192.0.2.7", ours, false), set("192.0.2.7", macA, true), set("192.0.2.7", ours, true)},
			map[string]frame.MAC{"192.0.2.7": ours}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tab := NewTable(ours, *of("192.0.2.1"), *of("fe80::1"), tt.fixed...)
			for _, do := range tt.acts {
				do(tab)
			}
			for a, want := range tt.want {
				if got := tab.Lookup(of(a)); got != want {
					t.Errorf("%s has %v, want %v", a, got, want)
				}
			}
		})
	}
}

// TestTableIsBounded: those that came first stay, and a place that is free again is taken.
func TestTableIsBounded(t *testing.T) {
	tab := NewTable(ours, frame.Addr{}, frame.Addr{})
	nth := func(i int) *frame.Addr {
		a := frame.Addr4([4]byte{10, 0, byte(i >> 8), byte(i)})
		return &a
	}
	for i := range MaxNeighbours + 100 {
		if got := tab.Set(nth(i), macA); got != (i < MaxNeighbours) {
			t.Fatalf("neighbour %d: %v", i, got)
		}
	}
	if tab.Lookup(nth(0)) != macA || tab.Lookup(nth(MaxNeighbours)) != ours || !tab.Set(nth(3), macB) {
		t.Error("not the first ones are kept")
	}
	tab.Remove(nth(7))
	if !tab.Set(nth(1000), macA) || tab.Lookup(nth(1000)) != macA {
		t.Error("no place for another")
	}
	tab.Retain(func(a *frame.Addr) bool { return *a == *nth(3) })
	if tab.Lookup(nth(3)) != macB || tab.Lookup(nth(0)) != ours || !tab.Set(nth(2000), macA) {
		t.Error("not what is to be retained")
	}
	if n := testing.AllocsPerRun(100, func() { tab.Lookup(nth(3)) }); n != 0 {
		t.Errorf("%v allocations to look up", n)
	}
}

// TestNeighboursAnswer: who has an Ethernet address of its own is told with it; the frames come
// from us all the same.
func TestNeighboursAnswer(t *testing.T) {
	r := *responder
	r.Neighbours = NewTable(ours, frame.Addr{}, frame.Addr{})
	r.Neighbours.Set(of("192.0.2.7"), macA)
	r.Neighbours.Set(of(any6.String()), macB)
	out := make([]byte, ReplyLen)
	n := r.ARP(arp(t, 1, "192.0.2.10", "192.0.2.7"), out)
	a := gopacket.NewPacket(out[frame.VnetLen:n], layers.LayerTypeEthernet, gopacket.Default).Layer(layers.LayerTypeARP).(*layers.ARP)
	if !bytes.Equal(a.SourceHwAddress, macA[:]) || frame.Src(out) != ours {
		t.Errorf("ARP: %v from %v", net.HardwareAddr(a.SourceHwAddress), frame.Src(out))
	}
	pkt := reply(t, &r, ndp(t, 135, guest6, zero4, any6.AsSlice(), slla)) // checks the source
	na := pkt.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
	if len(na.Options) != 1 || !bytes.Equal(na.Options[0].Data, macB[:]) {
		t.Errorf("NDP: %v", na.Options)
	}
}

func TestTell(t *testing.T) {
	out := bytes.Repeat([]byte{0xaa}, ReplyLen)
	n := responder.Tell(of("192.0.2.7"), macA, out)
	if n != frame.MinFrame || frame.Dst(out) != frame.Broadcast || frame.Src(out) != macA {
		t.Fatalf("% x", out[:n])
	}
	a := gopacket.NewPacket(out[frame.VnetLen:n], layers.LayerTypeEthernet, gopacket.Default).Layer(layers.LayerTypeARP).(*layers.ARP)
	if a.Operation != 1 || !bytes.Equal(a.SourceProtAddress, []byte{192, 0, 2, 7}) || !bytes.Equal(a.DstProtAddress, a.SourceProtAddress) ||
		!bytes.Equal(a.SourceHwAddress, macA[:]) || !bytes.Equal(a.DstHwAddress, make([]byte, 6)) {
		t.Errorf("ARP %+v", a)
	}

	out = bytes.Repeat([]byte{0xaa}, ReplyLen)
	n = responder.Tell(of(any6.String()), macB, out)
	p := gopacket.NewPacket(out[frame.VnetLen:n], layers.LayerTypeEthernet, gopacket.Default)
	ip := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
	na, ok := p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
	if !ok || na.Flags != 0xa0 || !na.TargetAddress.Equal(any6.AsSlice()) || len(na.Options) != 1 || !bytes.Equal(na.Options[0].Data, macB[:]) ||
		!ip.DstIP.Equal(net.ParseIP("ff02::1")) || ip.HopLimit != 255 || frame.Dst(out) != allNodesMAC || frame.Src(out) != ours {
		t.Errorf("NDP %v", p)
	}
	if sum := binary.BigEndian.Uint16(out[frame.L3Off+frame.IPv6Len+2:]); sum == 0 {
		t.Error("no checksum")
	}
	r := *responder
	r.LinkLocal = frame.Addr{}
	if n := r.Tell(of(any6.String()), macB, out); n != 0 {
		t.Errorf("told by nobody: % x", out[:n])
	}
}
