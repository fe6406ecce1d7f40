package udp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
	"fusilli/tapio"
	"fusilli/tapio/frame"
)

// The operations of FuzzFlow: three bytes each.
const (
	opGuest    = iota // the guest sends a datagram
	opRow             // it sends a row of them
	opFlush           // what it has sent since is handed over in one go
	opPeer            // the peer sends datagrams
	opStranger        // somebody else does
	opGone            // the peer goes away: datagrams are refused
	opBack            // it comes back
	opTime            // nothing happens for a while, if not for so long that the flow ends
	opLink            // the link drops frames
	numOps
)

// FuzzFlow has a guest, its peer, and strangers do anything with a flow, and the link lose frames.
// Whatever arrives was sent by who may send it, in this order and once; errors are about what the
// guest has sent; and afterwards the flow carries datagrams both ways. The actor is called, not
// run: all happens in one goroutine.
func FuzzFlow(f *testing.F) {
	for _, ops := range [][]byte{
		{},
		{opGuest, 10, 0, opFlush, 0, 0, opPeer, 10, 1},
		{opGuest, 0, 0, opGuest, 200, 1, opGuest, 200, 2, opFlush, 0, 0, opPeer, 0, 0, opPeer, 255, 3},
		{opRow, 20, 9, opRow, 20, 9, opGuest, 1, 0, opFlush, 0, 0},
		{opGone, 0, 0, opGuest, 100, 0, opFlush, 0, 0, opGuest, 100, 0, opFlush, 0, 0, opBack, 0, 0, opPeer, 5, 0},
		{opStranger, 10, 0, opGuest, 1, 0, opFlush, 0, 0, opStranger, 10, 0, opPeer, 10, 0, opStranger, 10, 0},
		{opGuest, 10, 0x10, opGuest, 10, 0x25, opGuest, 10, 0x31, opFlush, 0, 0},
		{1},
		{opLink, 1, 0, opPeer, 10, 3, opTime, 0, 0, opPeer, 10, 0, opGuest, 5, 0, opTime, 0, 0, opGone, 0, 0, opTime, 0, 0},
		{opGuest, 255, 0, opFlush, 0, 0, opPeer, 255, 0, opGone, 0, 0, opRow, 255, 20, opFlush, 0, 0, 1},
	} {
		f.Add(ops)
	}
	f.Fuzz(func(t *testing.T, ops []byte) {
		s := newScene(t, families[len(ops)%3&1])
		for n := 0; len(ops) >= 3 && n < 48; n++ {
			s.do(ops[0]%numOps, ops[1], ops[2])
			ops = ops[3:]
		}
		s.conclude()
	})
}

// scene is who takes part in a run of FuzzFlow. All of it belongs to the test's goroutine.
type scene struct {
	*bed
	c        *conn
	peer     *net.UDPConn // nil while it is away
	at       netip.AddrPort
	flow     netip.AddrPort // the flow's address on the host
	stranger *net.UDPConn
	pending  [][]byte // frames of the guest's
	id       uint32
	buf      []byte
	drop     int // frames the link loses

	fromGuest, fromPeer [][]byte // what may still arrive
	sent                [][]byte // all of the guest's
	marker              []byte   // what the peer has sent last
	heard               bool     // the guest has it
}

// sceneEnv is shared by all runs of a process, which each set its link.
var sceneEnv = sync.OnceValue(func() *flow.Env {
	e := &flow.Env{Log: nopLog, OurMAC: ourMAC, MTU: 1500, UDPTimeout: time.Hour, UDPStreamTimeout: time.Hour}
	e.SetGuestMAC(guestMAC)
	return e
})

var scenePool = sync.OnceValue(func() *flow.Pool { return flow.NewPool(64) })

func newScene(t *testing.T, fam family) *scene {
	s := &scene{peer: newPeer(t, fam), stranger: newPeer(t, fam), buf: make([]byte, 65536)}
	s.at = s.peer.LocalAddr().(*net.UDPAddr).AddrPort()
	s.bed = &bed{t: t, fam: fam, ttl: 64, env: sceneEnv(), pool: scenePool(), key: flow.Key{Guest: frame.AddrOf(fam.guest),
		Remote: frame.AddrOf(fam.remote), GuestPort: 0, RemotePort: 40053, Proto: frame.ProtoUDP}}
	s.env.Link = s
	s.port = flow.NewPort(s.key)
	s.c = newConn(s.env, s.port, netip.AddrPortFrom(fam.loopback, s.at.Port()))
	s.c.dialer = &sock.Host{}
	if !s.c.open() {
		t.Fatal("flow does not open")
	}
	s.key.GuestPort = 40001 // the socket has any port that is free
	s.c.hdr.init(s.env, &s.key)
	s.c.key = &s.key
	t.Cleanup(func() {
		s.port.Close()
		if n := s.pool.Out(); n != 0 {
			t.Errorf("%d slabs were not given back", n)
		}
	})
	at, ok := sock.Local(s.c.fd)
	if !ok {
		t.Fatal("the socket has no address")
	}
	s.flow = at
	s.hand(s.frameOf([]byte("hello"), 0))
	// The kernel may leave it to a thread of its own.
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Microsecond) {
		if n, ok := s.try(); ok && string(s.buf[:n]) == "hello" {
			return s
		}
		if time.Now().After(end) {
			t.Fatal("the peer does not hear the guest")
		}
	}
}

// The link of the scene: its frames are seen in the call.

func (s *scene) Read([]byte) (int, error)    { return 0, os.ErrClosed }
func (s *scene) TryRead([]byte) (int, error) { return 0, nil }
func (s *scene) Close() error                { return nil }

func (s *scene) Write(f []byte) error {
	if s.drop > 0 {
		s.drop--
		return tapio.ErrDropped
	}
	s.see(f)
	return nil
}

// pump has the actor do all there is to do.
func (s *scene) pump() {
	for range 64 {
		if !s.c.step() {
			s.t.Fatal("the flow has ended")
		}
		if !s.c.fromHost() {
			return
		}
	}
}

// next returns n bytes that nobody has sent yet.
func (s *scene) next(n int) []byte {
	s.id++
	return pattern(n, s.id)
}

func (s *scene) do(op, a, b byte) {
	s.collect()
	n := int(a) * 257 % 65000
	if a < 128 {
		n = int(a) * 12
	}
	switch op {
	case opGuest:
		s.ttl, s.tos = 64+b>>4, b&15
		d := s.next(n)
		s.guestSends(s.frameOf(d, 0), d)
	case opRow:
		s.ttl, s.tos = 64, 0
		size, count := 1+int(a)*5, 2+int(b)%40
		if size*count > 60000 {
			count = 2
		}
		var all []byte
		var each [][]byte
		for range count {
			d := s.next(size)
			each = append(each, d)
			all = append(all, d...)
		}
		s.guestSends(s.frameOf(all, size), each...)
	case opFlush:
		s.flush()
	case opPeer:
		if s.peer == nil {
			return
		}
		for range 1 + b%8 {
			d := s.next(n)
			if _, err := s.peer.WriteToUDPAddrPort(d, s.flow); err == nil {
				s.fromPeer = append(s.fromPeer, d)
			}
		}
	case opStranger:
		s.stranger.WriteToUDPAddrPort(append([]byte("stranger"), s.next(n)...), s.flow)
	case opTime:
		// As if the alarm had gone off, which it does for nothing at times.
		s.flush()
		s.port.SetAlarm(flow.Now())
	case opLink:
		s.drop = int(a % 4)
	case opGone:
		if s.peer != nil {
			s.flush()
			s.peer.Close()
			s.peer = nil
		}
	case opBack:
		s.back()
	}
	s.pump()
}

func (s *scene) guestSends(f []byte, datagrams ...[]byte) {
	s.pending = append(s.pending, f)
	s.fromGuest = append(s.fromGuest, datagrams...)
	s.sent = append(s.sent, datagrams...)
	if len(s.pending) == 12 {
		s.flush()
	}
}

func (s *scene) flush() {
	if len(s.pending) > 0 {
		s.hand(s.pending...)
		s.pending = nil
	}
}

// hand hands frames over; what the mailbox has no room for is lost.
func (s *scene) hand(frames ...[]byte) {
	for _, r := range s.run(frames...) {
		if !s.port.Offer(r) {
			r.Release()
		}
	}
	s.pump()
}

// back has the peer be there again.
func (s *scene) back() {
	if s.peer != nil {
		return
	}
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(s.at))
	if err != nil {
		s.t.Skip("somebody has taken the port")
	}
	c.SetReadBuffer(4 << 20)
	s.t.Cleanup(func() { c.Close() })
	s.peer = c
}

// arrived takes d out of those in what that were sent and are not overtaken; it must be one of
// them.
func (s *scene) arrived(who string, d []byte, what *[][]byte) {
	for i, w := range *what {
		if bytes.Equal(d, w) {
			*what = (*what)[i+1:]
			s.heard = s.heard || s.marker != nil && bytes.Equal(d, s.marker)
			return
		}
	}
	s.t.Fatalf("%s gets %d bytes that are not next: %x", who, len(d), d[:min(len(d), 32)])
}

// collect checks what the peer has got by now.
func (s *scene) collect() {
	for s.peer != nil {
		n, ok := s.try()
		if !ok {
			return
		}
		s.arrived("the peer", s.buf[:n], &s.fromGuest)
	}
}

// try reads one datagram at the peer, if one waits.
func (s *scene) try() (n int, ok bool) {
	for {
		var from uint16
		// Another process may think of a port that was its own a moment ago.
		if n, from, ok = receiveNow(s.t, s.peer, s.buf); !ok || from == s.flow.Port() {
			return n, ok
		}
	}
}

// see checks a frame to the guest.
func (s *scene) see(f []byte) {
	ip := f[frame.L3Off:]
	hlen, proto := frame.IPv4Len, ip[9]
	if s.key.V6() {
		hlen, proto = frame.IPv6Len, ip[6]
	}
	if proto != frame.ProtoUDP {
		if err := s.quoted(ip[hlen:], hlen); err != nil {
			s.t.Fatal(err)
		}
		return
	}
	data, size, err := s.check(f)
	if err != nil {
		s.t.Fatal(err)
	}
	for {
		n := min(size, len(data))
		s.arrived("the guest", data[:n], &s.fromPeer)
		if data = data[n:]; len(data) == 0 {
			return
		}
	}
}

// quoted checks that icmp, an error to the guest that quotes an IP header of hlen bytes, is about a
// datagram of its own.
func (s *scene) quoted(icmp []byte, hlen int) error {
	q := icmp[frame.ICMPLen:]
	if len(q) < hlen+frame.UDPLen {
		return fmt.Errorf("error quotes %d bytes", len(q))
	}
	udp := q[hlen:]
	if binary.BigEndian.Uint16(udp) != s.key.GuestPort || binary.BigEndian.Uint16(udp[2:]) != s.key.RemotePort {
		return fmt.Errorf("error is about ports % x", udp[:4])
	}
	for _, d := range append([][]byte{[]byte("hello"), []byte("marker")}, s.sent...) {
		if d = d[:min(len(d), len(udp)-frame.UDPLen)]; bytes.HasPrefix(udp[frame.UDPLen:], d) {
			return nil
		}
	}
	return fmt.Errorf("error is about what was not sent: % x", q[:min(len(q), 64)])
}

// conclude has both sides speak until they hear each other.
func (s *scene) conclude() {
	s.drop = 0
	s.flush()
	s.back()
	marker := []byte("marker")
	s.ttl, s.tos = 64, 0
	end := time.Now().Add(patience)
	for heard := false; !heard; {
		if time.Now().After(end) {
			s.t.Fatal("the peer does not hear the guest any more")
		}
		s.hand(s.frameOf(marker, 0)) // errors about what was sent before may come first
		for {
			n, ok := s.try()
			if !ok {
				break
			}
			if heard = bytes.Equal(s.buf[:n], marker); heard {
				break
			}
			s.arrived("the peer", s.buf[:n], &s.fromGuest)
		}
	}
	for n := 0; !s.heard; n++ {
		if time.Now().After(end) {
			s.t.Fatal("the guest does not hear the peer any more")
		}
		s.marker = fmt.Appendf(nil, "marker %d", n)
		s.peer.WriteToUDPAddrPort(s.marker, s.flow)
		s.fromPeer = append(s.fromPeer, s.marker)
		s.pump()
	}
}
