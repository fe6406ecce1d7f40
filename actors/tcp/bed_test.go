package tcp

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
	"fusilli/tapio"
	"fusilli/tapio/frame"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen: long enough for a machine that is busy
// with other things, and under the race detector. Only a test that fails takes that long.
const patience = 2 * time.Minute

const (
	guestISN = 0xfffff000 // wraps soon
	guestMSS = 1400
	mtu      = 1500
)

var (
	ourMAC   = frame.MAC{2, 0, 0, 0, 0, 1}
	guestMAC = frame.MAC{2, 0, 0, 0, 0, 2}
)

// family is the addresses of a test: those the guest sees, and the host's.
type family struct {
	name                    string
	guest, remote, loopback netip.Addr
}

var families = []family{
	{"IPv4", netip.MustParseAddr("10.0.2.15"), netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("127.0.0.1")},
	{"IPv6", netip.MustParseAddr("2001:db8::15"), netip.MustParseAddr("2001:db8::9"), netip.MustParseAddr("::1")},
}

func forFamilies(t *testing.T, f func(*testing.T, family)) {
	for _, fam := range families {
		t.Run(fam.name, func(t *testing.T) { f(t, fam) })
	}
}

// bed is one connection, whose guest is played segment by segment.
type bed struct {
	t      testing.TB
	fam    family
	env    *flow.Env
	pool   *flow.Pool
	port   *flow.Port
	link   *tapio.End // the guest's end
	listen *net.TCPListener
	host   *net.TCPConn // the peer, once accepted
	fd     int          // the accepted socket, see newAccepted
	c      *conn        // for tests that play the actor too
	done   chan struct{}

	mss int // of segments to the guest
	buf []byte
	isn uint32 // ours
	rcv uint32 // next sequence number of ours the guest expects
	snd uint32 // next sequence number of the guest
	wnd uint16 // window field of the guest's segments
}

// seg is a segment, from or to the guest.
type seg struct {
	flags    uint8
	seq, ack uint32
	wnd      uint16
	opt      []byte
	data     []byte
}

func (s seg) String() string {
	return fmt.Sprintf("flags %02x seq %d ack %d wnd %d options %x, %d bytes", s.flags, s.seq, s.ack, s.wnd, s.opt, len(s.data))
}

// newBed makes a connection to a listening socket; nothing was sent yet.
func newBed(t testing.TB, fam family) *bed {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(fam.loopback, 0)))
	if err != nil {
		t.Fatal(err)
	}
	l.SetDeadline(time.Now().Add(patience))
	link, guest := tapio.Pipe(tapio.PipeOptions{Queue: 4096})
	b := &bed{
		t: t, fam: fam, pool: flow.NewPool(64), link: guest, listen: l, wnd: 4096, snd: guestISN, mss: guestMSS,
		env: &flow.Env{Link: link, Log: zap.NewNop(), OurMAC: ourMAC, MTU: mtu,
			PeekOff4: sock.PeekOffset(unix.AF_INET), PeekOff6: sock.PeekOffset(unix.AF_INET6)},
		port: flow.NewPort(flow.Key{Guest: frame.AddrOf(fam.guest), Remote: frame.AddrOf(fam.remote),
			GuestPort: 40001, RemotePort: 80, Proto: frame.ProtoTCP}),
		buf: make([]byte, frame.MaxFrame),
	}
	b.env.SetGuestMAC(guestMAC)
	t.Cleanup(func() {
		b.stop()
		if b.host != nil {
			b.host.Close()
		}
		l.Close()
		link.Close()
		guest.Close()
	})
	return b
}

// serve lets the actor run on a goroutine of its own. What the guest sends first is sent before.
func (b *bed) serve() {
	b.done = make(chan struct{})
	host := b.listen.Addr().(*net.TCPAddr).AddrPort()
	go func() {
		defer close(b.done)
		Serve(b.env, b.port, &sock.Host{}, netip.AddrPortFrom(host.Addr().Unmap(), host.Port()))
	}()
}

// play makes the conn for a test that is its actor itself: it calls what the actor would call.
func (b *bed) play() {
	b.t.Helper()
	host := b.listen.Addr().(*net.TCPAddr).AddrPort()
	b.c = &conn{env: b.env, port: b.port, host: netip.AddrPortFrom(host.Addr().Unmap(), host.Port()), fd: -1}
	if !b.c.open(&sock.Host{}) {
		b.t.Fatal("no connection")
	}
}

// stop ends the actor and checks that everything came home.
func (b *bed) stop() {
	b.t.Helper()
	b.port.Stop()
	if b.done != nil {
		b.over()
	}
	if b.c != nil {
		b.c.releaseHeld()
		b.c.dropReassembly()
		b.c.promise(0)
	}
	b.port.Close()
	if r, ok := b.port.HandedOver(); ok {
		r.Release() // what a new connection would begin with
	}
	if n := b.pool.Out(); n != 0 {
		b.t.Errorf("%d slabs were not given back", n)
	}
	if n := b.env.Held.Used(); n != 0 {
		b.t.Errorf("%d bytes are counted as held", n)
	}
}

// over waits until the actor has ended.
func (b *bed) over() {
	b.t.Helper()
	select {
	case <-b.done:
	case <-time.After(patience):
		b.t.Fatal("the connection does not end")
	}
}

// frameOf returns the frame that s is sent in.
func (b *bed) frameOf(s seg) []byte {
	k := b.port.Key()
	f := make([]byte, frame.L3Off+frame.IPv6Len+frame.TCPLen+len(s.opt)+len(s.data))
	etherType := uint16(frame.EtherIPv4)
	if k.V6() {
		etherType = frame.EtherIPv6
	}
	frame.PutEth(f, ourMAC, guestMAC, etherType)
	l4 := frame.L3Off + frame.PutIP(f[frame.L3Off:], &frame.IP{Src: k.Guest, Dst: k.Remote, Proto: frame.ProtoTCP,
		TTL: 64, Len: frame.TCPLen + len(s.opt) + len(s.data)})
	frame.PutTCP(f[l4:], &frame.TCPFields{SrcPort: k.GuestPort, DstPort: k.RemotePort, Seq: s.seq, Ack: s.ack,
		Flags: s.flags, Window: s.wnd, Options: len(s.opt)})
	n := l4 + frame.TCPLen
	n += copy(f[n:], s.opt)
	n += copy(f[n:], s.data)
	return f[:n]
}

// offer hands segments over as the reader does when it has read them in one go, and reports whether
// there was room in the mailbox.
func (b *bed) offer(segs ...seg) bool {
	b.t.Helper()
	slab := b.pool.Get()
	if slab == nil {
		b.t.Fatal("no slab is free")
	}
	for _, s := range segs {
		f := b.frameOf(s)
		var p frame.Packet
		if why := frame.Parse(f, &p); why != frame.OK {
			b.t.Fatalf("%v: %v", s, why)
		}
		room := slab.Room()
		if room == nil {
			b.t.Fatal("too much for one run")
		}
		copy(room, f)
		slab.Append(len(f), &p)
	}
	r := slab.Run(0)
	slab.Release()
	if b.port.Offer(r) {
		return true
	}
	r.Release()
	return false
}

// send is offer for segments that continue what was sent, with the acknowledgement and window that
// are due.
func (b *bed) send(segs ...seg) {
	b.t.Helper()
	for i := range segs {
		s := &segs[i]
		s.seq, s.ack, s.wnd = b.snd, b.rcv, b.wnd
		s.flags |= frame.ACK
		b.snd += uint32(len(s.data))
		if s.flags&frame.FIN != 0 {
			b.snd++
		}
	}
	if !b.offer(segs...) {
		b.t.Fatal("mailbox is full")
	}
}

// decode checks the frame f to the guest and returns its segment, whose data lies in f.
func (b *bed) decode(f []byte) (seg, error) {
	var p frame.Packet
	if why := frame.Parse(f, &p); why != frame.OK {
		return seg{}, fmt.Errorf("frame to the guest: %v", why)
	}
	if len(f) < frame.MinFrame {
		return seg{}, fmt.Errorf("frame to the guest is shorter than Ethernet's shortest: %d bytes", len(f))
	}
	k := b.port.Key()
	if p.Kind != frame.TCP || p.Src != k.Remote || p.Dst != k.Guest || p.SrcPort != k.RemotePort || p.DstPort != k.GuestPort ||
		frame.Src(f) != ourMAC || frame.Dst(f) != guestMAC {
		return seg{}, fmt.Errorf("frame is for somebody else: %+v", p)
	}
	// no identification; not to be fragmented
	if p.TTL != 255 || p.TOS != 0 || !p.V6 && binary.BigEndian.Uint32(f[p.L3+4:]) != 0x4000 {
		return seg{}, fmt.Errorf("IP header % x", f[p.L3:p.L4])
	}
	h := frame.TCPHeader(f[p.L4:p.End])
	v := frame.GetVnet(f)
	sum := frame.Fold(frame.PseudoSum(&p.Src, &p.Dst, frame.ProtoTCP, p.End-p.L4))
	if v.Flags != frame.NeedsCsum || int(v.CsumStart) != p.L4-frame.VnetLen || v.CsumOffset != 16 ||
		binary.BigEndian.Uint16(h[16:]) != sum {
		return seg{}, fmt.Errorf("checksum field %04x, want %04x; %+v", h[16:18], sum, v)
	}
	if !p.V6 && frame.Fold(frame.Sum(f[p.L3:p.L4], 0)) != 0xffff {
		return seg{}, fmt.Errorf("IPv4 header checksum of %x", f[p.L3:p.L4])
	}
	if n := p.End - p.Payload; (n > b.mss) != (v.GSOType != frame.GSONone) || n > b.mss && int(p.GSO) != b.mss {
		return seg{}, fmt.Errorf("%d bytes of payload in a frame %+v", n, v)
	}
	return seg{flags: h.Flags(), seq: h.Seq(), ack: h.Ack(), wnd: h.Window(), opt: f[p.L4+frame.TCPLen : p.Payload],
		data: f[p.Payload:p.End]}, nil
}

// receive returns the next segment the guest gets. Its data is valid until the next call.
func (b *bed) receive() seg {
	b.t.Helper()
	timer := time.AfterFunc(patience, func() { b.link.Close() })
	defer timer.Stop()
	n, err := b.link.Read(b.buf)
	if err != nil {
		b.t.Fatalf("guest gets nothing: %v", err)
	}
	s, err := b.decode(b.buf[:n])
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

// quiet checks that there is nothing for the guest by now.
func (b *bed) quiet() {
	b.t.Helper()
	if n, _ := b.link.TryRead(b.buf); n != 0 {
		s, err := b.decode(b.buf[:n])
		b.t.Fatalf("guest gets %v, %v", s, err)
	}
}

// until returns the first segment for which ok.
func (b *bed) until(what string, ok func(seg) bool) seg {
	b.t.Helper()
	var all []string
	for range 1000 {
		s := b.receive()
		if ok(s) {
			return s
		}
		all = append(all, s.String())
	}
	b.t.Fatalf("%s: not in %q", what, all)
	return seg{}
}

// acked waits until everything the guest has sent is acknowledged.
func (b *bed) acked() {
	b.t.Helper()
	b.until("acknowledgement", func(s seg) bool { return s.ack == b.snd })
}

var synOptions = []byte{2, 4, guestMSS >> 8, guestMSS & 0xff, 1, 3, 3, 7}

// sendSYN sends the guest's SYN.
func (b *bed) sendSYN() {
	if !b.offer(seg{flags: frame.SYN, seq: guestISN, wnd: 64240, opt: synOptions}) {
		b.t.Fatal("mailbox is full")
	}
}

// establish does the handshake, for serve or play.
func (b *bed) establish(run func()) {
	b.t.Helper()
	b.sendSYN()
	run()
	s := b.receive()
	if s.flags != frame.SYN|frame.ACK || s.ack != guestISN+1 {
		b.t.Fatalf("answer to SYN: %v", s)
	}
	b.isn, b.rcv, b.snd = s.seq, s.seq+1, guestISN+1
	var err error
	if b.host, err = b.listen.AcceptTCP(); err != nil {
		b.t.Fatal(err)
	}
	b.host.SetDeadline(time.Now().Add(patience))
	b.send(seg{})
	if b.c != nil {
		b.turn()
	}
}

// turn has the played actor handle its mail.
func (b *bed) turn() { b.c.fromGuest() }

// data returns the n bytes of a stream from position at on.
func data(at, n int) []byte {
	if s := stream(); at+n <= len(s) {
		return s[at : at+n : at+n] // nobody writes to it
	}
	return compute(at, n)
}

// stream is where most tests stay.
var stream = sync.OnceValue(func() []byte { return compute(0, 1<<20) })

func compute(at, n int) []byte {
	d := make([]byte, n)
	for i := range d {
		x := uint32(at+i) * 2654435761
		d[i] = byte(x>>24) ^ byte(x>>13)
	}
	return d
}

// badDialer is a host without a network.
type badDialer struct{}

func (badDialer) Dial(netip.AddrPort) (int, error) { return -1, unix.ENETUNREACH }
