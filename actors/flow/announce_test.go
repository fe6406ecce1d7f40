package flow

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"fusilli/tapio/frame"
)

func TestFlowsAreAnnounced(t *testing.T) {
	core, logs := observer.New(zapcore.DebugLevel)
	a := NewAnnouncer(zap.New(core))
	at := netip.MustParseAddrPort
	key := func(guest, remote string, proto uint16) *Key {
		g, r := at(guest), at(remote)
		return &Key{Guest: frame.AddrOf(g.Addr()), Remote: frame.AddrOf(r.Addr()), GuestPort: g.Port(), RemotePort: r.Port(), Proto: proto}
	}
	begun := []*Announced{
		a.FromGuest(key("192.0.2.2:4000", "192.0.2.1:80", frame.ProtoTCP), at("127.0.0.1:80")),
		a.FromGuest(key("[2001:db8::2]:4000", "[2001:db8::53]:53", frame.ProtoUDP), at("[2001:db8::1]:53")),
		a.FromGuest(key("192.0.2.2:77", "198.51.100.1:0", frame.ProtoICMP), at("198.51.100.1:0")),
		a.FromGuest(key("[2001:db8::2]:77", "[2001:db8::53]:0", frame.ProtoICMPv6), at("[2001:db8::53]:0")),
		a.FromHost(key("192.0.2.2:80", "192.0.2.1:5000", frame.ProtoTCP), at("127.0.0.1:5000"), at("127.0.0.1:8080")),
		a.Spliced(frame.ProtoTCP, true, at("127.0.0.1:5000"), at("127.0.0.1:8080"), at("127.0.0.1:80")),
		a.Spliced(frame.ProtoUDP, false, at("[::1]:5000"), at("[::1]:8080"), at("[::1]:80")),
	}
	want := `Flow 0 (TCP connection): TAP [192.0.2.2]:4000 -> [192.0.2.1]:80 => HOST [0.0.0.0]:0 -> [127.0.0.1]:80
Flow 1 (UDP flow): TAP [2001:db8::2]:4000 -> [2001:db8::53]:53 => HOST [::]:0 -> [2001:db8::1]:53
Flow 2 (ICMP ping sequence): TAP [192.0.2.2]:77 -> [198.51.100.1]:0 => HOST [0.0.0.0]:0 -> [198.51.100.1]:0
Flow 3 (ICMPv6 ping sequence): TAP [2001:db8::2]:77 -> [2001:db8::53]:0 => HOST [::]:0 -> [2001:db8::53]:0
Flow 4 (TCP connection): HOST [127.0.0.1]:5000 -> [127.0.0.1]:8080 => TAP [192.0.2.1]:5000 -> [192.0.2.2]:80
Flow 5 (TCP connection (spliced)): HOST [127.0.0.1]:5000 -> [127.0.0.1]:8080 => SPLICE [0.0.0.0]:0 -> [127.0.0.1]:80
Flow 6 (UDP flow): SPLICE [::1]:5000 -> [::1]:8080 => HOST [::]:0 -> [::1]:80`
	var got []string
	for _, e := range logs.All() {
		got = append(got, e.Message)
	}
	if d := cmp.Diff(strings.Split(want, "\n"), got); d != "" {
		t.Error(d)
	}

	for _, f := range []*Announced{begun[4], begun[1]} {
		f.End()
	}
	said := logs.TakeAll()[len(got):]
	for i, want := range []string{`Flow 4 \(TCP connection\): ended after \d`, `Flow 1 \(UDP flow\): ended after \d`} {
		if len(said) != 2 || !regexp.MustCompile("^"+want).MatchString(said[i].Message) {
			t.Fatalf("at the end: %v, want %s", said, want)
		}
	}

	for name, a := range map[string]*Announcer{"none": nil, "another level": NewAnnouncer(zap.NewNop())} {
		k, to := key("192.0.2.2:4000", "192.0.2.1:80", frame.ProtoTCP), at("127.0.0.1:80")
		if n := testing.AllocsPerRun(100, func() {
			a.FromGuest(k, to).End()
			a.FromHost(k, to, to).End()
			a.Spliced(frame.ProtoTCP, true, to, to, to).End()
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
