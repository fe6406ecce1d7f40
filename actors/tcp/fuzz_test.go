package tcp

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
	"fusilli/tapio"
	"fusilli/tapio/frame"
)

// The operations of FuzzSegments and FuzzHandshake: four bytes each. The first eight are the
// guest's, others the peer's and those of what lies around the connection.
const (
	opData    = iota // the guest sends a segment at an offset from what was acknowledged
	opFlags          // one with any flags
	opAck            // an acknowledgement near what was received
	opSYN            // a SYN, with or without other flags, with any window and options
	opRun            // what it has sent is handed over in one run
	opTooBig         // a router behind it says that segments are too long
	opWrite          // the peer sends
	opRead           // it reads
	opEnd            // it ends its direction
	opReset          // it resets the connection
	opUrgent         // it sends urgent data
	opTime           // nothing happens until the next timer goes off
	opLink           // the link drops frames
	opWritten        // the socket says that it can take data, whether it can or not
	numOps
)

// What the first byte of the input chooses.
const (
	chooseAccepted  = 1 << iota // the peer has asked
	chooseIPv6                  // the guest speaks IPv6
	chooseGate                  // each frame on the link is one segment
	chooseNoPeekOff             // the kernel has no SO_PEEK_OFF
	chooseSmallBuf              // the peer's socket takes little
	chooseFullHeld              // other flows hold more than they should
	chooseFullEarly             // and so before its turn
)

// FuzzSegments has a guest send any segments on an established connection, a peer do anything with
// its socket, the link lose frames, and time pass. The guest's stream is the same bytes at each
// place whatever segment carries them, so that whatever arrives out of order, twice or not at all
// is seen by the peer; it must get the stream up to an end that the guest has sent, and nothing
// else. The other direction is checked in the same way. Afterwards all of them do as they should,
// and the connection carries both streams to their ends.
func FuzzSegments(f *testing.F) {
	const syn, ack, fin, rst = frame.SYN, frame.ACK, frame.FIN, frame.RST
	run, read := []byte{opRun, 0, 0, 0}, []byte{opRead, 255, 255, 0}
	for _, ops := range [][]byte{
		{},
		join([]byte{opData, 0, 10, 0}, run),
		join([]byte{opData, 0, 200, 0, opData, 0, 200, 0, opData, 128, 40, 0}, run),
		join([]byte{opData, 0, 10, 5, opData, 140, 10, 5}, run, []byte{opData, 120, 20, 5}, run),
		join([]byte{opFlags, fin | ack, 0, 0}, run, []byte{opData, 0, 9, 0}, run),
		join([]byte{opFlags, fin | ack, 3, 0, opFlags, rst, 0, 0}, run),
		join([]byte{opFlags, rst, 0, 0}, run),
		join([]byte{opFlags, syn, 0, 0}, run, []byte{opFlags, syn | ack, 1, 0}, run),
		join([]byte{opWrite, 200, 0, 0, opAck, 128, 0, 0}, run, []byte{opWrite, 20, 0, 0, opAck, 129, 255, 0}, run, []byte{opEnd, 0, 0, 0}),
		join([]byte{opAck, 128, 0, 0, opAck, 128, 0, 0, opAck, 128, 0, 0, opAck, 128, 0, 0}, run, []byte{opWrite, 255, 0, 0}),
		join([]byte{opWrite, 255, 0, 0, opAck, 127, 16, 0, opAck, 127, 16, 0, opAck, 127, 16, 0, opAck, 127, 16, 0}, run),
		join([]byte{opEnd, 0, 0, 0, opFlags, fin | ack, 0, 0}, run, []byte{opAck, 129, 0, 0}, run),
		join([]byte{opWrite, 200, 0, 0, opEnd, 0, 0, 0, opData, 0, 10, 0}, run, []byte{opFlags, fin | ack, 0, 0}, run),
		join([]byte{opWrite, 255, 0, 0, opLink, 2, 0, 0, opWrite, 255, 0, 0, opTime, 0, 0, 0, opTime, 0, 0, 0, opTooBig, 100, 2, 0}),
		join([]byte{opData, 0, 250, 15}, run, []byte{opData, 0, 250, 15}, run, read, []byte{opUrgent, 7, 0, 0, opReset, 0, 0, 0, opAck, 128, 3, 0}, run),
		join([]byte{opAck, 128, 0, 0}, run, []byte{opTime, 0, 0, 0, opWrite, 9, 0, 0, opTime, 0, 0, 0, opAck, 128, 9, 0}, run),
	} {
		for _, choice := range []byte{0, chooseAccepted | chooseGate, chooseNoPeekOff | chooseIPv6, chooseSmallBuf | chooseFullHeld, chooseFullEarly} {
			f.Add(append([]byte{choice}, ops...))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) { fuzzConn(t, in, true) })
}

// FuzzHandshake is FuzzSegments from before the guest's answer to our SYN, or SYN,ACK, on. A guest
// that goes on as it should afterwards gets a connection that carries its stream, or was told that
// there is none, as was the peer.
func FuzzHandshake(f *testing.F) {
	const syn, ack, fin, rst = frame.SYN, frame.ACK, frame.FIN, frame.RST
	run := []byte{opRun, 0, 0, 0}
	for _, ops := range [][]byte{
		{},
		{opSYN, syn, 0, 0},
		{opFlags, ack, 10, 0, opData, 0, 20, 0},
		{opFlags, ack, 10, 0xf0, opAck, 200, 10, 0},
		{opData, 200, 10, 1},
		{opData, 20, 10, 1},
		{opData, 255, 10, 0x11},
		{opFlags, ack | fin, 10, 0},
		{opFlags, fin, 0, 0, opSYN, syn | fin, 0, 0},
		{opFlags, rst, 0, 0},
		{opFlags, rst | ack, 0, 0},
		{opFlags, rst, 0, 0xf0},
		{opSYN, syn, 0, 0, opSYN, syn | ack, 0, 0},
		{opSYN, syn, 0, 0, opData, 0, 9, 1},
		{opSYN, syn | ack, 200, 3, opSYN, syn | ack, 0, 1},
		{opSYN, syn | ack, 0, 2, opData, 0, 50, 1},
		{opSYN, syn, 255, 0, opFlags, 0, 0, 0, opTime, 0, 0, 0},
		{opWrite, 100, 0, 0, opTime, 0, 0, 0, opTime, 0, 0, 0, opEnd, 0, 0, 0},
		{opReset, 0, 0, 0, opSYN, syn, 0, 0},
		{opLink, 3, 0, 0, opTime, 0, 0, 0, opSYN, syn | ack, 128, 0},
	} {
		for _, choice := range []byte{0, chooseAccepted, chooseAccepted | chooseIPv6 | chooseGate} {
			f.Add(append(append([]byte{choice}, ops...), run...))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) { fuzzConn(t, in, false) })
}

func join(b ...[]byte) []byte { return bytes.Join(b, nil) }

func fuzzConn(t *testing.T, in []byte, established bool) {
	if len(in) == 0 {
		return
	}
	g := newFuzzGuest(t, in[0])
	defer g.end()
	if established {
		g.shakeHands()
	}
	for in = in[1:]; len(in) >= 4 && g.ops < 64; in = in[4:] {
		g.do(in[0]%numOps, in[1], in[2], in[3])
		g.ops++
	}
	g.finish()
}

// fuzzed is what all runs of a process share: to make it takes longer than a run.
type fuzzed struct {
	listen int // a listening socket on 127.0.0.1
	at     netip.AddrPort
	env    flow.Env
	pool   *flow.Pool
	link   fuzzLink
	calls  int
}

var shared = sync.OnceValue(func() *fuzzed {
	s := &fuzzed{pool: flow.NewPool(64)}
	s.env = flow.Env{Link: &s.link, Log: zap.NewNop(), OurMAC: ourMAC, MTU: mtu, SYNRetries: 7, SYNLinear: 4}
	s.env.SetGuestMAC(guestMAC)
	var err error
	if s.listen, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err == nil {
		err = unix.Bind(s.listen, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	if err == nil {
		err = unix.Listen(s.listen, 16)
	}
	if err != nil {
		panic(err)
	}
	sa, err := unix.Getsockname(s.listen)
	if err != nil {
		panic(err)
	}
	s.at = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(sa.(*unix.SockaddrInet4).Port))
	return s
})

// Dial connects from another loopback address each time: connections in TIME-WAIT keep a port of
// one.
func (s *fuzzed) Dial(netip.AddrPort) (int, error) {
	fd, err := sock.Stream(true)
	if err != nil {
		return -1, err
	}
	s.calls++
	// Which processes fuzz side by side does not matter: a pair of ports that is taken is not
	// chosen.
	unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 1, byte(s.calls >> 8), byte(s.calls)}}); err != nil {
		return -1, err
	}
	if e := sock.Connect(fd, s.at); e != 0 && e != unix.EINPROGRESS {
		return -1, e
	}
	return fd, nil
}

// accept takes the next connection off the listening socket.
func (s *fuzzed) accept() (int, error) {
	p := []unix.PollFd{{Fd: int32(s.listen), Events: unix.POLLIN}}
	for {
		fd, _, err := unix.Accept4(s.listen, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		switch err {
		case unix.EINTR:
		case unix.EAGAIN:
			unix.Poll(p, int(patience/time.Millisecond))
		default:
			return fd, err
		}
	}
}

// fuzzLink hands frames to the guest in the call, or drops them.
type fuzzLink struct {
	guest *fuzzGuest
	drop  int // frames
}

func (l *fuzzLink) Read([]byte) (int, error)    { return 0, os.ErrClosed }
func (l *fuzzLink) TryRead([]byte) (int, error) { return 0, nil }
func (l *fuzzLink) Close() error                { return nil }

func (l *fuzzLink) Write(b []byte) error {
	if l.drop > 0 {
		l.drop--
		return tapio.ErrDropped
	}
	g := l.guest
	g.mss = g.c.mss
	s, err := g.decode(b)
	if err == nil {
		err = g.see(s)
	}
	if err != nil {
		g.t.Error(err)
	}
	return nil
}

// never is a gate of a link that has room.
type never struct{}

func (never) Full() bool    { return false }
func (never) OnRoom(func()) {}

// fuzzGuest is the guest, its peer, and the actor, which are all played by one goroutine.
type fuzzGuest struct {
	*bed
	s      *fuzzed
	choice byte
	ops    int
	segs   []seg
	peer   int          // the peer's socket; -1 when it has closed it
	ends   map[int]bool // where the guest's stream has ended, by one segment or another
	top    int          // the furthest that it may have got
	// somebody has asked for a reset, or a segment was sent that makes no sense
	reset    bool
	replaced bool   // the guest has sent a SYN that may replace the connection
	timers   int    // that have gone off
	ended    bool   // the peer has ended its direction
	written  int    // bytes the peer has sent
	others   int    // bytes that other flows hold
	release  func() // gives these back

	got   int // bytes the peer has read
	eof   bool
	rsted bool

	known bool // isn is
	begun bool // the guest's SYN is acknowledged
	acked int  // of its stream; the SYN does not count, the FIN does
	ours  int  // bytes of the peer's stream in a row
	fin   bool // and its end
	told  bool // the guest got a reset
}

func newFuzzGuest(t *testing.T, choice byte) *fuzzGuest {
	s := shared()
	fam := families[choice&chooseIPv6/chooseIPv6]
	g := &fuzzGuest{s: s, choice: choice, ends: map[int]bool{}, peer: -1}
	s.env.Backpressure, s.env.PeekOff4, s.env.PeekOff6 = nil, false, false
	if choice&chooseGate != 0 {
		s.env.Backpressure = never{}
	}
	if choice&chooseNoPeekOff == 0 {
		s.env.PeekOff4, s.env.PeekOff6 = havePeekOff(), havePeekOff()
	}
	s.link = fuzzLink{guest: g}
	g.bed = &bed{t: t, fam: fam, env: &s.env, pool: s.pool, wnd: 4096, snd: guestISN + 1, mss: guestMSS,
		port: flow.NewPort(flow.Key{Guest: frame.AddrOf(fam.guest), Remote: frame.AddrOf(fam.remote),
			GuestPort: 40001, RemotePort: 80, Proto: frame.ProtoTCP})}
	left := s.env.Held.Free()
	switch {
	case choice&chooseFullHeld != 0:
		left = 0
	case choice&chooseFullEarly != 0:
		left = left/2 + 4096
	}
	g.release = g.occupy(left)
	g.others = s.env.Held.Used()
	if choice&chooseAccepted != 0 {
		fd, err := s.Dial(s.at)
		if err != nil {
			t.Fatal(err)
		}
		g.peer = fd
		if fd, err = s.accept(); err != nil {
			t.Fatal(err)
		}
		if choice&chooseSmallBuf != 0 {
			g.smallBuffers(fd)
		}
		g.c = &conn{env: g.env, port: g.port, host: s.at, fd: fd}
		if !g.c.call() {
			t.Fatal("no connection")
		}
		return g
	}
	g.c = &conn{env: g.env, port: g.port, host: s.at, fd: -1}
	g.offer(seg{flags: frame.SYN, seq: guestISN, wnd: 64240, opt: synOptions})
	if !g.c.open(s) {
		t.Fatal("no connection")
	}
	fd, err := s.accept()
	if err != nil {
		t.Fatal(err)
	}
	g.peer = fd
	if choice&chooseSmallBuf != 0 {
		g.smallBuffers(g.c.fd)
	}
	for end := time.Now().Add(patience); !g.known; g.pump() {
		if time.Now().After(end) {
			t.Fatal("the guest hears nothing")
		}
	}
	return g
}

var havePeekOff = sync.OnceValue(func() bool { return sock.PeekOffset(unix.AF_INET) })

// smallBuffers makes the actor's socket, fd, take little, and the peer's. With less the kernel
// waits for its own timers where there is no room for a segment of the loopback's size.
func (g *fuzzGuest) smallBuffers(fd int) {
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 48<<10)
	unix.SetsockoptInt(g.peer, unix.SOL_SOCKET, unix.SO_RCVBUF, 96<<10)
}

// shakeHands has the guest answer as it should.
func (g *fuzzGuest) shakeHands() {
	s := seg{flags: frame.ACK, seq: guestISN + 1, ack: g.isn + 1, wnd: 4096}
	if g.choice&chooseAccepted != 0 {
		s = seg{flags: frame.SYN | frame.ACK, seq: guestISN, ack: g.isn + 1, wnd: 64240, opt: synOptions}
	}
	g.segs = append(g.segs, s)
	g.flush()
	if g.c.state != established {
		g.t.Fatal("the connection is not established")
	}
}

// pump has the actor do all there is to do.
func (g *fuzzGuest) pump() {
	for range 64 {
		if g.c.over {
			break
		}
		g.c.work()
		if g.c.over || !g.c.fromHost() {
			break
		}
	}
	g.check()
}

// check looks at what always holds between two steps.
func (g *fuzzGuest) check() {
	c, t := g.c, g.t
	held, cost := 0, 0
	for i := range c.held {
		held += len(c.held[i].data)
		cost += c.held[i].cost
	}
	if held != c.heldLen {
		t.Errorf("%d bytes are held, %d are counted", held, c.heldLen)
	}
	for i := range c.early.pieces {
		p := &c.early.pieces[i]
		cost += p.cost
		if !c.over && (!seqGT(p.seq, c.rcvNxt) || seqGT(p.end(), c.rcvEdge) || i > 0 && seqLT(p.seq, c.early.pieces[i-1].end())) {
			t.Errorf("piece %d from %d to %d, expected %d, edge %d", i, p.seq, p.end(), c.rcvNxt, c.rcvEdge)
		}
	}
	if used := c.credit.Used(); used != cost+c.promised || c.promised < 0 || g.env.Held.Used() < g.others+used {
		t.Errorf("what is kept costs %d and %d are promised, %d is counted, %d by all", cost, c.promised, used, g.env.Held.Used()-g.others)
	}
	if n := g.env.Held.Free(); n < 0 {
		t.Errorf("%d bytes are kept beyond the ceiling", -n)
	}
	if seqGT(c.sndUna, c.sndNxt) || seqGT(c.sndNxt, c.sndMax) {
		t.Errorf("acknowledged %d, next %d, sent %d", c.sndUna, c.sndNxt, c.sndMax)
	}
	if c.state == established && seqGT(c.wl1, c.rcvEdge) {
		t.Errorf("the window is that of a segment at %d, beyond its right edge %d", c.wl1, c.rcvEdge)
	}
	if c.over && c.reset && !g.reset && !g.rsted {
		t.Error("the connection is reset, and nobody has asked for that")
	}
	if t.Failed() {
		t.FailNow()
	}
}

// see checks a segment to the guest.
func (g *fuzzGuest) see(s seg) error {
	switch {
	case s.flags&frame.RST != 0:
		g.told = g.told || s.flags&frame.ACK != 0
		return nil
	case s.flags&frame.SYN != 0:
		if g.known && s.seq != g.isn {
			return fmt.Errorf("another SYN: %v, the first had %d", s, g.isn)
		}
		if g.c.state == established {
			return fmt.Errorf("SYN on an established connection: %v", s)
		}
		g.isn, g.known = s.seq, true
		if s.flags&frame.ACK != 0 {
			g.begun = true
			if s.ack != guestISN+1 {
				return fmt.Errorf("acknowledgement of another SYN: %v", s)
			}
		}
		return nil
	}
	ack, at := int(int32(s.ack-guestISN-1)), int(int32(s.seq-g.isn-1))
	if ack < 0 || ack > g.top {
		return fmt.Errorf("acknowledgement of what was never sent: %v, %d was", s, g.top)
	}
	g.begun = true
	g.acked = max(g.acked, ack)
	if len(s.data) > 0 && (at < 0 || at+len(s.data) > g.written || !bytes.Equal(s.data, data(at, len(s.data)))) {
		return fmt.Errorf("other bytes than the peer's: %v at %d of %d", s, at, g.written)
	}
	if at <= g.ours {
		g.ours = max(g.ours, at+len(s.data))
	}
	if s.flags&frame.FIN != 0 {
		if at+len(s.data) != g.written || !g.ended {
			return fmt.Errorf("end after %d bytes, the peer has sent %d: %v", at+len(s.data), g.written, s)
		}
		g.fin = g.fin || at+len(s.data) <= g.ours
	}
	return nil
}

// near turns x into a distance: small ones, those around a segment's length, and absurd ones.
func near(x byte) int {
	switch d := int(x) - 128; {
	case d == 127:
		return 1 << 30
	case d == -127:
		return -1 << 30
	case d > 64 || d < -64:
		return d * 500
	default:
		return d
	}
}

func (g *fuzzGuest) do(op, a, b, c byte) {
	s := seg{flags: frame.ACK, wnd: 4096, ack: g.isn + 1 + uint32(g.ours)}
	switch op {
	case opData, opFlags:
		at := g.acked
		n := int(b) * int(c%16) // 0 to 3825
		if op == opFlags {
			s.flags = a & (frame.FIN | frame.RST | frame.ACK | frame.PSH | frame.URG)
			at += int(c / 16)
			n = int(b)
		} else if a != 0 {
			at += near(a)
			s.wnd >>= c / 16
		}
		if at < 0 || at > 1<<20 {
			n = 0 // the part of the stream before its beginning has no bytes
		} else {
			s.data = data(at, n)
		}
		g.place(&s, at)
	case opAck:
		if d := near(a); d > 0 && c&1 == 0 {
			s.ack += uint32(g.written - g.ours + 2 + d) // of what the peer has never sent
		} else {
			s.ack += uint32(d)
		}
		s.wnd = uint16(b) * 16
		g.place(&s, g.acked)
	case opSYN:
		s.flags = a&(frame.FIN|frame.RST|frame.ACK|frame.PSH|frame.URG) | frame.SYN
		s.seq, s.opt, s.wnd = guestISN, synOptions, uint16(c)*250
		switch {
		case b >= 192 && (g.begun || g.choice&chooseAccepted == 0):
			s.seq += uint32(b) << 22 // of another connection; one that is not begun would take it
		case b >= 128:
			s.ack += uint32(b) - 127
		}
		if c&1 != 0 {
			s.opt = synOptions[:4]
		}
		g.reset = g.reset || s.flags&(frame.FIN|frame.RST) != 0
		g.replaced = g.replaced || s.flags&frame.ACK == 0
		g.segs = append(g.segs, s)
	case opRun:
		g.flush()
	case opTooBig:
		g.port.TooBig(g.c.sndUna+uint32(near(a)), int(b)<<8|int(c))
		g.pump()
	case opWrite:
		if !g.ended && g.written < 1<<18 {
			n, _ := unix.Write(g.peer, data(g.written, int(a)*20)) // what it takes
			g.written += max(n, 0)
			g.pump()
		}
	case opUrgent:
		if !g.ended && g.written < 1<<18 {
			n, _ := unix.SendmsgN(g.peer, data(g.written, int(a)), nil, nil, unix.MSG_OOB|unix.MSG_NOSIGNAL)
			g.written += max(n, 0)
			g.pump()
		}
	case opRead:
		g.read(int(a)<<8 | int(b))
		g.pump()
	case opEnd:
		g.ended = true
		unix.Shutdown(g.peer, unix.SHUT_WR)
		g.pump()
	case opReset:
		g.reset, g.ended = true, true
		sock.Reset(g.peer)
		g.rsted = true
		g.pump()
	case opTime:
		g.flush()
		g.wait()
		g.pump()
	case opLink:
		g.s.link.drop = int(a % 8)
	case opWritten:
		if !g.c.over && g.c.state != connecting {
			g.c.written()
			g.pump()
		}
	}
	if len(g.segs) == 12 {
		g.flush()
	}
}

// place has s be sent at the position at in the guest's stream.
func (g *fuzzGuest) place(s *seg, at int) {
	s.seq = guestISN + 1 + uint32(at)
	end := at + len(s.data)
	if s.flags&frame.FIN != 0 {
		g.ends[end] = true
		end++
	}
	if end < 1<<20 {
		g.top = max(g.top, end)
	}
	g.reset = g.reset || s.flags&frame.RST != 0
	g.segs = append(g.segs, *s)
}

// wait has the time come at which the next timer goes off. Not even a guest that is silent for a
// while is given up.
func (g *fuzzGuest) wait() {
	c := g.c
	switch {
	case c.over:
	case c.rtoAt != 0 && g.timers < 6:
		g.timers++
		c.onTime(c.rtoAt)
	case c.ackDue && c.ackBy != 0:
		c.onTime(c.ackBy)
	case c.rtoAt == 0 && c.state == established:
		c.onTime(c.seenAt + keepAlive)
	}
}

func (g *fuzzGuest) flush() {
	if len(g.segs) > 0 && !g.c.over {
		g.offer(g.segs...)
		g.pump()
	}
	g.segs = g.segs[:0]
}

// read has the peer read up to n bytes.
func (g *fuzzGuest) read(n int) {
	var buf [16 << 10]byte
	// a delayed acknowledgement would be waited for
	defer unix.SetsockoptInt(g.peer, unix.SOL_TCP, unix.TCP_QUICKACK, 1)
	for n > 0 && !g.eof && !g.rsted {
		m, err := unix.Read(g.peer, buf[:min(n, len(buf))])
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return
		case err == unix.ECONNRESET:
			g.rsted = true
			if !g.reset {
				g.t.Fatalf("the peer was reset after %d bytes, and nobody has asked for that", g.got)
			}
		case err != nil:
			g.t.Fatalf("peer reads: %v", err)
		case m == 0:
			g.eof = true
			if !g.ends[g.got] {
				g.t.Fatalf("the peer has got the end after %d bytes, where there was none: %v", g.got, g.ends)
			}
		default:
			if !bytes.Equal(buf[:m], data(g.got, m)) {
				g.t.Fatal("the peer has got other bytes than the guest has sent")
			}
			g.got += m
			n -= m
		}
	}
}

// finish has all of them go on as they should until both streams have ended.
func (g *fuzzGuest) finish() {
	const total = 1 << 18 // more than any operation can reach
	g.s.link.drop = 0
	g.flush()
	g.pump()
	if !g.ended {
		if n, _ := unix.Write(g.peer, data(g.written, 5000)); n > 0 {
			g.written += n
		}
		unix.Shutdown(g.peer, unix.SHUT_WR)
		g.ended = true
	}
	g.ends[total] = true
	g.top = max(g.top, total+1)
	g.timers = 0
	before, idle := "", 0
	for end := time.Now().Add(patience); !g.c.over; {
		c := g.c
		if !g.begun {
			g.offer(seg{flags: frame.SYN | frame.ACK, seq: guestISN, ack: g.isn + 1, wnd: 64240, opt: synOptions})
			g.pump()
			g.read(1 << 20)
			continue
		}
		// What it has acknowledged without having it, it does without.
		if una := int(int32(c.sndUna - g.isn - 1)); una > g.ours {
			g.ours, g.fin = min(una, g.written), g.fin || una > g.written
		}
		s := seg{flags: frame.ACK, ack: g.isn + 1 + uint32(g.ours), wnd: 4096}
		if g.fin {
			s.ack++
		}
		// What it says about its window counts from the end of what it has sent on.
		if edge := c.wl1; c.state == established && seqGT(edge, guestISN+1+uint32(g.acked)) {
			s.seq = edge
			g.offer(s)
			g.pump()
			if c.over {
				break
			}
		}
		s.seq = guestISN + 1 + uint32(g.acked)
		if g.acked < total {
			s.data = data(g.acked, min(total-g.acked, 40000))
		}
		if g.acked+len(s.data) == total {
			s.flags |= frame.FIN
		}
		g.offer(s)
		g.pump()
		g.read(1 << 20)
		if !c.over && (len(c.held) > 0 && writable(uintptr(c.fd)) || c.shut && !c.finDone && finAcked(uintptr(c.fd))) {
			c.written()
			g.pump()
		}
		now := fmt.Sprint(g.acked, g.ours, g.fin, g.got, g.eof, c.finDone, c.finAcked)
		if now != before {
			before, idle = now, 0
			continue
		}
		if idle++; idle > 3 {
			g.timers = 0
			g.wait()
			g.pump()
			time.Sleep(20 * time.Microsecond) // the kernel's turn
		}
		if idle > 500 && time.Now().After(end) {
			g.t.Fatalf("does not end: %d acknowledged, %d of %d bytes received, end %v; the peer has %d, end %v",
				g.acked, g.ours, g.written, g.fin, g.got, g.eof)
		}
	}
	if g.c.reset {
		g.reset = true // check has found it right
	}
}

// end closes all of it, and checks that everything came home.
func (g *fuzzGuest) end() {
	g.c.close()
	for end := time.Now().Add(patience); !g.t.Failed() && !g.eof && !g.rsted; g.read(1 << 20) {
		if time.Now().After(end) {
			g.t.Error("the peer does not hear of the end")
		}
	}
	if r, ok := g.port.HandedOver(); ok {
		if !g.replaced {
			g.t.Error("a SYN is left that there was not")
		}
		r.Release()
	}
	unix.Close(g.peer)
	if n := g.pool.Out(); n != 0 {
		g.t.Errorf("%d slabs were not given back", n)
	}
	g.release()
	if n := g.env.Held.Used(); n != 0 {
		g.t.Errorf("%d bytes are counted as held", n)
	}
}
