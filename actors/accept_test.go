package actors

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"fusilli/actors/flow"
	"fusilli/internal/leaktest"
	"fusilli/tapio"
	"fusilli/tapio/frame"
)

// guestPort is what the guest of these tests listens on.
const guestPort = 8080

// listener is the guest's, of any address.
type listener struct {
	ep    tcpip.Endpoint
	wq    *waiter.Queue
	ready chan struct{}
}

// listen has the guest listen on port, with both families on IPv6.
func (g *guest) listen(t testing.TB, fam family, port uint16) *listener {
	t.Helper()
	_, proto := full(netip.AddrPortFrom(fam.alias, 0))
	l := &listener{wq: new(waiter.Queue)}
	var err tcpip.Error
	if l.ep, err = g.NewEndpoint(tcp.ProtocolNumber, proto, l.wq); err != nil {
		t.Fatal(err)
	}
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents)
	l.ready = ready
	l.wq.EventRegister(&entry)
	if err := l.ep.Bind(tcpip.FullAddress{Port: port}); err != nil {
		t.Fatal(err)
	}
	if err := l.ep.Listen(128); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.wq.EventUnregister(&entry)
		l.ep.Close()
	})
	return l
}

// accept returns the next connection, and who it is from.
func (l *listener) accept() (*conn, netip.AddrPort, error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		var from tcpip.FullAddress
		ep, wq, err := l.ep.Accept(&from)
		if err == nil {
			c := &conn{gonet.NewTCPConn(wq, ep), ep}
			c.SetDeadline(time.Now().Add(patience))
			a, _ := netip.AddrFromSlice(from.Addr.AsSlice())
			return c, netip.AddrPortFrom(a, from.Port), nil
		}
		if _, ok := err.(*tcpip.ErrWouldBlock); !ok {
			return nil, netip.AddrPort{}, errors.New(err.String())
		}
		select {
		case <-l.ready:
		case <-timer.C:
			return nil, netip.AddrPort{}, errors.New("guest hears of no connection")
		}
	}
}

// key is the flow from the alias of fam to the guest's port.
func key(fam family, from, to uint16) flow.Key {
	return flow.Key{Guest: frame.AddrOf(fam.guest()), Remote: frame.AddrOf(fam.alias), GuestPort: to, RemotePort: from}
}

// hostPair returns a connection of the host's and the descriptor of its other end, which nobody
// owns yet. dual has that be a socket of IPv6 whatever the address.
func hostPair(t testing.TB, fam family, dual bool) (*net.TCPConn, int) {
	t.Helper()
	domain := unix.AF_INET6
	var sa unix.Sockaddr = &unix.SockaddrInet6{Addr: fam.loopback.As16()}
	if fam.loopback.Is4() && !dual {
		domain, sa = unix.AF_INET, &unix.SockaddrInet4{Addr: fam.loopback.As4()}
	}
	l, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(l)
	if err := errors.Join(unix.Bind(l, sa), unix.Listen(l, 1)); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(l)
	if err != nil {
		t.Fatal(err)
	}
	port := 0
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		port = name.Port
	case *unix.SockaddrInet6:
		port = name.Port
	}
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(netip.AddrPortFrom(fam.loopback, uint16(port))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	fd, _, err := unix.Accept4(l, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	return c, fd
}

func localPort(c net.Conn) uint16 {
	a, _ := netip.ParseAddrPort(c.LocalAddr().String())
	return a.Port()
}

// call connects the host to the guest's port and returns the host's end.
func (b *bed) call(fam family, port uint16) *net.TCPConn {
	b.t.Helper()
	h, fd := hostPair(b.t, fam, false)
	b.AcceptTCP(fd, key(fam, localPort(h), port))
	return h
}

// answer returns both ends of a new connection that the host has asked for.
func (b *bed) answer(fam family, l *listener) (*conn, *net.TCPConn) {
	b.t.Helper()
	h := b.call(fam, guestPort)
	g, from, err := l.accept()
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { g.Close() })
	if want := netip.AddrPortFrom(fam.alias, localPort(h)); from != want {
		b.t.Errorf("guest sees a connection from %v, want %v", from, want)
	}
	return g, h
}

func TestAcceptedTransfer(t *testing.T) {
	for _, tt := range []struct {
		name    string
		options options
		out, in int
	}{
		{"nothing", options{}, 0, 0},
		{"one byte", options{}, 1, 1},
		{"out", options{}, 4 << 20, 0},
		{"in", options{}, 0, 4 << 20},
		{"both", options{}, 4 << 20, 4 << 20},
		{"MTU 1280", options{mtu: 1280}, 1 << 20, 1 << 20},
		{"MTU 65520", options{mtu: 65520}, 8 << 20, 8 << 20},
		{"without peek offset", options{noPeekOff: true}, 2 << 20, 2 << 20},
		{"both over a bad link", options{faults: badLink(7)}, 1 << 18, 1 << 18},
		{"in over a bad link, without peek offset", options{faults: badLink(8), noPeekOff: true}, 0, 1 << 19},
	} {
		t.Run(tt.name, func(t *testing.T) {
			forFamilies(t, func(t *testing.T, fam family) {
				b := newBed(t, tt.options)
				g, h := b.answer(fam, b.guest.listen(t, fam, guestPort))
				if err := exchange(g, h, scaled(tt.out), scaled(tt.in), 1); err != nil {
					t.Error(err)
				}
				if tt.options.faults.Lose == 0 {
					b.idle()
				}
			})
		})
	}
}

// TestAcceptedOnASocketForBothFamilies: IPv4 on a socket of IPv6.
func TestAcceptedOnASocketForBothFamilies(t *testing.T) {
	fam := families[0]
	b := newBed(t, options{})
	l := b.guest.listen(t, fam, guestPort)
	h, fd := hostPair(t, family{name: fam.name, alias: fam.alias, loopback: netip.MustParseAddr("127.0.0.1")}, true)
	b.AcceptTCP(fd, key(fam, localPort(h), guestPort))
	g, _, err := l.accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := exchange(g, h, scaled(1<<20), scaled(1<<20), 3); err != nil {
		t.Error(err)
	}
	b.idle()
}

// TestAcceptedDataBeforeTheGuest: what the peer sends and even its end may be there before the
// guest has answered, over a link that loses the SYN as well.
func TestAcceptedDataBeforeTheGuest(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		b := newBed(t, options{})
		l := b.guest.listen(t, fam, guestPort)
		h, fd := hostPair(t, fam, false)
		if _, err := h.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		h.CloseWrite()
		b.AcceptTCP(fd, key(fam, localPort(h), guestPort))
		g, _, err := l.accept()
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(g)
		if string(got) != "hello" || err != nil {
			t.Errorf("guest reads %q, %v", got, err)
		}
		g.Write([]byte("and back"))
		g.Close()
		if got, err = io.ReadAll(h); string(got) != "and back" || err != nil {
			t.Errorf("host reads %q, %v", got, err)
		}
		b.idle()
	})
}

func TestAcceptedHalfClose(t *testing.T) {
	const small, large = 1000, 1 << 20
	forFamilies(t, func(t *testing.T, fam family) {
		for _, tt := range []struct {
			name   string
			guest  bool // ends first
			faults tapio.Faults
		}{
			{"guest first", true, tapio.Faults{}},
			{"host first", false, tapio.Faults{}},
			{"guest first, bad link", true, badLink(9)},
			{"host first, bad link", false, badLink(10)},
		} {
			t.Run(tt.name, func(t *testing.T) {
				b := newBed(t, options{faults: tt.faults})
				g, h := b.answer(fam, b.guest.listen(t, fam, guestPort))
				first, second := halfConn(g), halfConn(h)
				if !tt.guest {
					first, second = second, first
				}
				var all errgroup.Group
				all.Go(func() error {
					if err := send(first, small, 1); err != nil {
						return err
					}
					return receive(first, scaled(large), 2)
				})
				all.Go(func() error {
					if err := receive(second, small, 1); err != nil {
						return err
					}
					return send(second, scaled(large), 2)
				})
				if err := all.Wait(); err != nil {
					t.Error(err)
				}
				b.idle()
			})
		}
	})
}

// wasReset checks that the host's connection was ended by a reset.
func wasReset(t testing.TB, h *net.TCPConn) {
	t.Helper()
	if _, err := h.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("host reads %v, want a reset", err)
	}
}

func TestAcceptedReset(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		t.Run("nobody listens", func(t *testing.T) {
			b := newBed(t, options{})
			wasReset(t, b.call(fam, guestPort))
			b.idle()
		})
		t.Run("by the guest", func(t *testing.T) {
			b := newBed(t, options{})
			g, h := b.answer(fam, b.guest.listen(t, fam, guestPort))
			h.Write([]byte("x"))
			g.Read(make([]byte, 1))
			g.abort()
			wasReset(t, h)
			b.idle()
		})
		t.Run("by the host", func(t *testing.T) {
			b := newBed(t, options{})
			g, h := b.answer(fam, b.guest.listen(t, fam, guestPort))
			h.SetLinger(0)
			h.Close()
			if _, err := g.Read(make([]byte, 1)); err == nil || err == io.EOF {
				t.Errorf("guest reads %v, want a reset", err)
			}
			b.idle()
		})
		t.Run("by the host before the guest answers", func(t *testing.T) {
			b := newSilent(t)
			h := b.call(fam, guestPort)
			b.frame(t, frame.SYN)
			h.SetLinger(0)
			h.Close()
			b.frame(t, frame.RST|frame.ACK)
			b.idle()
		})
		t.Run("by the end of the engine", func(t *testing.T) {
			b := newSilent(t)
			h := b.call(fam, guestPort)
			b.frame(t, frame.SYN)
			b.stop()
			wasReset(t, h)
		})
	})
}

// silent is a bed whose guest says nothing.
type silent struct {
	*bed
	buf []byte
}

func newSilent(t *testing.T) *silent {
	t.Helper()
	before := leaktest.Descriptors(t)
	e, link, logs := newEngine(&options{})
	ctx, cancel := context.WithCancel(context.Background())
	b := &bed{Engine: e, t: t, link: link, logs: logs, cancel: cancel, ended: make(chan struct{})}
	go func() {
		b.err = e.Run(ctx)
		close(b.ended)
	}()
	t.Cleanup(func() {
		b.stop()
		link.Close()
		until(t, "descriptors closed", func() bool { return leaktest.Descriptors(t) <= before })
	})
	return &silent{b, make([]byte, frame.MaxFrame)}
}

// frame waits for a TCP segment to the guest with these flags.
func (b *silent) frame(t testing.TB, flags uint8) {
	t.Helper()
	timer := time.AfterFunc(patience, func() { b.link.Close() })
	defer timer.Stop()
	for {
		n, err := b.link.Read(b.buf)
		if err != nil {
			t.Fatalf("no segment with flags %02x: %v", flags, err)
		}
		var p frame.Packet
		if frame.Parse(b.buf[:n], &p) == frame.OK && p.Kind == frame.TCP && frame.TCPHeader(b.buf[p.L4:]).Flags() == flags {
			return
		}
	}
}

// TestAcceptRefuses is all there is to refuse: the peer is reset, no flow is made and no descriptor
// stays open, which newBed checks.
func TestAcceptRefuses(t *testing.T) {
	fam := families[0]
	for _, tt := range []struct {
		name    string
		options options
		change  func(*flow.Key)
		before  func(*bed)
	}{
		{name: "guest is not known", change: func(k *flow.Key) { k.Guest = frame.Addr4([4]byte{}) }},
		{name: "IPv6 guest is not known", change: func(k *flow.Key) { k.Guest = frame.Addr{} }},
		{name: "loopback", change: func(k *flow.Key) { k.Guest = frame.Addr4([4]byte{127, 0, 0, 1}) }},
		{name: "from loopback", change: func(k *flow.Key) { k.Remote = frame.Addr4([4]byte{127, 0, 0, 1}) }},
		{name: "multicast", change: func(k *flow.Key) { k.Guest = frame.Addr4([4]byte{224, 0, 0, 1}) }},
		{name: "from multicast", change: func(k *flow.Key) { k.Remote = frame.Addr4([4]byte{224, 0, 0, 1}) }},
		{name: "from nowhere", change: func(k *flow.Key) { k.Remote = frame.Addr4([4]byte{}) }},
		{name: "to port 0", change: func(k *flow.Key) { k.GuestPort = 0 }},
		{name: "from port 0", change: func(k *flow.Key) { k.RemotePort = 0 }},
		{name: "two families", change: func(k *flow.Key) { k.Remote = frame.AddrOf(families[1].alias) }},
		{name: "without IPv4", options: options{change: func(c *Config) { c.V4 = false }}},
		{name: "without TCP", options: options{change: func(c *Config) { c.NoTCP = true }}},
		{name: "engine has ended", before: func(b *bed) { b.stop() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t, tt.options)
			if tt.before != nil {
				tt.before(b)
			}
			h, fd := hostPair(t, fam, false)
			k := key(fam, localPort(h), guestPort)
			if tt.change != nil {
				tt.change(&k)
			}
			b.AcceptTCP(fd, k)
			if n := b.Flows(); n != 0 {
				t.Errorf("%d flows", n)
			}
			wasReset(t, h)
			h.Close()
		})
	}
	t.Run("table is full", func(t *testing.T) {
		b := newBed(t, options{maxFlows: 1})
		g, h := b.answer(fam, b.guest.listen(t, fam, guestPort))
		wasReset(t, b.call(fam, guestPort))
		if n := b.Counters().TableFull.Load(); n != 1 {
			t.Errorf("%d flows refused, want 1", n)
		}
		if err := exchange(g, h, 1000, 1000, 1); err != nil {
			t.Error(err)
		}
	})
	t.Run("same addresses and ports again", func(t *testing.T) {
		b := newBed(t, options{})
		g, h := b.answer(fam, b.guest.listen(t, fam, guestPort))
		again, fd := hostPair(t, fam, false)
		b.AcceptTCP(fd, key(fam, localPort(h), guestPort))
		wasReset(t, again)
		if err := exchange(g, h, 1000, 1000, 1); err != nil {
			t.Error(err)
		}
	})
	t.Run("peer is gone", func(t *testing.T) {
		b := newBed(t, options{})
		h, fd := hostPair(t, fam, false)
		h.SetLinger(0)
		h.Close()
		b.AcceptTCP(fd, key(fam, 4000, guestPort))
		b.idle()
	})
}

// TestAcceptWhileEnding: connections that come while the engine ends are carried or reset, and
// nothing stays.
func TestAcceptWhileEnding(t *testing.T) {
	b := newBed(t, options{})
	b.guest.listen(t, families[0], guestPort)
	var all errgroup.Group
	hosts := make(chan *net.TCPConn, 64)
	for range cap(hosts) {
		h, fd := hostPair(t, families[0], false)
		k := key(families[0], localPort(h), guestPort)
		all.Go(func() error {
			b.AcceptTCP(fd, k)
			hosts <- h
			return nil
		})
	}
	(<-hosts).Close()
	b.stop()
	all.Wait()
	close(hosts)
	for h := range hosts {
		wasReset(t, h)
		h.Close()
	}
}

func TestManyAcceptedConnections(t *testing.T) {
	for _, tt := range []struct {
		name   string
		faults tapio.Faults
	}{{"clean", tapio.Faults{}}, {"bad link", badLink(11)}} {
		t.Run(tt.name, func(t *testing.T) {
			fam := families[1]
			b := newBed(t, options{faults: tt.faults})
			l := b.guest.listen(t, fam, guestPort)
			var all errgroup.Group
			many := 50
			if tt.name != "clean" {
				many = 20 // a SYN that was lost takes a second
			}
			for i := range many {
				g, h := b.answer(fam, l)
				n := scaled(64<<10) + i
				all.Go(func() error { return exchange(g, h, n, 2*n, uint64(i)) })
			}
			if err := all.Wait(); err != nil {
				t.Error(err)
			}
			if n := b.Counters().TCP.Load(); n != uint64(many) {
				t.Errorf("%d connections counted", n)
			}
			if tt.name == "clean" {
				b.idle()
			}
		})
	}
}

// TestShortAcceptedConnections: one after the other; flows and descriptors go.
func TestShortAcceptedConnections(t *testing.T) {
	fam := families[0]
	b := newBed(t, options{})
	l := b.guest.listen(t, fam, guestPort)
	for i := range scaled(1000) {
		h := b.call(fam, guestPort)
		h.Write([]byte("ping"))
		g, _, err := l.accept()
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 4)
		if _, err := io.ReadFull(g, got); err != nil || string(got) != "ping" {
			t.Fatalf("connection %d: guest reads %q, %v", i, got, err)
		}
		g.Write(got)
		g.Close()
		if all, err := io.ReadAll(h); err != nil || string(all) != "ping" {
			t.Fatalf("connection %d: host reads %q, %v", i, all, err)
		}
		h.Close()
	}
	b.idle()
}

// datagramPair returns a UDP socket of the host's and the descriptor of one connected to it. dual
// has that be a socket of IPv6 whatever the address.
func datagramPair(t testing.TB, fam family, dual bool) (*net.UDPConn, int) {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(fam.loopback, 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	domain := unix.AF_INET6
	var any, peer unix.Sockaddr = &unix.SockaddrInet6{Addr: fam.loopback.As16()},
		&unix.SockaddrInet6{Addr: fam.loopback.As16(), Port: int(localPort(c))}
	if fam.loopback.Is4() && !dual {
		domain = unix.AF_INET
		any, peer = &unix.SockaddrInet4{Addr: fam.loopback.As4()}, &unix.SockaddrInet4{Addr: fam.loopback.As4(), Port: int(localPort(c))}
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Bind(fd, any), unix.Connect(fd, peer)); err != nil {
		t.Fatal(err)
	}
	return c, fd
}

// listenUDP returns a socket of the guest's.
func (g *guest) listenUDP(t testing.TB, fam family, port uint16) *gonet.UDPConn {
	t.Helper()
	_, proto := full(netip.AddrPortFrom(fam.alias, 0))
	wq := new(waiter.Queue)
	ep, err := g.NewEndpoint(udp.ProtocolNumber, proto, wq)
	if err != nil {
		t.Fatal(err)
	}
	if err := ep.Bind(tcpip.FullAddress{Port: port}); err != nil {
		t.Fatal(err)
	}
	c := gonet.NewUDPConn(wq, ep)
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// expect reads the datagrams want in order off c and returns who the last one was from.
func expect(t testing.TB, c net.PacketConn, want ...string) net.Addr {
	t.Helper()
	b := make([]byte, 65536)
	var from net.Addr
	for i, w := range want {
		n, a, err := c.ReadFrom(b)
		if err != nil || string(b[:n]) != w {
			t.Fatalf("datagram %d of %d is %.20q, %v; want %.20q", i, len(want), b[:n], err, w)
		}
		from = a
	}
	return from
}

func TestAcceptedUDP(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		for _, dual := range []bool{false, true} {
			t.Run(fmt.Sprintf("dual %v", dual), func(t *testing.T) {
				b := newBed(t, options{})
				g := b.guest.listenUDP(t, fam, guestPort)
				h, fd := datagramPair(t, fam, dual)
				to, err := unix.Getsockname(fd)
				if err != nil {
					t.Fatal(err)
				}
				// Two have come before there was a socket for the flow, two are in it.
				first := [][]byte{[]byte("1"), {}, bytes.Repeat([]byte("2"), 1400)}
				peer := addrOfSock(to)
				h.WriteToUDPAddrPort([]byte("3"), peer)
				h.WriteToUDPAddrPort([]byte("4"), peer)
				b.AcceptUDP(fd, key(fam, localPort(h), guestPort), first)
				clear(first[0]) // they are the engine's only during the call
				clear(first[2])
				from := expect(t, g, "1", "", string(bytes.Repeat([]byte("2"), 1400)), "3", "4")
				if want := netip.AddrPortFrom(fam.alias, localPort(h)).String(); from.String() != want {
					t.Errorf("guest has datagrams from %v, want %v", from, want)
				}
				for _, s := range []string{"a", "", "bc"} {
					g.WriteTo([]byte(s), from)
					expect(t, h, s)
					h.WriteToUDPAddrPort([]byte(s+s), peer)
					expect(t, g, s+s)
				}
				if n := b.Counters().UDP.Load(); n != 1 {
					t.Errorf("%d flows counted, want 1", n)
				}
			})
		}
	})
}

func addrOfSock(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

func TestAcceptedUDPEndsWhenIdle(t *testing.T) {
	b := newBed(t, options{idle: 20 * time.Millisecond})
	g := b.guest.listenUDP(t, families[0], guestPort)
	h, fd := datagramPair(t, families[0], false)
	b.AcceptUDP(fd, key(families[0], localPort(h), guestPort), [][]byte{[]byte("x")})
	expect(t, g, "x")
	b.idle()
}

// TestAcceptedUDPError: the peer has gone away, and the guest, which answers, is told.
func TestAcceptedUDPError(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		for _, dual := range []bool{false, true} {
			t.Run(fmt.Sprintf("dual %v", dual), func(t *testing.T) {
				b := newBed(t, options{})
				g := b.guest.listenUDP(t, fam, guestPort)
				h, fd := datagramPair(t, fam, dual)
				b.AcceptUDP(fd, key(fam, localPort(h), guestPort), [][]byte{[]byte("x")})
				from := expect(t, g, "x")
				h.Close()
				// Connected, since only such a socket hears of errors.
				to, _ := netip.ParseAddrPort(from.String())
				local := tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFromSlice(fam.guest().AsSlice()), Port: guestPort}
				g.Close()
				remote, proto := full(to)
				c, err := gonet.DialUDP(b.guest.Stack, &local, &remote, proto)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				until(t, "guest is told", func() bool {
					_, err := c.Write([]byte("y"))
					return err != nil && strings.Contains(err.Error(), "refused")
				})
			})
		}
	})
}

func TestAcceptUDPRefuses(t *testing.T) {
	fam := families[0]
	for _, tt := range []struct {
		name    string
		options options
		change  func(*flow.Key)
		before  func(*bed)
	}{
		{name: "guest is not known", change: func(k *flow.Key) { k.Guest = frame.Addr4([4]byte{}) }},
		{name: "loopback", change: func(k *flow.Key) { k.Guest = frame.Addr4([4]byte{127, 0, 0, 1}) }},
		{name: "from multicast", change: func(k *flow.Key) { k.Remote = frame.Addr4([4]byte{224, 0, 0, 1}) }},
		{name: "from port 0", change: func(k *flow.Key) { k.RemotePort = 0 }},
		{name: "without IPv4", options: options{change: func(c *Config) { c.V4 = false }}},
		{name: "without UDP", options: options{change: func(c *Config) { c.NoUDP = true }}},
		{name: "engine has ended", before: func(b *bed) { b.stop() }},
		{name: "same addresses and ports again", before: func(b *bed) {
			_, fd := datagramPair(b.t, fam, false)
			b.AcceptUDP(fd, key(fam, 999, guestPort), nil)
		}, change: func(k *flow.Key) { k.RemotePort = 999 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t, tt.options)
			if tt.before != nil {
				tt.before(b)
			}
			before := b.Flows()
			h, fd := datagramPair(t, fam, false)
			k := key(fam, localPort(h), guestPort)
			if tt.change != nil {
				tt.change(&k)
			}
			b.AcceptUDP(fd, k, [][]byte{[]byte("x")})
			if n := b.Flows(); n != before {
				t.Errorf("%d flows", n)
			}
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != unix.EBADF {
				t.Errorf("descriptor is open: %v", err)
			}
			h.Close()
		})
	}
}

// TestAcceptedUDPToMulticast: the destination that a datagram had is kept.
func TestAcceptedUDPToMulticast(t *testing.T) {
	b := newSilent(t)
	h, fd := datagramPair(t, families[0], false)
	k := key(families[0], localPort(h), guestPort)
	k.Guest = frame.Addr4([4]byte{239, 1, 2, 3})
	b.AcceptUDP(fd, k, [][]byte{[]byte("x")})
	n, err := b.link.Read(b.buf)
	var p frame.Packet
	if err != nil || frame.Parse(b.buf[:n], &p) != frame.OK || p.Dst != k.Guest || string(b.buf[p.Payload:p.End]) != "x" {
		t.Errorf("%x, %v", b.buf[:n], err)
	}
}

// TestPeerUsesPortAgainAtOnce: the peer ends a connection and opens the next one from the same port
// before the guest has seen the end of the first.
func TestPeerUsesPortAgainAtOnce(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		b := newBed(t, options{})
		l := b.guest.listen(t, fam, guestPort)
		k := key(fam, 4000, guestPort)
		for i := range scaled(300) {
			h, fd := hostPair(t, fam, false)
			b.AcceptTCP(fd, k)
			g, _, err := l.accept()
			if err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
			if err := exchange(g, h, 10, 10, uint64(i)); err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
		}
		b.idle()
	})
}

// TestPortsUsedTwice: a second connection of the same ports does not harm the first and is reset
// after a while.
func TestPortsUsedTwice(t *testing.T) {
	fam := families[0]
	b := newBed(t, options{})
	l := b.guest.listen(t, fam, guestPort)
	k := key(fam, 4000, guestPort)
	h, fd := hostPair(t, fam, false)
	b.AcceptTCP(fd, k)
	g, _, err := l.accept()
	if err != nil {
		t.Fatal(err)
	}
	h2, fd2 := hostPair(t, fam, false)
	b.AcceptTCP(fd2, k)
	h3, fd3 := hostPair(t, fam, false)
	b.AcceptTCP(fd3, k)
	wasReset(t, h3)
	wasReset(t, h2) // it has waited for the first one's end
	if err := exchange(g, h, 1000, 1000, 1); err != nil {
		t.Error(err)
	}
}
