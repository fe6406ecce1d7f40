package actors

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"fusilli/actors/flow"
	"fusilli/actors/neigh"
	"fusilli/actors/rules"
	"fusilli/tapio/frame"
)

// to is the frame b, of UDP, with another destination and port.
func to(b []byte, dst string, port uint8, high uint8) []byte {
	a := netip.MustParseAddr(dst)
	off, l4 := frame.L3Off+24, frame.L3Off+frame.IPv6Len
	if a.Is4() {
		off, l4 = frame.L3Off+16, frame.L3Off+frame.IPv4Len
	}
	copy(b[off:], a.AsSlice())
	b[l4+2], b[l4+3] = high, port
	return b
}

// TestDatagramsForServers: what is sent to the port of DHCP or DHCPv6 is the server's, whatever its
// destination. Without a server it goes nowhere: not to the host either.
func TestDatagramsForServers(t *testing.T) {
	udp := []byte{0, 68, 0, 0, 0, 9, 0, 0, 'x'}
	for _, tt := range []struct {
		name  string
		frame []byte
		port  func(*services) *flow.Port // nil: a flow's
	}{
		{"DHCP to everybody", to(seed(false, 17, udp...), "255.255.255.255", 67, 0), func(s *services) *flow.Port { return s.dhcp }},
		{"DHCP to the gateway", to(seed(false, 17, udp...), "10.0.2.2", 67, 0), func(s *services) *flow.Port { return s.dhcp }},
		{"DHCP to anybody", to(seed(false, 17, udp...), "198.51.100.1", 67, 0), func(s *services) *flow.Port { return s.dhcp }},
		{"DHCPv6 to all servers", to(seed(true, 17, udp...), "ff02::1:2", 0x23, 2), func(s *services) *flow.Port { return s.dhcpv6 }},
		{"DHCPv6 to anybody", to(seed(true, 17, udp...), "2001:db8::1", 0x23, 2), func(s *services) *flow.Port { return s.dhcpv6 }},
		{"DHCP's port over IPv6", to(seed(true, 17, udp...), "::ffff", 67, 0), nil},
		{"DHCPv6's port over IPv4", to(seed(false, 17, udp...), "10.0.2.2", 0x23, 2), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, served := range []bool{true, false} {
				e, link, _ := newEngine(&options{change: func(c *Config) {
					if !served {
						c.DHCP, c.DHCPv6 = nil, nil
					}
				}})
				var pkt frame.Packet
				if why := frame.Parse(tt.frame, &pkt); why != frame.OK {
					t.Fatal(why)
				}
				k := keyOf(&pkt)
				var o openPlan
				got := e.plan(&k, tt.frame, &pkt, &o)
				switch {
				case tt.port == nil:
					if o.serve == nil || got != nil {
						t.Errorf("served %v: no flow", served)
					}
				case o.serve != nil:
					t.Errorf("served %v: a flow", served)
				case served && got != tt.port(&e.services):
					t.Error("not the server's")
				case !served && got != drop:
					t.Error("without a server, not dropped")
				}
				link.Close()
			}
		})
	}
}

// TestQuestionsOfAFamilyThatIsOff: of an IP version that is not carried nothing is answered.
func TestQuestionsOfAFamilyThatIsOff(t *testing.T) {
	udp := []byte{0, 68, 0, 0, 0, 9, 0, 0, 'x'}
	arp := append(make([]byte, frame.VnetLen+12), 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 0, 10, 0, 2, 100, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2)
	rs := seed(true, 58, 133, 0, 0, 0, 0, 0, 0, 0)
	rs[frame.L3Off+7] = 255
	for _, tt := range []struct {
		name  string
		v6    bool
		frame []byte
	}{
		{"ARP", false, arp},
		{"router solicitation", true, rs},
		{"DHCP", false, to(seed(false, 17, udp...), "255.255.255.255", 67, 0)},
		{"DHCPv6", true, to(seed(true, 17, udp...), "ff02::1:2", 0x23, 2)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, on := range []bool{true, false} {
				e, link, _ := newEngine(&options{change: func(c *Config) {
					if tt.v6 {
						c.V6 = on
					} else {
						c.V4 = on
					}
				}})
				var pkt frame.Packet
				if why := frame.Parse(tt.frame, &pkt); why != frame.OK {
					t.Fatal(why)
				}
				r := reader{e: e}
				answered := false
				switch r.find(tt.frame, &pkt) {
				case e.services.neigh:
					answered = e.answerNeigh(&flow.View{Frame: tt.frame}, &pkt, make([]byte, neigh.ReplyLen)) > 0
				case e.services.dhcp, e.services.dhcpv6:
					answered = true
				case drop:
				default:
					t.Error("a flow")
				}
				if answered != on {
					t.Errorf("on %v, answered %v", on, answered)
				}
				link.Close()
			}
		})
	}
}

// TestGuestThatIsToldItsAddress: with the reply to DHCPv6 the guest is expected where it was told
// to be.
func TestGuestThatIsToldItsAddress(t *testing.T) {
	assigned, seen := netip.MustParseAddr("fd00::15"), netip.MustParseAddr("fd00::99")
	m := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeSolicit}
	m.AddOption(dhcpv6.OptClientID(&dhcpv6.DUIDUUID{}))
	solicit := m.ToBytes()
	for _, tt := range []struct {
		name   string
		body   []byte
		frozen bool
		want   netip.Addr
	}{
		{"answered", solicit, false, assigned},
		{"not answered", solicit[:4], false, netip.IPv6Unspecified()},
		{"frozen", solicit, true, netip.IPv6Unspecified()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e, link, _ := newEngine(&options{change: func(c *Config) {
				c.Rules.Assigned6, c.Guest, c.Frozen6 = assigned, rules.Guest{V6: seen}, tt.frozen
			}})
			defer link.Close()
			in := to(seed(true, 17, append([]byte{2, 34, 0, 0, 0, uint8(8 + len(tt.body)), 0, 0}, tt.body...)...), "ff02::1:2", 0x23, 2)
			var pkt frame.Packet
			if why := frame.Parse(in, &pkt); why != frame.OK {
				t.Fatal(why)
			}
			n := e.answerDHCPv6(&flow.View{Frame: in}, &pkt, make([]byte, frame.MaxFrame))
			if (n > 0) != (len(tt.body) > 4) {
				t.Errorf("an answer of %d bytes", n)
			}
			if got := frame.NetIP(e.guestAddr.verifier.asked[kind6].again.addr); got != tt.want {
				t.Errorf("the guest is expected at %v, want %v", got, tt.want)
			}
			if got := e.Guest().V6; got != seen {
				t.Errorf("the guest is at %v, want %v", got, seen)
			}
		})
	}
}

// TestHardwareAddressOfTheGuest is the source of its first frame, whatever that was for and
// whatever was in it, as long as there was a packet; and the next time that of the first after the
// guest has reconnected. It is told once a second at most.
func TestHardwareAddressOfTheGuest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zapcore.InfoLevel)
		e := New(Config{Link: sink{}, Log: zap.New(core), V4: true, NoTCP: true, GuestMAC: frame.Broadcast})
		r := reader{e: e}
		slab := e.pool.Get()
		defer slab.Release()
		from := func(src, dst, want frame.MAC, l4 ...byte) {
			t.Helper()
			var pkt frame.Packet
			b := seed(false, 6, append([]byte{0x80, 1, 0, 9, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, frame.SYN, 0xff, 0xff, 0, 0, 0, 0}, l4...)...)
			copy(b[frame.VnetLen:], dst[:])
			copy(b[frame.VnetLen+6:], src[:])
			if why := frame.Parse(b, &pkt); why != frame.OK {
				t.Fatal(why)
			}
			r.sort(slab, b, &pkt)
			if got := e.env.GuestMAC(); got != want {
				t.Errorf("frames go to %v, want %v", got, want)
			}
		}
		if e.env.GuestMAC() != frame.Broadcast {
			t.Errorf("at first frames go to %v", e.env.GuestMAC())
		}
		a, b, c := frame.MAC{2, 0, 0, 0, 0, 1}, frame.MAC{2, 0, 0, 0, 0, 2}, frame.MAC{2, 0, 0, 0, 0, 3}
		from(frame.Broadcast, ourMAC, frame.Broadcast)
		from(a, frame.MAC{2, 9, 9, 9, 9, 9}, a) // for nobody we know of
		from(b, ourMAC, a)
		e.guestAddr.reconnected()
		from(b, ourMAC, b)
		e.guestAddr.reconnected()
		from(b, ourMAC, b)
		from(a, ourMAC, b)
		time.Sleep(2 * time.Second)
		e.guestAddr.reconnected()
		from(c, frame.Broadcast, c)
		var got []string
		for _, l := range logs.All() {
			got = append(got, l.Message)
		}
		if len(got) != 2 || got[0] != "New guest MAC address observed: 02:00:00:00:00:01" || got[1] != "New guest MAC address observed: 02:00:00:00:00:03" {
			t.Errorf("log %q", got)
		}
	})
}
