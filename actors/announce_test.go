package actors

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"fusilli/actors/flow"
	"fusilli/tapio/frame"
)

func TestFlowsAreAnnounced(t *testing.T) {
	core, logs := observer.New(zapcore.DebugLevel)
	a := announcer{log: zap.New(core)}
	key := func(guest, remote string, proto uint16) *flow.Key {
		g, r := netip.MustParseAddrPort(guest), netip.MustParseAddrPort(remote)
		return &flow.Key{Guest: frame.AddrOf(g.Addr()), Remote: frame.AddrOf(r.Addr()), GuestPort: g.Port(), RemotePort: r.Port(), Proto: proto}
	}
	host := netip.MustParseAddrPort
	a.fromGuest(key("192.0.2.2:4000", "192.0.2.1:80", frame.ProtoTCP), host("127.0.0.1:80"))
	a.fromGuest(key("[2001:db8::2]:4000", "[2001:db8::53]:53", frame.ProtoUDP), host("[2001:db8::1]:53"))
	a.fromGuest(key("192.0.2.2:77", "198.51.100.1:0", frame.ProtoICMP), host("198.51.100.1:0"))
	a.fromGuest(key("[2001:db8::2]:77", "[2001:db8::53]:0", frame.ProtoICMPv6), host("[2001:db8::53]:0"))
	a.fromHost(key("192.0.2.2:80", "192.0.2.1:5000", frame.ProtoTCP), host("127.0.0.1:5000"), -1)
	c, err := net.Dial("udp", "127.0.0.1:9")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f, err := c.(*net.UDPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	a.fromHost(key("192.0.2.2:80", "192.0.2.1:9", frame.ProtoUDP), host("127.0.0.1:9"), int(f.Fd()))
	local := host(c.LocalAddr().String())
	want := strings.Split(`Flow 0 (TCP connection): TAP [192.0.2.2]:4000 -> [192.0.2.1]:80 => HOST [0.0.0.0]:0 -> [127.0.0.1]:80
Flow 1 (UDP flow): TAP [2001:db8::2]:4000 -> [2001:db8::53]:53 => HOST [::]:0 -> [2001:db8::1]:53
Flow 2 (ICMP ping sequence): TAP [192.0.2.2]:77 -> [198.51.100.1]:0 => HOST [0.0.0.0]:0 -> [198.51.100.1]:0
Flow 3 (ICMPv6 ping sequence): TAP [2001:db8::2]:77 -> [2001:db8::53]:0 => HOST [::]:0 -> [2001:db8::53]:0
Flow 4 (TCP connection): HOST [127.0.0.1]:5000 -> [0.0.0.0]:0 => TAP [192.0.2.1]:5000 -> [192.0.2.2]:80
Flow 5 (UDP flow): HOST [127.0.0.1]:9 -> [127.0.0.1]:`+local.String()[len("127.0.0.1:"):]+` => TAP [192.0.2.1]:9 -> [192.0.2.2]:80`, "\n")
	for i, e := range logs.All() {
		if i >= len(want) || e.Message != want[i] {
			t.Errorf("line %q", e.Message)
		}
	}
	if logs.Len() != len(want) {
		t.Errorf("%d lines, want %d", logs.Len(), len(want))
	}

	a.log = zap.New(zapcore.NewNopCore())
	k, to := key("192.0.2.2:4000", "192.0.2.1:80", frame.ProtoTCP), host("127.0.0.1:80")
	if n := testing.AllocsPerRun(100, func() { a.fromGuest(k, to) }); n != 0 {
		t.Errorf("%v allocations where nothing is logged", n)
	}
}
