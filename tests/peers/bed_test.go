package peers

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"fusilli/actors"
	"fusilli/actors/dhcp"
	"fusilli/actors/dhcpv6"
	"fusilli/actors/neigh"
	"fusilli/actors/rules"
	"fusilli/internal/leaktest"
	"fusilli/tapio"
	"fusilli/tapio/frame"
)

// patience is how long a test waits for what must happen; only one that fails takes that long.
const patience = time.Minute

var ourMAC, guestMAC = frame.MAC{2, 0, 0, 0, 0, 1}, frame.MAC{2, 0, 0, 0, 0, 2}

// family is the addresses of a test.
type family struct {
	name, network   string
	guest           netip.Addr
	alias, loopback netip.Addr // what the guest calls the host's loopback, and that
}

var families = []family{
	{"IPv4", "198.51.100.0/24", netip.MustParseAddr("10.0.2.15"), netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("127.0.0.1")},
	{"IPv6", "2001:db8:5::/64", netip.MustParseAddr("fd00::15"), netip.MustParseAddr("fd00::2"), netip.MustParseAddr("::1")},
}

// host returns the i-th address of the network.
func (f family) host(i int) netip.Addr {
	a := netip.MustParsePrefix(f.network).Addr().AsSlice()
	a[len(a)-1] = byte(i)
	if len(a) == 16 {
		a[len(a)-2] = byte(i >> 8)
	}
	got, _ := netip.AddrFromSlice(a)
	return got
}

func forFamilies(t *testing.T, f func(*testing.T, family)) {
	for _, fam := range families {
		t.Run(fam.name, func(t *testing.T) { f(t, fam) })
	}
}

// world is an engine and the guest at the other end of its link.
type world struct {
	*actors.Engine
	t    testing.TB
	fam  family
	port uint16 // of the guest
	ttl  uint8
	link *tapio.End
	logs *observer.ObservedLogs

	got chan datagram // what the guest receives
}

// datagram is what the guest has received: from a peer, or an error about a datagram to one.
type datagram struct {
	from netip.AddrPort
	icmp [2]byte // type and code; 0: it is none
	data string
}

func newWorld(t testing.TB, fam family, idle time.Duration, change ...func(*actors.Config)) *world {
	t.Helper()
	before := leaktest.Descriptors(t)
	ours, theirs := tapio.Pipe(tapio.PipeOptions{WithoutToB: tapio.USO, Queue: 1 << 14})
	core, logs := observer.New(zapcore.DebugLevel)
	c := actors.Config{
		Link: ours, Log: zap.New(core), OurMAC: ourMAC, GuestMAC: guestMAC, MTU: 1500,
		Neigh: neigh.Responder{MAC: ourMAC, Guest4: frame.AddrOf(families[0].guest),
			LinkLocal: frame.AddrOf(netip.MustParseAddr("fe80::1")), MTU: 1500},
		DHCP: dhcp.New(&dhcp.Config{Guest: families[0].guest, PrefixLen: 24, Gateway: families[0].alias, Log: zap.NewNop()}),
		DHCPv6: dhcpv6.New(&dhcpv6.Config{LinkLocal: netip.MustParseAddr("fe80::1"), Guest: families[1].guest,
			Log: zap.NewNop()}),
		Rules: rules.Rules{HostLoopback4: families[0].alias, HostLoopback6: families[1].alias},
		V4:    true, V6: true, UDPTimeout: idle, UDPStreamTimeout: idle,
	}
	for _, f := range change {
		f(&c)
	}
	w := &world{Engine: actors.New(c), t: t, fam: fam, port: 20001, ttl: 64, link: theirs, logs: logs, got: make(chan datagram, 1<<14)}
	ctx, cancel := context.WithCancel(context.Background())
	done, read := make(chan error), make(chan struct{})
	go func() { done <- w.Run(ctx) }()
	go func() {
		defer close(read)
		w.read()
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		theirs.Close()
		<-read
		if n := w.Flows(); n != 0 {
			t.Errorf("%d flows are left", n)
		}
		if n := w.Counters().Panics.Load(); n != 0 {
			t.Errorf("%d flows have panicked: %v", n, logs.FilterMessageSnippet("fault").All())
		}
		until(t, "descriptors closed", func() bool { return leaktest.Descriptors(t) <= before })
	})
	return w
}

// read takes what the guest receives.
func (w *world) read() {
	b := make([]byte, frame.MaxFrame)
	for {
		n, err := w.link.Read(b)
		if err != nil {
			return
		}
		ip := b[frame.L3Off:n]
		proto, l4 := ip[9], frame.IPv4Len
		var src netip.Addr
		if ip[0]>>4 == 6 {
			proto, l4 = ip[6], frame.IPv6Len
			src = netip.AddrFrom16([16]byte(ip[8:24]))
		} else {
			src = netip.AddrFrom4([4]byte(ip[12:16]))
		}
		p := ip[l4:]
		switch proto {
		case frame.ProtoUDP:
			end := int(binary.BigEndian.Uint16(p[4:])) // there may be padding
			if binary.BigEndian.Uint16(p[2:]) != w.port {
				w.t.Errorf("datagram to port %d", binary.BigEndian.Uint16(p[2:]))
			}
			w.got <- datagram{from: netip.AddrPortFrom(src, binary.BigEndian.Uint16(p)), data: string(p[frame.UDPLen:end])}
		case frame.ProtoICMP, frame.ProtoICMPv6:
			q := p[frame.ICMPLen:]
			if len(q) < l4+frame.UDPLen || proto == frame.ProtoICMPv6 && p[0] > 127 {
				continue // neighbour discovery
			}
			dst := netip.AddrFrom4([4]byte(q[16:20]))
			if l4 == frame.IPv6Len {
				dst = netip.AddrFrom16([16]byte(q[24:40]))
			}
			w.got <- datagram{from: netip.AddrPortFrom(dst, binary.BigEndian.Uint16(q[l4+2:])), icmp: [2]byte(p[:2])}
		}
	}
}

// send has the guest send a datagram.
func (w *world) send(to netip.AddrPort, data string) {
	w.t.Helper()
	f := make([]byte, frame.L3Off+frame.IPv6Len+frame.UDPLen+len(data)+64)
	ip := frame.IP{Src: frame.AddrOf(w.fam.guest), Dst: frame.AddrOf(to.Addr()), Proto: frame.ProtoUDP, TTL: w.ttl, Len: frame.UDPLen + len(data)}
	etherType := uint16(frame.EtherIPv4)
	if to.Addr().Is6() {
		etherType = frame.EtherIPv6
	}
	frame.PutEth(f, ourMAC, guestMAC, etherType)
	l4 := frame.L3Off + frame.PutIP(f[frame.L3Off:], &ip)
	frame.PutUDP(f[l4:], w.port, to.Port(), len(data), 0)
	copy(f[l4+frame.UDPLen:], data)
	if err := w.link.Write(bytes.Clone(f[:l4+frame.UDPLen+len(data)])); err != nil {
		w.t.Fatal(err)
	}
}

// next returns what the guest gets next.
func (w *world) next() datagram {
	w.t.Helper()
	select {
	case d := <-w.got:
		return d
	case <-time.After(patience):
		c := w.Counters()
		w.t.Fatalf("the guest gets nothing: %d strangers, %d lost at the link, %d in mailboxes", c.Filtered.Load(), c.LinkDropped.Load(), c.MailboxFull.Load())
		panic("unreachable")
	}
}

// expect checks what the guest gets next.
func (w *world) expect(from netip.AddrPort, data string) {
	w.t.Helper()
	if d := w.next(); d != (datagram{from: from, data: data}) {
		w.t.Fatalf("the guest gets %+v, want %q from %v", d, data, from)
	}
}

// nothing checks that the guest has nothing.
func (w *world) nothing() {
	w.t.Helper()
	select {
	case d := <-w.got:
		w.t.Fatalf("the guest gets %+v", d)
	default:
	}
}

// peer is a socket of the host.
type peer struct {
	*net.UDPConn
	t  testing.TB
	at netip.AddrPort
}

func newPeer(t testing.TB, a netip.Addr) *peer {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { c.Close() })
	return &peer{c, t, c.LocalAddr().(*net.UDPAddr).AddrPort()}
}

func (f family) peers(t testing.TB, n int) []*peer {
	list := make([]*peer, n)
	for i := range list {
		list[i] = newPeer(t, f.host(1+i%200))
	}
	return list
}

// expect checks what the peer gets next, and returns who has sent it.
func (p *peer) expect(data string) netip.AddrPort {
	p.t.Helper()
	b := make([]byte, 1<<16)
	n, from, err := p.ReadFromUDPAddrPort(b)
	if err != nil || string(b[:n]) != data {
		p.t.Fatalf("peer %v gets %q, %v, want %q", p.at, b[:n], err, data)
	}
	return from
}

func (p *peer) answer(to netip.AddrPort, data string) {
	p.t.Helper()
	if _, err := p.WriteToUDPAddrPort([]byte(data), to); err != nil {
		p.t.Fatal(err)
	}
}

// exchange has the guest ask p and p answer, and returns by which address.
func (w *world) exchange(p *peer, data string) netip.AddrPort {
	w.t.Helper()
	w.send(p.at, data)
	from := p.expect(data)
	p.answer(from, data+data)
	w.expect(p.at, data+data)
	return from
}

// until waits for cond.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not after %v", what, patience)
		}
	}
}
