package actors

import (
	"context"
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"fusilli/actors/neigh"
	"fusilli/actors/rules"
	"fusilli/tapio/frame"
)

// wire is the guest's side of a link in virtual time: stations that answer questions about their
// addresses. Frames go straight to the reader.
type wire struct {
	sink
	e    *Engine
	t    testing.TB
	stop func()

	mu       sync.Mutex
	r        reader
	stations map[station]bool
	asked    int
	lag      time.Duration // of answers
}

// places are addresses of one kind.
type places struct {
	name           string
	kind           int
	here, new, far frame.Addr // the guest's, another one of its, one that nobody has
	gateway        frame.Addr
}

func place(s string) frame.Addr { return frame.AddrOf(netip.MustParseAddr(s)) }

var kindsOfPlaces = []places{
	{"IPv4", kind4, place("10.0.2.15"), place("10.0.2.99"), place("10.0.2.66"), place("10.0.2.2")},
	{"IPv6", kind6, place("fd00::15"), place("fd00::99"), place("fd00::66"), place("fd00::2")},
	{"link-local", kindLocal, place("fe80::15"), place("fe80::99"), place("fe80::66"), place("fe80::1")},
}

var (
	newMAC   = frame.MAC{2, 0, 0, 0, 0, 0x99}
	otherMAC = frame.MAC{2, 0, 0, 0, 0, 0x66}
)

// newWire starts what verifies, for a guest at here of each of kindsOfPlaces.
func newWire(t testing.TB, change func(*Config)) *wire {
	s := &wire{t: t, stations: make(map[station]bool), lag: time.Millisecond}
	addr := netip.MustParseAddr
	c := Config{
		Link: s, Log: zap.NewNop(), V4: true, V6: true, NoUDP: true, OurMAC: ourMAC, GuestMAC: guestMAC,
		Neigh: neigh.Responder{MAC: ourMAC, LinkLocal: place("fe80::1"), Our4: place("10.0.2.2")},
		Rules: rules.Rules{
			Assigned4: addr("10.0.2.15"), Assigned6: addr("fd00::15"), OurTap4: addr("10.0.2.2"), OurLinkLocal: addr("fe80::1"),
			HostLoopback6: addr("fd00::2"),
		},
		Guest: rules.Guest{V4: addr("10.0.2.15"), V6: addr("fd00::15"), LinkLocal: addr("fe80::15")},
	}
	if change != nil {
		change(&c)
	}
	s.e = New(c)
	s.r.e = s.e
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.e.verify(ctx)
	}()
	s.stop = func() {
		cancel()
		<-done
	}
	return s
}

// has says which stations there are from now on.
func (s *wire) has(list ...station) {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.stations)
	for _, o := range list {
		s.stations[o] = true
	}
}

// Write is Link's: it takes a question.
func (s *wire) Write(b []byte) error {
	var p frame.Packet
	if why := frame.Parse(b, &p); why != frame.OK {
		s.t.Errorf("a question is %v", why)
		return nil
	}
	var of frame.Addr
	switch {
	case p.Kind == frame.ARP:
		of = frame.Addr4([4]byte(b[frame.L3Off+24:]))
	case p.Kind == frame.NDP && b[p.L4] == 135:
		of = frame.Addr(b[p.L4+8:])
	default:
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	for o := range s.stations {
		if to := frame.Dst(b); o.addr == of && (to[0]&1 != 0 || to == o.mac) {
			time.AfterFunc(s.lag, func() { s.answer(o) })
		}
	}
	return nil
}

// answer tells us of o.
func (s *wire) answer(o station) { s.deliver(answerOf(o, o.mac)) }

// answerOf is the answer of the station mac about o.
func answerOf(o station, mac frame.MAC) []byte {
	b := make([]byte, neigh.ReplyLen)
	if frame.Is4(&o.addr) {
		frame.PutEth(b, ourMAC, mac, frame.EtherARP)
		a := b[frame.L3Off:]
		binary.BigEndian.PutUint64(a, 0x0001_0800_0604_0002)
		copy(a[8:], o.mac[:])
		copy(a[14:], o.addr[12:])
		copy(a[18:], ourMAC[:])
		return b[:frame.Pad(b, frame.L3Off+frame.ARPLen)]
	}
	frame.PutEth(b, ourMAC, mac, frame.EtherIPv6)
	frame.PutIPv6(b[frame.L3Off:], &frame.IP{Src: o.addr, Dst: place("fe80::1"), Proto: frame.ProtoICMPv6, TTL: 255, Len: 32})
	m := b[frame.L3Off+frame.IPv6Len:]
	m[0], m[4] = 136, 0x60
	copy(m[8:], o.addr[:])
	m[24], m[25] = 2, 1
	copy(m[26:], o.mac[:])
	return b[:frame.L3Off+frame.IPv6Len+32]
}

// speak sends a datagram from o.
func (s *wire) speak(o station) {
	b := seed(!frame.Is4(&o.addr), 17, 0x80, 2, 0, 9, 0, 9, 0, 0, 'x')
	if frame.Is4(&o.addr) {
		copy(b[frame.L3Off+12:], o.addr[12:])
	} else {
		copy(b[frame.L3Off+8:], o.addr[:])
	}
	copy(b[frame.VnetLen+6:], o.mac[:])
	s.deliver(b)
}

func (s *wire) deliver(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var p frame.Packet
	if frame.Parse(b, &p) == frame.OK {
		s.r.look(b, &p)
	}
}

// at returns where the guest is.
func (s *wire) at(k int) station {
	return station{s.e.guestAddr.current.Load().guest[k], s.e.env.GuestMAC()}
}

// within reports an error unless the guest is at want in less than a second, while what says is
// said.
func (s *wire) within(k int, want station, what func()) {
	s.t.Helper()
	for start := time.Now(); s.at(k) != want; time.Sleep(10 * time.Millisecond) {
		if time.Since(start) >= time.Second {
			s.t.Fatalf("after a second the guest is at %v %v, want %v %v", frame.NetIP(s.at(k).addr), s.at(k).mac,
				frame.NetIP(want.addr), want.mac)
		}
		what()
		synctest.Wait()
	}
}

// stays reports an error unless the guest stays where it is for some seconds, while what says is
// said.
func (s *wire) stays(k int, what func()) {
	s.t.Helper()
	was := s.at(k)
	for start := time.Now(); time.Since(start) < 4*time.Second; time.Sleep(10 * time.Millisecond) {
		what()
		synctest.Wait()
		if is := s.at(k); is != was {
			s.t.Fatalf("after %v the guest is at %v %v, was at %v %v", time.Since(start), frame.NetIP(is.addr), is.mac,
				frame.NetIP(was.addr), was.mac)
		}
	}
}

func nothing() {}

// forPlaces runs f for each kind of addresses, in virtual time.
func forPlaces(t *testing.T, name string, change func(*Config), f func(*testing.T, *wire, *places)) {
	for i := range kindsOfPlaces {
		p := &kindsOfPlaces[i]
		t.Run(name+"/"+p.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newWire(t, change)
				defer s.stop()
				f(t, s, p)
			})
		})
	}
}

// TestGuestIsFollowed: whatever happens to a machine, it is found where it is in less than a
// second, and what a frame says alone moves nothing.
func TestGuestIsFollowed(t *testing.T) {
	machine := func(name string, f func(*testing.T, *wire, *places)) { forPlaces(t, name, nil, f) }
	once := func(s *wire, o station) func() {
		first := true
		return func() {
			if first {
				s.speak(o)
			}
			first = false
		}
	}
	machine("one spoofed frame", func(t *testing.T, s *wire, p *places) {
		s.has(station{p.here, guestMAC})
		s.stays(p.kind, once(s, station{p.far, guestMAC}))
	})
	machine("spoofed and answered for", func(t *testing.T, s *wire, p *places) {
		s.has(station{p.here, guestMAC}, station{p.far, guestMAC}, station{p.far, otherMAC}, station{p.here, otherMAC})
		s.stays(p.kind, func() {
			s.speak(station{p.far, guestMAC})
			s.speak(station{p.far, otherMAC})
			s.speak(station{p.here, otherMAC})
		})
	})
	machine("answers nobody has asked for", func(t *testing.T, s *wire, p *places) {
		s.has(station{p.here, guestMAC})
		s.stays(p.kind, func() { s.answer(station{p.far, guestMAC}); s.answer(station{p.here, otherMAC}) })
	})
	machine("nobody answers", func(t *testing.T, s *wire, p *places) {
		s.stays(p.kind, func() { s.speak(station{p.far, guestMAC}) })
	})
	machine("another station answers", func(t *testing.T, s *wire, p *places) {
		s.has(station{p.far, otherMAC})
		s.stays(p.kind, func() { s.speak(station{p.far, guestMAC}) })
	})
	machine("another station answers, and is the guest", func(t *testing.T, s *wire, p *places) {
		s.has(station{p.far, otherMAC})
		s.speak(station{p.far, guestMAC})
		synctest.Wait()
		s.within(p.kind, station{p.far, otherMAC}, func() {
			if s.at(p.kind) == (station{p.far, guestMAC}) {
				t.Fatal("the guest is where nobody has answered")
			}
			s.answer(station{p.far, otherMAC})
		})
	})
	machine("another station says that the guest is there", func(t *testing.T, s *wire, p *places) {
		s.stays(p.kind, func() {
			s.speak(station{p.far, guestMAC})
			s.deliver(answerOf(station{p.far, guestMAC}, otherMAC))
		})
	})
	machine("another address", func(t *testing.T, s *wire, p *places) {
		s.has(station{p.new, guestMAC})
		s.within(p.kind, station{p.new, guestMAC}, once(s, station{p.new, guestMAC}))
	})
	machine("a second address, then the first goes", func(t *testing.T, s *wire, p *places) {
		s.has(station{p.here, guestMAC}, station{p.new, guestMAC})
		speak := func() { s.speak(station{p.new, guestMAC}) }
		s.stays(p.kind, speak)
		for range 7 { // at different times between two questions
			s.has(station{p.new, guestMAC})
			s.within(p.kind, station{p.new, guestMAC}, speak)
			s.has(station{p.here, guestMAC})
			s.within(p.kind, station{p.here, guestMAC}, func() { s.speak(station{p.here, guestMAC}) })
			s.has(station{p.here, guestMAC}, station{p.new, guestMAC})
			for range 37 {
				speak()
				time.Sleep(11 * time.Millisecond)
			}
		}
	})
	machine("another Ethernet address", func(t *testing.T, s *wire, p *places) {
		s.has(station{p.here, newMAC})
		s.within(p.kind, station{p.here, newMAC}, once(s, station{p.here, newMAC}))
	})
	machine("both", func(t *testing.T, s *wire, p *places) {
		s.has(station{p.new, newMAC})
		s.within(p.kind, station{p.new, newMAC}, once(s, station{p.new, newMAC}))
	})
	machine("a second address at another Ethernet address, and the first as well", func(t *testing.T, s *wire, p *places) {
		s.has(station{p.here, newMAC}, station{p.new, newMAC})
		s.within(p.kind, station{p.here, newMAC}, once(s, station{p.new, newMAC}))
	})
	machine("a slow guest", func(t *testing.T, s *wire, p *places) {
		s.lag = 70 * time.Millisecond
		s.has(station{p.here, guestMAC}, station{p.far, guestMAC})
		s.stays(p.kind, func() { s.speak(station{p.far, guestMAC}) })
		s.has(station{p.new, guestMAC})
		s.within(p.kind, station{p.new, guestMAC}, once(s, station{p.new, guestMAC}))
	})
	machine("reconnected", func(t *testing.T, s *wire, p *places) {
		s.e.Greet()
		s.speak(station{p.new, newMAC})
		if got := s.e.env.GuestMAC(); got != newMAC {
			t.Errorf("frames go to %v, want %v", got, newMAC)
		}
		s.has(station{p.new, newMAC})
		s.within(p.kind, station{p.new, newMAC}, nothing)
	})
	machine("the gateway's address", func(t *testing.T, s *wire, p *places) {
		s.has(station{p.gateway, guestMAC})
		s.stays(p.kind, func() { s.speak(station{p.gateway, guestMAC}) })
	})
	forPlaces(t, "an address of the host's", func(c *Config) {
		c.HostHas = func(a netip.Addr) bool { return a == netip.MustParseAddr("fd00::99") }
	}, func(t *testing.T, s *wire, p *places) {
		s.has(station{p.new, guestMAC})
		if p.kind != kind6 {
			s.within(p.kind, station{p.new, guestMAC}, once(s, station{p.new, guestMAC}))
			return
		}
		s.stays(p.kind, func() { s.speak(station{p.new, guestMAC}) })
	})
	forPlaces(t, "frozen", func(c *Config) { c.Frozen4, c.Frozen6 = true, true }, func(t *testing.T, s *wire, p *places) {
		s.has(station{p.new, guestMAC})
		if p.kind == kindLocal {
			s.within(p.kind, station{p.new, guestMAC}, once(s, station{p.new, guestMAC}))
			return
		}
		s.stays(p.kind, func() { s.speak(station{p.new, guestMAC}) })
	})
	machine("Ethernet addresses that no guest has", func(t *testing.T, s *wire, p *places) {
		s.stays(p.kind, func() {
			for _, mac := range []frame.MAC{ourMAC, {}, frame.Broadcast, {0x33, 0x33, 0, 0, 0, 1}} {
				s.has(station{p.new, mac}, station{p.here, mac})
				s.speak(station{p.new, mac})
				s.speak(station{p.here, mac})
			}
		})
	})
}

// TestGuestIsSprayedFrom: a guest that sends from any number of addresses makes us ask little and
// keep nothing, and is found afterwards.
func TestGuestIsSprayedFrom(t *testing.T) {
	forPlaces(t, "", nil, func(t *testing.T, s *wire, p *places) {
		s.has(station{p.here, guestMAC})
		start, n := time.Now(), uint32(0)
		for time.Since(start) < 5*time.Second {
			for range 10 {
				n++
				a, mac := p.far, otherMAC
				binary.BigEndian.PutUint16(a[14:], uint16(n)|0x100)
				binary.BigEndian.PutUint16(mac[3:], uint16(n>>4))
				s.speak(station{a, mac})
			}
			time.Sleep(time.Millisecond)
			synctest.Wait()
		}
		if got := s.at(p.kind); got != (station{p.here, guestMAC}) {
			t.Errorf("the guest is at %v", got)
		}
		if most := 5 * int(time.Since(start)/verifyInterval+1); s.asked > most {
			t.Errorf("%d frames from %d sources make %d questions, want %d at most", n, n, s.asked, most)
		}
		s.has(station{p.new, newMAC})
		s.within(p.kind, station{p.new, newMAC}, func() { s.speak(station{p.new, newMAC}) })
	})
}

// TestFirstAddresses: a guest without an address is where it is first seen, a link-local address
// stands in for a global one, and one that was assigned by DHCPv6 is waited for.
func TestFirstAddresses(t *testing.T) {
	none := func(c *Config) { c.Guest, c.Rules.Assigned6, c.GuestMAC = rules.Guest{}, netip.Addr{}, frame.Broadcast }
	v6, ll := &kindsOfPlaces[1], &kindsOfPlaces[2]
	run := func(name string, change func(*Config), f func(*testing.T, *wire)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newWire(t, change)
				defer s.stop()
				f(t, s)
			})
		})
	}
	for i := range kindsOfPlaces {
		p := &kindsOfPlaces[i]
		run("first "+p.name, none, func(t *testing.T, s *wire) {
			s.speak(station{p.new, newMAC})
			if got := s.at(p.kind); got != (station{p.new, newMAC}) {
				t.Errorf("the guest is at %v", got)
			}
		})
	}
	run("link-local stands in", none, func(t *testing.T, s *wire) {
		s.speak(station{ll.here, guestMAC})
		if got, want := s.e.Guest(), frame.NetIP(ll.here); got.V6 != want || got.LinkLocal != want || s.e.Rules().Assigned6 != want {
			t.Errorf("the guest is at %v", got)
		}
		s.has(station{ll.here, guestMAC}, station{v6.new, guestMAC})
		s.stays(kind6, func() { s.speak(station{v6.far, guestMAC}) })
		s.within(kind6, station{v6.new, guestMAC}, func() { s.speak(station{v6.new, guestMAC}) })
	})
	run("told", none, func(t *testing.T, s *wire) {
		s.speak(station{ll.here, guestMAC})
		s.e.guestAddr.assigned6 = frame.NetIP(v6.new)
		s.has(station{ll.here, guestMAC})
		s.e.guestAddr.told6(guestMAC)
		time.Sleep(2 * time.Second) // duplicate address detection
		if got := s.at(kind6); got.addr != ll.here {
			t.Errorf("the guest is at %v", got)
		}
		s.has(station{ll.here, guestMAC}, station{v6.new, guestMAC})
		s.within(kind6, station{v6.new, guestMAC}, nothing)
	})
	run("told, but elsewhere", nil, func(t *testing.T, s *wire) {
		s.e.guestAddr.move(kind6, v6.new)
		s.has(station{v6.new, guestMAC})
		s.stays(kind6, func() { s.e.guestAddr.told6(otherMAC) })
	})
}

// TestKernelIsBelieved: in a namespace the guest is where its kernel says, whatever frames say and
// whoever answers.
func TestKernelIsBelieved(t *testing.T) {
	addrs := func(list ...frame.Addr) (l []netip.Addr) {
		for _, a := range list {
			l = append(l, frame.NetIP(a))
		}
		return l
	}
	in := func(name string, f func(*testing.T, *wire, *places)) {
		forPlaces(t, name, nil, func(t *testing.T, s *wire, p *places) {
			s.e.GuestInterface(&Interface{MAC: guestMAC, Addrs: addrs(p.here)})
			f(t, s, p)
		})
	}
	is := func(t *testing.T, s *wire, p *places, want station) {
		t.Helper()
		if got := s.at(p.kind); got != want {
			t.Errorf("the guest is at %v %v, want %v %v", frame.NetIP(got.addr), got.mac, frame.NetIP(want.addr), want.mac)
		}
	}
	in("spoofed", func(t *testing.T, s *wire, p *places) {
		s.has(station{p.far, otherMAC}, station{p.here, otherMAC})
		s.stays(p.kind, func() { s.speak(station{p.far, otherMAC}); s.speak(station{p.here, otherMAC}) })
		if s.asked != 0 {
			t.Errorf("%d questions", s.asked)
		}
	})
	in("another address", func(t *testing.T, s *wire, p *places) {
		s.e.GuestInterface(&Interface{MAC: guestMAC})
		is(t, s, p, station{p.here, guestMAC}) // until there is another one
		s.e.GuestInterface(&Interface{MAC: newMAC, Addrs: addrs(p.new, p.far)})
		is(t, s, p, station{p.new, newMAC})
	})
	in("a second address", func(t *testing.T, s *wire, p *places) {
		s.e.GuestInterface(&Interface{MAC: guestMAC, Addrs: addrs(p.new, p.here)})
		is(t, s, p, station{p.here, guestMAC})
		s.speak(station{p.new, guestMAC})
		is(t, s, p, station{p.new, guestMAC})
		s.speak(station{p.here, guestMAC})
		is(t, s, p, station{p.here, guestMAC})
	})
	in("a frame before the kernel's word", func(t *testing.T, s *wire, p *places) {
		s.speak(station{p.new, guestMAC})
		is(t, s, p, station{p.here, guestMAC})
		s.e.GuestInterface(&Interface{MAC: guestMAC, Addrs: addrs(p.here, p.new)})
		is(t, s, p, station{p.new, guestMAC})
	})
	in("an address of another interface", func(t *testing.T, s *wire, p *places) {
		s.e.GuestInterface(&Interface{MAC: guestMAC, Addrs: addrs(p.here), Others: addrs(p.new)})
		s.stays(p.kind, func() { s.speak(station{p.new, guestMAC}) })
		s.e.GuestInterface(&Interface{MAC: guestMAC, Others: addrs(p.new, p.far)})
		is(t, s, p, station{p.new, guestMAC}) // the last that was used
		s.speak(station{p.far, guestMAC})
		is(t, s, p, station{p.far, guestMAC})
	})
	in("the gateway's address", func(t *testing.T, s *wire, p *places) {
		s.e.GuestInterface(&Interface{MAC: guestMAC, Addrs: addrs(p.gateway)})
		s.speak(station{p.gateway, guestMAC})
		is(t, s, p, station{p.here, guestMAC})
	})
	in("a station behind a bridge", func(t *testing.T, s *wire, p *places) {
		s.e.GuestInterface(&Interface{MAC: guestMAC})
		s.has(station{p.new, otherMAC})
		s.within(p.kind, station{p.new, otherMAC}, func() { s.speak(station{p.new, otherMAC}) })
		s.e.GuestInterface(&Interface{MAC: guestMAC, Addrs: addrs(p.far)})
		is(t, s, p, station{p.far, guestMAC})
	})
	in("the interface is elsewhere now", func(t *testing.T, s *wire, p *places) {
		s.e.GuestInterface(nil)
		s.has(station{p.new, guestMAC})
		s.within(p.kind, station{p.new, guestMAC}, func() { s.speak(station{p.new, guestMAC}) })
	})
	forPlaces(t, "frozen", func(c *Config) { c.Frozen4, c.Frozen6 = true, true }, func(t *testing.T, s *wire, p *places) {
		s.e.GuestInterface(&Interface{MAC: guestMAC, Addrs: addrs(p.new)})
		s.speak(station{p.new, guestMAC})
		want := station{p.here, guestMAC}
		if p.kind == kindLocal {
			want.addr = p.new
		}
		is(t, s, p, want)
	})
	t.Run("link-local stands in", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newWire(t, func(c *Config) { c.Guest, c.Rules.Assigned6 = rules.Guest{}, netip.Addr{} })
			defer s.stop()
			v6, ll := &kindsOfPlaces[1], &kindsOfPlaces[2]
			s.e.GuestInterface(&Interface{MAC: guestMAC, Addrs: addrs(ll.here)})
			is(t, s, v6, station{ll.here, guestMAC})
			s.has(station{v6.far, guestMAC})
			s.stays(kind6, func() { s.speak(station{v6.far, guestMAC}) })
			s.e.GuestInterface(&Interface{MAC: guestMAC, Addrs: addrs(ll.here, v6.new)})
			is(t, s, v6, station{v6.new, guestMAC})
			is(t, s, ll, station{ll.here, guestMAC})
		})
	})
}

// FuzzVerifier: whatever is said on the link, in whatever order, a guest that answers for its
// address stays there, the questions are few, and there are no more inquiries than families.
func FuzzVerifier(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11})
	f.Add([]byte("spray\x00\x10\x20\x30\x40\x50\x60\x70\x80\x90\xa0\xb0\xc0\xd0\xe0\xf0"))
	f.Fuzz(func(t *testing.T, ops []byte) {
		synctest.Test(t, func(t *testing.T) {
			s := newWire(t, nil)
			defer s.stop()
			here := []station{}
			for i := range kindsOfPlaces {
				here = append(here, station{kindsOfPlaces[i].here, guestMAC})
			}
			s.has(here...)
			start := time.Now()
			for len(ops) >= 2 {
				op, x := ops[0], ops[1]
				ops = ops[2:]
				o := station{kindsOfPlaces[op%3].far, [...]frame.MAC{guestMAC, otherMAC, newMAC, ourMAC}[x&3]}
				o.addr[15] = x
				if x&4 != 0 {
					o.addr = kindsOfPlaces[op%3].here
				}
				switch op / 3 % 5 {
				case 0:
					s.speak(o)
				case 1:
					s.answer(o)
				case 2:
					s.has(append(here, o)...)
				case 3:
					time.Sleep(time.Duration(x) * 4 * time.Millisecond)
				case 4:
					s.e.guestAddr.told6(o.mac)
				}
				for _, h := range here {
					if got := s.at(kindOf(&h.addr)); got != h {
						t.Fatalf("the guest is at %v, want %v", got, h)
					}
				}
			}
			time.Sleep(2 * time.Second)
			if n := s.e.guestAddr.verifier.asking.Load(); n < 0 || n > kinds {
				t.Errorf("%d inquiries", n)
			}
			if most := 3 * 5 * int(time.Since(start)/verifyInterval+1); s.asked > most {
				t.Errorf("%d questions, want %d at most", s.asked, most)
			}
		})
	})
}
