package actors

import (
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"fusilli/actors/flow"
	"fusilli/actors/rules"
	"fusilli/tapio/frame"
)

// sorted has the reader of a new engine sort UDP datagrams from each of from, and returns the
// engine.
func sorted(t testing.TB, c Config, from ...string) *Engine {
	t.Helper()
	c.Link, c.Log, c.NoUDP = sink{}, zap.NewNop(), true // no flows
	e := New(c)
	r := reader{e: e}
	slab := e.pool.Get()
	defer slab.Release()
	for _, f := range from {
		var pkt frame.Packet
		a := netip.MustParseAddr(f)
		b := seed(a.Is6(), 17, 0x80, 2, 0, 9, 0, 9, 0, 0, 'x')
		if a.Is4() {
			copy(b[frame.L3Off+12:], a.AsSlice())
			if a.IsUnspecified() {
				b[frame.L3Off+frame.IPv4Len+3] = 67
			}
		} else {
			copy(b[frame.L3Off+8:], a.AsSlice())
		}
		if why := frame.Parse(b, &pkt); why != frame.OK {
			t.Fatalf("from %s: %v", f, why)
		}
		r.sort(slab, b, &pkt)
	}
	return e
}

// TestGuestIsSeen is where the guest is taken to be after packets from some addresses, before any
// was asked for.
func TestGuestIsSeen(t *testing.T) {
	addr := netip.MustParseAddr
	known := rules.Guest{V4: addr("10.0.2.15"), V6: addr("fd00::15")}
	assigned := rules.Rules{Assigned6: addr("fd00::15")}
	for _, tt := range []struct {
		name   string
		config Config
		from   []string
		want   rules.Guest
		want6  string // Rules.Assigned6, if another than Config's
	}{
		{"nothing yet", Config{Guest: known}, nil, known, ""},
		{"itself", Config{Guest: known}, []string{"10.0.2.15", "fd00::15"}, known, ""},
		{"another IPv4 address", Config{Guest: known}, []string{"10.0.2.99"}, known, ""},
		{"the first IPv4 address", Config{}, []string{"10.0.2.99", "10.0.2.98"}, rules.Guest{V4: addr("10.0.2.99")}, ""},
		{"none, asking for one", Config{Guest: known}, []string{"0.0.0.0"}, known, ""},
		{"global IPv6", Config{Guest: known}, []string{"fd00::99"}, known, ""},
		{"the first global IPv6", Config{}, []string{"fd00::99", "fd00::98"}, rules.Guest{V6: addr("fd00::99")}, ""},
		{"link-local beside global", Config{Guest: known, Rules: assigned}, []string{"fe80::1", "fd00::99", "fe80::2"},
			rules.Guest{V4: known.V4, V6: known.V6, LinkLocal: addr("fe80::1")}, ""},
		{"link-local only", Config{}, []string{"fe80::1", "fe80::2"},
			rules.Guest{V6: addr("fe80::1"), LinkLocal: addr("fe80::1")}, "fe80::1"},
		{"global after link-local", Config{}, []string{"fe80::1", "fd00::9"},
			rules.Guest{V6: addr("fe80::1"), LinkLocal: addr("fe80::1")}, "fe80::1"},
		{"frozen", Config{Guest: known, Frozen4: true, Frozen6: true}, []string{"10.0.2.99", "fd00::99", "fe80::1"},
			rules.Guest{V4: known.V4, V6: known.V6, LinkLocal: addr("fe80::1")}, "fe80::1"},
		{"one frozen, none yet", Config{Frozen4: true}, []string{"10.0.2.99", "fd00::99"}, rules.Guest{V6: addr("fd00::99")}, ""},
		{"the gateway's", Config{Rules: rules.Rules{OurTap4: addr("10.0.2.2")}}, []string{"10.0.2.2"}, rules.Guest{}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := tt.config
			c.V4, c.V6 = true, true
			e := sorted(t, c, tt.from...)
			if got := e.Guest(); got != tt.want {
				t.Errorf("Guest = %+v, want %+v", got, tt.want)
			}
			want6 := c.Rules.Assigned6
			if tt.want6 != "" {
				want6 = addr(tt.want6)
			}
			if got := e.Rules().Assigned6; got != want6 {
				t.Errorf("assigned IPv6 address %v, want %v", got, want6)
			}
		})
	}
	t.Run("a family that is not carried", func(t *testing.T) {
		if got := sorted(t, Config{}, "10.0.2.99", "fd00::99", "fe80::1").Guest(); got != (rules.Guest{}) {
			t.Errorf("Guest = %+v", got)
		}
	})
}

// TestSeeingAllocatesNothing: not for a packet, and not for a change either.
func TestSeeingAllocatesNothing(t *testing.T) {
	e := sorted(t, Config{V4: true, V6: true})
	r := reader{e: e}
	slab := e.pool.Get()
	defer slab.Release()
	var frames [4][]byte
	var pkts [4]frame.Packet
	for i := range frames {
		frames[i] = seed(i%2 == 1, 17, 0x80, 2, 0, 9, 0, 9, 0, 0, 'x')
		if i < 2 {
			frames[i][frame.L3Off+15]++ // of the source
		}
		if why := frame.Parse(frames[i], &pkts[i]); why != frame.OK {
			t.Fatal(why)
		}
	}
	if n := testing.AllocsPerRun(100, func() {
		for i := range frames {
			r.sort(slab, frames[i], &pkts[i])
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestProtocolsAreSwitchedOff: of a protocol, or an IP version, that is off no flow is made.
func TestProtocolsAreSwitchedOff(t *testing.T) {
	syn := []byte{0x80, 1, 0, 9, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, frame.SYN, 0xff, 0xff, 0, 0, 0, 0}
	udp := []byte{0x80, 2, 0, 9, 0, 9, 0, 0, 'x'}
	echo4, echo6 := []byte{8, 0, 0, 0, 0, 7, 0, 1, 'x'}, []byte{128, 0, 0, 0, 0, 7, 0, 1, 'x'}
	for _, tt := range []struct {
		name   string
		frame  []byte
		change func(*Config)
	}{
		{"TCP", seed(false, 6, syn...), func(c *Config) { c.NoTCP = true }},
		{"TCP over IPv6", seed(true, 6, syn...), func(c *Config) { c.NoTCP = true }},
		{"UDP", seed(false, 17, udp...), func(c *Config) { c.NoUDP = true }},
		{"UDP over IPv6", seed(true, 17, udp...), func(c *Config) { c.NoUDP = true }},
		{"ICMP", seed(false, 1, echo4...), func(c *Config) { c.NoICMP = true }},
		{"ICMPv6", seed(true, 58, echo6...), func(c *Config) { c.NoICMP = true }},
		{"TCP without IPv4", seed(false, 6, syn...), func(c *Config) { c.V4 = false }},
		{"TCP without IPv6", seed(true, 6, syn...), func(c *Config) { c.V6 = false }},
		{"UDP without IPv4", seed(false, 17, udp...), func(c *Config) { c.V4 = false }},
		{"UDP without IPv6", seed(true, 17, udp...), func(c *Config) { c.V6 = false }},
		{"ICMP without IPv4", seed(false, 1, echo4...), func(c *Config) { c.V4 = false }},
		{"ICMPv6 without IPv6", seed(true, 58, echo6...), func(c *Config) { c.V6 = false }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, off := range []bool{false, true} {
				c := Config{Link: sink{}, Log: zap.NewNop(), V4: true, V6: true}
				c.Rules.HostLoopback4, c.Rules.HostLoopback6 = families[0].alias, families[1].alias
				if off {
					tt.change(&c)
				}
				e := New(c)
				r := reader{e: e}
				slab := e.pool.Get()
				var pkt frame.Packet
				copy(slab.Room(), tt.frame)
				if why := frame.Parse(tt.frame, &pkt); why != frame.OK {
					t.Fatal(why)
				}
				r.sort(slab, slab.Room()[:len(tt.frame)], &pkt)
				made := e.env.Counters.TCP.Load() + e.env.Counters.UDP.Load() + e.env.Counters.ICMP.Load()
				if want := uint64(1); off == (made == want) || r.any == off {
					t.Errorf("switched off: %v; %d flows made, kept: %v", off, made, r.any)
				}
				r.deliver(slab)
				slab.Release()
				e.table.Each((*flow.Port).Stop)
				e.flows.Wait()
			}
		})
	}
}

// TestAnswersGoWhereFramesComeFrom: a flow's frames go to the station that its guest's end is at,
// be it a station behind a bridge of the guest's; what the host begins goes to the guest's own
// Ethernet address.
func TestAnswersGoWhereFramesComeFrom(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		other := frame.MAC{2, 0, 0, 0, 0, 0x77}
		b := newBed(t, options{change: func(c *Config) { c.GuestMAC = other }})
		b.GuestInterface(&Interface{MAC: other, Addrs: []netip.Addr{fam.guest()}})
		var elsewhere atomic.Int64
		watch := func(f []byte) {
			if frame.Dst(f) == other {
				elsewhere.Add(1)
			}
		}
		b.guest.port.watch.Store(&watch)
		g, h := b.connect(fam, listen(t, fam))
		done := make(chan error, 1)
		go func() { done <- send(h, 100000, 1) }()
		if err := receive(g, 100000, 1); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if _, err := g.Write([]byte("x")); err != nil {
			t.Error(err)
		}
		echo, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(fam.loopback, 0)))
		if err != nil {
			t.Fatal(err)
		}
		defer echo.Close()
		u := b.guest.dialUDP(t, netip.AddrPortFrom(fam.alias, echo.LocalAddr().(*net.UDPAddr).AddrPort().Port()))
		defer u.Close()
		u.Write([]byte("hello"))
		buf := make([]byte, 10)
		echo.SetDeadline(time.Now().Add(patience))
		n, from, err := echo.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Fatal(err)
		}
		echo.WriteToUDPAddrPort(buf[:n], from)
		u.SetDeadline(time.Now().Add(patience))
		if _, err := u.Read(buf); err != nil {
			t.Errorf("no answer to a datagram: %v", err)
		}
		if n := elsewhere.Load(); n != 0 {
			t.Errorf("%d frames went elsewhere", n)
		}
		if got := b.env.GuestMAC(); got != other {
			t.Errorf("the guest is at %v", got)
		}
	})
}
