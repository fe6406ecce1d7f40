package udp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
	"fusilli/tapio"
	"fusilli/tapio/frame"
)

// The operations of FuzzListener: three bytes each, of which the second names a peer.
const (
	opCall   = iota // a peer sends datagrams to the port
	opAnswer        // the guest sends it some
	opOther         // the guest sends to a port that nobody has, or one of another protocol's flow
	opRoute         // what the peer sends leads elsewhere from now on, or no more
	opRefuse        // the next new flow is refused
	opPassed        // nothing happens for so long that flows without an answer end, or all do
	opPress         // one has to give way
	opFail          // the peer goes away, so that datagrams to it are refused; or comes back
	opSpoil         // the link drops frames
	listenOps
)

const callersInFuzz = 6

// FuzzListener has peers of a forwarded port, the guest, and what lies around them do anything. The
// guest gets what each peer has sent, from that peer and in its order, and each peer what the guest
// has sent to it; what leads elsewhere goes there; and what is known of peers is the same wherever
// it is noted.
func FuzzListener(f *testing.F) {
	for _, in := range [][]byte{
		{},
		{opCall, 0, 10, opCall, 1, 20, opAnswer, 0, 5, opAnswer, 1, 0, opCall, 0, 200},
		{opCall, 0, 10, opRoute, 0, 0, opCall, 0, 1, opCall, 1, 1, opRoute, 0, 0, opCall, 0, 1},
		{opCall, 0, 1, opCall, 1, 1, opCall, 2, 1, opAnswer, 1, 1, opPassed, 0, 0, opCall, 0, 9, opPress, 0, 0, opPassed, 1, 0},
		{opRefuse, 1, 0, opCall, 0, 1, opRefuse, 2, 0, opCall, 0, 1, opCall, 0, 1},
		{opCall, 3, 1, opFail, 3, 0, opAnswer, 3, 9, opAnswer, 3, 9, opCall, 0, 1, opFail, 3, 0, opCall, 3, 1},
		{opOther, 0, 0, opCall, 0, 1, opOther, 0, 1, opSpoil, 2, 0, opCall, 1, 100},
		{opCall, 0, 255, opCall, 0, 255, opCall, 0, 255, 1},
	} {
		f.Add(in)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		s := newListening(t, families[len(in)%3&1])
		for n := 0; len(in) >= 3 && n < 60; n++ {
			s.do(in[0]%listenOps, int(in[1]), in[2])
			in = in[3:]
		}
		s.end()
	})
}

// listening is who takes part in a run of FuzzListener. It is the listener, the sharing and the
// link.
type listening struct {
	*bed
	c     *conn
	to    netip.AddrPort
	peers [callersInFuzz]struct {
		*net.UDPConn // nil while it is away
		at           netip.AddrPort
		sent         [][]byte // to the port, and not come yet
		toIt         [][]byte // by the guest, and not come yet
		elsewhere    bool
	}
	id       uint32
	refuse   error
	members  map[*flow.Member]bool
	drop     int
	foreign  int // datagrams that led elsewhere since Drained
	returned bool
}

func newListening(t *testing.T, fam family) *listening {
	s := &listening{members: map[*flow.Member]bool{}}
	s.bed = &bed{t: t, fam: fam, ttl: 64, pool: scenePool(), key: flow.Key{Guest: frame.AddrOf(fam.guest), Remote: frame.AddrOf(fam.remote),
		GuestPort: 40001, Proto: frame.ProtoUDP}}
	s.env = &flow.Env{Log: nopLog, OurMAC: ourMAC, MTU: 1500, UDPTimeout: 30 * time.Second, UDPStreamTimeout: 120 * time.Second,
		Link: s, Sharing: sharing{s}}
	s.env.SetGuestMAC(guestMAC)
	l := newPeer(t, fam)
	s.to = l.LocalAddr().(*net.UDPAddr).AddrPort()
	fd := -1
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(own uintptr) {
		unix.SetsockoptInt(int(own), unix.SOL_IP, unix.IP_PKTINFO, 1)
		unix.SetsockoptInt(int(own), unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1)
		unix.SetsockoptInt(int(own), unix.SOL_IP, unix.IP_RECVERR, 1)
		unix.SetsockoptInt(int(own), unix.SOL_IPV6, unix.IPV6_RECVERR, 1)
		fd, err = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	s.port = flow.NewPort(s.key)
	s.c = newServer(s.env, s.port, fd, s)
	sock.PrepareUDP(fd)
	if err := s.port.Open(fd, s.c.fromHost); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.port.Close)
	for i := range s.peers {
		p := &s.peers[i]
		p.UDPConn = newPeer(t, fam)
		p.at = p.LocalAddr().(*net.UDPAddr).AddrPort()
	}
	return s
}

func (s *listening) by(port uint16) int {
	for i := range s.peers {
		if s.peers[i].at.Port() == port {
			return i
		}
	}
	return -1
}

// flow.Listener.

func (s *listening) Route(from *flow.Sender) (flow.Key, bool) {
	i := s.by(from.Peer.Port())
	if i < 0 || s.peers[i].elsewhere {
		return flow.Key{}, false
	}
	k := s.key
	k.RemotePort = from.Peer.Port()
	return k, true
}

func (s *listening) Elsewhere(from *flow.Sender, data []byte) {
	i := s.by(from.Peer.Port())
	s.foreign++
	if i < 0 {
		return // of another process
	}
	s.came(fmt.Sprint("elsewhere from ", i), data, &s.peers[i].sent)
}

func (s *listening) Drained()                                         { s.foreign = 0 }
func (s *listening) Removed() bool                                    { return s.returned }
func (s *listening) Connect(*flow.Sender) (int, error)                { return -1, unix.EMFILE }
func (s *listening) Ended(bool)                                       {}
func (s *listening) Claim(*flow.Port, uint16) bool                    { return false }
func (s *listening) Disclaim(*flow.Port, uint16)                      {}
func (s *listening) Accept(fd int, _ flow.Key)                        { unix.Close(fd) }
func (s *listening) Read([]byte) (int, error)                         { return 0, os.ErrClosed }
func (s *listening) TryRead([]byte) (int, error)                      { return 0, nil }
func (s *listening) Close() error                                     { return nil }
func (s *listening) Join(*flow.Port, *flow.Key) (*flow.Member, error) { return nil, flow.ErrFull }

func (s *listening) Meet(p *flow.Port, k *flow.Key, _, _ netip.AddrPort) (*flow.Member, error) {
	if err := s.refuse; err != nil {
		s.refuse = nil
		return nil, err
	}
	m := &flow.Member{Alias: flow.NewAlias(*k, p, true), FromHost: true}
	s.members[m] = true
	return m, nil
}

func (s *listening) Leave(m *flow.Member) {
	if !s.members[m] {
		s.t.Fatal("a flow ends that there is none of")
	}
	delete(s.members, m)
}

// sharing is the part of flow.Sharing whose names flow.Listener has too.
type sharing struct{ *listening }

func (sharing) Elsewhere(r flow.Run) { r.Release() }

// Write is the link's.
func (s *listening) Write(f []byte) error {
	if s.drop > 0 {
		s.drop--
		return tapio.ErrDropped
	}
	hlen := frame.IPv4Len
	proto := f[frame.L3Off+9]
	if s.key.V6() {
		hlen, proto = frame.IPv6Len, f[frame.L3Off+6]
	}
	if proto != frame.ProtoUDP {
		return nil // an error about what the guest has sent
	}
	port := binary.BigEndian.Uint16(f[frame.L3Off+hlen:])
	i := s.by(port)
	if i < 0 {
		s.t.Fatalf("datagram from port %d, which is nobody's", port)
	}
	s.key.RemotePort = port
	data, size, err := s.check(f)
	if err != nil {
		s.t.Fatal(err)
	}
	for {
		n := min(size, len(data))
		s.came(fmt.Sprint("the guest from ", i), data[:n], &s.peers[i].sent)
		if data = data[n:]; len(data) == 0 {
			return nil
		}
	}
}

// came takes d out of those in what that are not overtaken; it must be one of them.
func (s *listening) came(where string, d []byte, what *[][]byte) {
	for i, w := range *what {
		if bytes.Equal(d, w) {
			*what = (*what)[i+1:]
			return
		}
	}
	s.t.Fatalf("%s: %d bytes that are not next: %x", where, len(d), d[:min(len(d), 32)])
}

func (s *listening) do(op byte, who int, v byte) {
	p := &s.peers[who%callersInFuzz]
	size := int(v) * 4
	if v >= 240 {
		size = int(v) * 200
	}
	switch op {
	case opCall:
		if p.UDPConn == nil {
			return
		}
		for range 1 + who/callersInFuzz%5 {
			s.id++
			d := pattern(size, s.id)
			if _, err := p.WriteToUDPAddrPort(d, s.to); err == nil {
				p.sent = append(p.sent, d)
			}
		}
	case opAnswer:
		var frames [][]byte
		for range 1 + who/callersInFuzz%3 {
			s.id++
			d := pattern(size, s.id)
			s.key.RemotePort = p.at.Port()
			frames = append(frames, s.frameOf(d, 0))
			p.toIt = append(p.toIt, d)
		}
		s.handOver(frames...)
	case opOther:
		s.key.RemotePort = 1 + uint16(who)
		s.handOver(s.frameOf(pattern(size, 7), 0))
	case opRoute:
		p.elsewhere = !p.elsewhere
	case opRefuse:
		s.refuse = []error{nil, flow.ErrExists, flow.ErrFull}[who%3]
	case opPassed:
		now := flow.Now() + flow.Time(s.env.UDPTimeout)
		if who%2 != 0 {
			now += flow.Time(s.env.UDPStreamTimeout)
		}
		s.c.expire(now)
	case opPress:
		s.c.giveWay()
	case opFail:
		if p.UDPConn != nil {
			p.UDPConn.Close()
			p.UDPConn, p.toIt = nil, nil
		} else if c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(p.at)); err == nil {
			p.UDPConn, p.toIt = c, nil
			s.t.Cleanup(func() { c.Close() })
		}
	case opSpoil:
		s.drop = who % 4
	}
	s.pump()
}

func (s *listening) handOver(frames ...[]byte) {
	for _, r := range s.run(frames...) {
		if !s.port.Offer(r) {
			r.Release()
		}
	}
}

// pump has the actor do all there is to do, and looks at what always holds then.
func (s *listening) pump() {
	t := s.t
	for range 64 {
		if !s.c.step() {
			t.Fatal("the actor has ended")
		}
		if !s.c.fromHost() {
			break
		}
	}
	buf := make([]byte, 65536)
	for i := range s.peers {
		p := &s.peers[i]
		for p.UDPConn != nil {
			n, from, ok := receiveNow(t, p.UDPConn, buf)
			if !ok {
				break
			}
			// Another process may think of a port that was its own a moment ago.
			if from == s.to.Port() {
				s.came(fmt.Sprint("peer ", i), buf[:n], &p.toIt)
			}
		}
	}
	w, callers := s.c.table, s.c.table.callers
	listed := 0
	for _, l := range []*peerList{&w.waiting, &w.answered, &w.streams} {
		n := 0
		for p := l.first; p != nil; p = p.behind {
			if n++; p.list != l || callers.byKey[*p.key] != p || !s.members[p.member] {
				t.Fatalf("peer %v is in a list and not elsewhere", p.host)
			}
		}
		if n != l.n {
			t.Fatalf("%d peers in a list of %d", n, l.n)
		}
		listed += n
	}
	found := 0
	for id, p := range w.peers {
		for ; p != nil; p = p.sibling {
			if found++; p.id != id {
				t.Fatal("a peer is found by an address that it has not")
			}
		}
	}
	unanswered := 0
	for _, of := range callers.sources {
		unanswered += of.n
	}
	if listed != w.n || found != w.n || len(callers.byKey) != w.n || len(s.members) != w.n || unanswered != w.waiting.n {
		t.Fatalf("%d peers: %d in lists, %d by address, %d by key, %d flows; %d of %d wait for an answer",
			w.n, listed, found, len(callers.byKey), len(s.members), unanswered, w.waiting.n)
	}
	if s.foreign != 0 {
		t.Fatal("what leads elsewhere waits though all was received")
	}
}

// receiveNow receives a datagram that waits at c, and returns the port it comes from.
func receiveNow(t testing.TB, c *net.UDPConn, buf []byte) (n int, from uint16, ok bool) {
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		var sa unix.Sockaddr
		for {
			if n, sa, err = unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT); err != unix.EINTR {
				break
			}
		}
		switch sa := sa.(type) {
		case *unix.SockaddrInet4:
			from = uint16(sa.Port)
		case *unix.SockaddrInet6:
			from = uint16(sa.Port)
		}
	})
	return n, from, err == nil
}

func (s *listening) end() {
	s.returned = s.id%2 == 0
	s.c.unshare()
	if len(s.members) != 0 {
		s.t.Errorf("%d flows are left", len(s.members))
	}
	if n := s.pool.Out(); n != 0 {
		s.t.Errorf("%d slabs were not given back", n)
	}
}
