package actors

import (
	"net/netip"
	"testing"

	"go.uber.org/zap"

	"fusilli/actors/neigh"
	"fusilli/actors/rules"
	"fusilli/tapio"
	"fusilli/tapio/frame"
)

// TestNeighboursAreTold: what the guest is told of stations on the host's link, once it was
// greeted.
func TestNeighboursAreTold(t *testing.T) {
	addr := netip.MustParseAddr
	a, b := frame.MAC{2, 0, 0, 0, 0xa, 0}, frame.MAC{2, 0, 0, 0, 0xb, 0}
	link := new(recorder)
	table := neigh.NewTable(ourMAC, frame.AddrOf(addr("192.0.2.1")), frame.AddrOf(addr("fe80::1")), frame.AddrOf(addr("192.0.2.1")))
	e := New(Config{
		Link: link, Log: zap.NewNop(), V4: true, V6: true,
		Neigh: neigh.Responder{MAC: ourMAC, LinkLocal: frame.AddrOf(addr("fe80::1")), Neighbours: table},
		Rules: rules.Rules{Assigned4: addr("192.0.2.10"), OurTap4: addr("192.0.2.1"), HostLoopback4: addr("192.0.2.1")},
		Guest: rules.Guest{V4: addr("192.0.2.20")},
	})
	is := func(name string, want frame.MAC) {
		t.Helper()
		k := frame.AddrOf(addr(name))
		if got := e.env.SourceMAC(&k); got != want {
			t.Errorf("%s has %v, want %v", name, got, want)
		}
	}
	told := func(want ...frame.MAC) {
		t.Helper()
		frames, _ := link.take(nil)
		if len(frames) != len(want) {
			t.Fatalf("%d frames, want %d", len(frames), len(want))
		}
		for i, f := range frames {
			var p frame.Packet
			if why := frame.Parse(f, &p); why != frame.OK {
				t.Fatal(why)
			}
			mac := frame.Src(f)
			if p.Kind == frame.NDP {
				mac = frame.MAC(f[p.L4+26:])
			}
			if mac != want[i] {
				t.Errorf("frame %d tells of %v, want %v", i, mac, want[i])
			}
		}
	}
	e.Neighbours([]Neighbour{{addr("192.0.2.7"), a}}, true)
	told() // nobody is there
	is("192.0.2.7", a)
	e.Greet()
	link.take(nil)
	e.Neighbours([]Neighbour{
		{addr("192.0.2.7"), a}, {addr("192.0.2.8"), b}, {addr("fe80::8").WithZone("eth0"), b},
		{addr("192.0.2.10"), b}, {addr("192.0.2.20"), b}, // the guest's own addresses
		{addr("192.0.2.1"), b}, // the host's, for the guest
		{addr("224.0.0.1"), b}, {addr("192.0.2.9"), frame.MAC{}},
	}, false)
	told(b, b)
	is("192.0.2.8", b)
	is("fe80::8", b)
	for _, name := range []string{"192.0.2.1", "192.0.2.9", "192.0.2.10", "192.0.2.20", "198.51.100.1", "2001:db8::1"} {
		is(name, ourMAC)
	}
	e.Neighbours([]Neighbour{{addr("192.0.2.8"), a}, {addr("192.0.2.7"), frame.MAC{}}}, false)
	told(a)
	is("192.0.2.8", a)
	is("192.0.2.7", ourMAC)
	e.Neighbours([]Neighbour{{addr("fe80::8"), b}}, true)
	told()
	is("192.0.2.8", ourMAC)
	is("fe80::8", b)
	link.take(tapio.ErrDropped)
	e.Neighbours([]Neighbour{{addr("fe80::9"), b}}, false) // the guest is away
	is("fe80::9", b)
}

// TestPrefixIsLearned: without a template the guest's IPv6 address is the first that it was seen
// with, and so is what is announced and asked for.
func TestPrefixIsLearned(t *testing.T) {
	addr := netip.MustParseAddr
	link := new(recorder)
	e := New(Config{Link: link, Log: zap.NewNop(), V6: true,
		Neigh: neigh.Responder{MAC: ourMAC, LinkLocal: frame.AddrOf(addr("fe80::1"))}})
	solicit := func() []byte {
		t.Helper()
		var pkt frame.Packet
		b := seed(true, 58, 133, 0, 0, 0, 0, 0, 0, 0)
		b[frame.L3Off+7] = 255
		if why := frame.Parse(b, &pkt); why != frame.OK || pkt.Kind != frame.NDP {
			t.Fatal(why, pkt.Kind)
		}
		out := make([]byte, neigh.ReplyLen)
		r := e.responder()
		return out[:r.NDP(&pkt, b, out)]
	}
	const l4 = frame.L3Off + frame.IPv6Len
	if b := solicit(); len(b) != l4+16+8 {
		t.Fatalf("advertised without an address: % x", b)
	}
	e.Greet()
	if frames, _ := link.take(nil); len(frames) != 0 {
		t.Fatalf("asked for nobody: % x", frames)
	}
	a := frame.AddrOf(addr("fe80::99"))
	e.guestAddr.note(&a, guestMAC)
	b := solicit()
	if len(b) != l4+16+32+8 || b[l4+16] != 3 || frame.NetIP(frame.Addr(append(b[l4+32:l4+40:l4+40], make([]byte, 8)...))) != addr("fe80::") {
		t.Errorf("advertised % x", b)
	}
	e.Greet()
	if frames, _ := link.take(nil); len(frames) != 1 || frame.Addr(frames[0][l4+8:]) != a {
		t.Errorf("asked % x", frames)
	}
}
