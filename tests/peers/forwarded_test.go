package peers

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/internal/leaktest"
	"fusilli/tapio/frame"
)

// listener is a port of the host that leads to the guest's.
type listener struct {
	*world
	fd   int
	dual bool
	port uint16
	stop func()

	removed atomic.Bool
	ended   chan bool

	mu        sync.Mutex
	elsewhere []string // from a port that is among those that lead there
	leads     map[uint16]bool
	drained   int
}

// listen opens a port and has the engine serve it; dual: with a socket for both families.
func (w *world) listen(dual bool) *listener {
	w.t.Helper()
	l := &listener{world: w, dual: dual, ended: make(chan bool, 1), leads: make(map[uint16]bool)}
	l.fd = l.socket()
	any := netip.IPv6Unspecified()
	if w.fam.guest.Is4() && !dual {
		any = netip.IPv4Unspecified()
	}
	if err := unix.Bind(l.fd, l.sockaddr(netip.AddrPortFrom(any, 0))); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { unix.Close(l.fd) })
	switch sa, _ := unix.Getsockname(l.fd); sa := sa.(type) {
	case *unix.SockaddrInet4:
		l.port = uint16(sa.Port)
	case *unix.SockaddrInet6:
		l.port = uint16(sa.Port)
	}
	l.serve()
	return l
}

func (l *listener) socket() int {
	l.t.Helper()
	domain := unix.AF_INET6
	if l.fam.guest.Is4() && !l.dual {
		domain = unix.AF_INET
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		l.t.Fatal(err)
	}
	set := func(level, opt, value int) {
		if err := unix.SetsockoptInt(fd, level, opt, value); err != nil {
			l.t.Fatal(err)
		}
	}
	set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if domain == unix.AF_INET6 {
		set(unix.SOL_IPV6, unix.IPV6_V6ONLY, 0)
		set(unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1)
		set(unix.SOL_IPV6, unix.IPV6_RECVERR, 1)
	}
	set(unix.SOL_IP, unix.IP_PKTINFO, 1)
	set(unix.SOL_IP, unix.IP_RECVERR, 1)
	return fd
}

func (l *listener) sockaddr(a netip.AddrPort) unix.Sockaddr {
	if l.fam.guest.Is4() && !l.dual {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

func (l *listener) serve() {
	l.t.Helper()
	fd, err := unix.FcntlInt(uintptr(l.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		l.stop, err = l.ServeUDP(fd, l)
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *listener) Route(s *flow.Sender) (flow.Key, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return flow.Key{
		Guest: frame.AddrOf(l.fam.guest), GuestPort: l.world.port, Proto: frame.ProtoUDP,
		Remote: frame.AddrOf(s.Peer.Addr()), RemotePort: s.Peer.Port(),
	}, !l.leads[s.Peer.Port()] && !l.removed.Load()
}

func (l *listener) Elsewhere(s *flow.Sender, data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.elsewhere = append(l.elsewhere, fmt.Sprintf("%v %s", s.Peer, data))
}

func (l *listener) Drained() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drained++
}

func (l *listener) Removed() bool { return l.removed.Load() }

func (l *listener) Connect(s *flow.Sender) (int, error) {
	fd := l.socket()
	err := unix.Bind(fd, l.sockaddr(netip.AddrPortFrom(s.At, l.port)))
	if err == nil {
		err = unix.Connect(fd, l.sockaddr(s.Peer))
	}
	if err != nil {
		unix.Close(fd)
	}
	return fd, err
}

func (l *listener) Ended(works bool) { l.ended <- works }

// at is the i-th address that the port is at.
func (l *listener) at(i int) netip.AddrPort { return netip.AddrPortFrom(l.fam.host(i), l.port) }

// ask has p ask the guest by the i-th address.
func (l *listener) ask(p *peer, i int, data string) {
	l.t.Helper()
	p.answer(l.at(i), data)
	l.expect(p.at, data)
}

// asked has p ask, and the guest answer, from the address that was asked.
func (l *listener) asked(p *peer, i int, data string) {
	l.t.Helper()
	l.ask(p, i, data)
	l.send(p.at, data+data)
	if from := p.expect(data + data); from.Compare(l.at(i)) != 0 {
		l.t.Fatalf("%v is answered from %v, has asked %v", p.at, from, l.at(i))
	}
}

// forListeners runs f for sockets of both families, and for IPv4 on one for both.
func forListeners(t *testing.T, idle time.Duration, f func(*testing.T, *listener)) {
	forFamilies(t, func(t *testing.T, fam family) { f(t, newWorld(t, fam, idle).listen(false)) })
	t.Run("IPv4 on IPv6", func(t *testing.T) { f(t, newWorld(t, families[0], idle).listen(true)) })
}

// TestForwardedPeersShareASocket: each is a flow, and is answered from the address that it has
// asked, even if it asks another one next.
func TestForwardedPeersShareASocket(t *testing.T) {
	forListeners(t, time.Hour, func(t *testing.T, l *listener) {
		const n = 600
		peers := l.fam.peers(t, n)
		before := leaktest.Descriptors(t)
		for i, p := range peers {
			l.asked(p, 1+i%3, fmt.Sprint(i))
		}
		if got := leaktest.Descriptors(t) - before; got != 0 {
			t.Errorf("%d more descriptors for %d peers", got, n)
		}
		if got := l.Counters().UDP.Load(); got != n {
			t.Errorf("%d flows are counted, want %d", got, n)
		}
		for i := range 6 {
			l.asked(peers[0], 1+i%3, fmt.Sprint("other ", i))
		}
		if got := l.Counters().UDP.Load(); got != n {
			t.Errorf("%d flows are counted for peers that ask other addresses, want %d", got, n)
		}
		// The guest goes on by itself, and so does the peer, in rows too.
		row := make([]byte, 0, 10*1000)
		for i := range 10 {
			l.send(peers[1].at, fmt.Sprint("more ", i))
			peers[1].expect(fmt.Sprint("more ", i))
			row = append(row, fmt.Sprintf("%01000d", i)...)
		}
		raw, _ := peers[1].SyscallConn()
		raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, 1000) })
		peers[1].answer(l.at(2), string(row))
		for i := range 10 {
			l.expect(peers[1].at, fmt.Sprintf("%01000d", i))
		}
	})
}

// TestForwardedErrorIsOnePeers: a peer that has closed its port is reported to the guest, and
// disturbs no other.
func TestForwardedErrorIsOnePeers(t *testing.T) {
	forListeners(t, time.Hour, func(t *testing.T, l *listener) {
		want := [2]byte{3, 3} // port unreachable
		if l.fam.guest.Is6() {
			want = [2]byte{1, 4}
		}
		peers := l.fam.peers(t, 3)
		for _, p := range peers {
			l.asked(p, 1, "x")
		}
		gone := peers[1]
		gone.Close()
		told := 0
		for i := 0; told < 3; i++ {
			for _, p := range peers {
				l.send(p.at, fmt.Sprint(i))
			}
			for _, p := range peers {
				if p != gone {
					p.answer(p.expect(fmt.Sprint(i)), fmt.Sprint(i))
				}
			}
			for answers := 0; answers < 2; {
				switch d := l.next(); {
				case d.icmp == want && d.from == gone.at:
					told++
				case d.icmp == [2]byte{} && d.from != gone.at && d.data == fmt.Sprint(i):
					answers++
				default:
					t.Fatalf("round %d: the guest gets %+v", i, d)
				}
			}
		}
	})
}

// TestForwardedTTLOfEach: answers leave with the time to live and the type of service the guest
// gave them.
func TestForwardedTTLOfEach(t *testing.T) {
	forListeners(t, time.Hour, func(t *testing.T, l *listener) {
		peers := l.fam.peers(t, 3)
		for _, p := range peers {
			raw, _ := p.SyscallConn()
			raw.Control(func(fd uintptr) {
				unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_RECVTTL, 1)
				unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVHOPLIMIT, 1)
			})
			l.asked(p, 1, "x")
		}
		for _, ttl := range []uint8{64, 9, 255, 64} {
			for i, p := range peers {
				l.ttl = ttl - uint8(i)
				l.send(p.at, "x")
				oob := make([]byte, 256)
				_, n, _, _, err := p.ReadMsgUDPAddrPort(make([]byte, 9), oob)
				if err != nil {
					t.Fatal(err)
				}
				msgs, err := unix.ParseSocketControlMessage(oob[:n])
				if err != nil || len(msgs) != 1 || msgs[0].Data[0] != ttl-uint8(i) {
					t.Fatalf("%v, %v; want %d", msgs, err, ttl-uint8(i))
				}
			}
		}
	})
}

// TestForwardedFloodWearsItselfOut: of peers that the guest does not answer, the oldest give way,
// first to those of their own address; what was answered stays.
func TestForwardedFloodWearsItselfOut(t *testing.T) {
	forListeners(t, time.Hour, func(t *testing.T, l *listener) {
		known := newPeer(t, l.fam.host(5))
		l.asked(known, 1, "a")
		l.asked(known, 1, "b")
		waits := newPeer(t, l.fam.host(6))
		l.ask(waits, 1, "who waits for its answer")
		// Addresses of one /64 are one source.
		for i := range 700 {
			l.ask(newPeer(t, l.fam.host(7)), 1, fmt.Sprint(i))
		}
		others := 256
		if l.fam.guest.Is6() {
			others = 255 // who waits is among them, or has given way
		}
		if got := l.Counters().UDP.Load() - l.Counters().Evicted.Load(); int(got) > 2+256 || int(got) < others {
			t.Errorf("%d flows, of which one source has asked", got)
		}
		if l.fam.guest.Is4() {
			l.send(waits.at, "late")
			if from := waits.expect("late"); from != l.at(1) {
				t.Errorf("answered from %v", from)
			}
			for i := range 1200 { // 24 sources
				l.ask(newPeer(t, l.fam.host(10+i/50)), 1, fmt.Sprint(i))
			}
			if got := l.Counters().UDP.Load() - l.Counters().Evicted.Load(); got > 1024+2 {
				t.Errorf("%d flows without an answer", got-2)
			}
		}
		l.asked(known, 1, "still")
		if n := l.Counters().UDP.Load(); n > 2+700+1200 {
			t.Errorf("%d flows: the one that was answered had to begin anew", n)
		}
	})
}

// TestForwardedFlowsOutliveTheRule: when the port is forwarded no more, they have a socket each,
// and no stranger is heard.
func TestForwardedFlowsOutliveTheRule(t *testing.T) {
	forListeners(t, time.Hour, func(t *testing.T, l *listener) {
		peers := l.fam.peers(t, 5)
		for i, p := range peers {
			l.asked(p, 1+i%2, "x")
		}
		l.removed.Store(true)
		unix.Close(l.fd)
		l.fd = -1
		l.stop()
		if works := <-l.ended; !works {
			t.Error("the socket has failed")
		}
		for round := range 2 {
			for i, p := range peers {
				l.asked(p, 1+i%2, fmt.Sprint(round))
			}
		}
		stranger := newPeer(t, l.fam.host(9))
		stranger.answer(l.at(1), "anybody?")
		l.asked(peers[0], 1, "behind")
		l.nothing()
	})
}

// TestForwardedFlowsExpire: with the last one the engine lets go of the socket, which still has
// what comes next.
func TestForwardedFlowsExpire(t *testing.T) {
	forListeners(t, 100*time.Millisecond, func(t *testing.T, l *listener) {
		p := newPeer(t, l.fam.host(5))
		l.asked(p, 1, "x")
		if works := <-l.ended; !works {
			t.Error("the socket has failed")
		}
		if n := l.Flows(); n != 0 {
			t.Errorf("%d flows", n)
		}
		p.answer(l.at(1), "meanwhile")
		l.serve()
		l.expect(p.at, "meanwhile")
		l.asked(p, 1, "again")
		<-l.ended
	})
}

// TestForwardedElsewhere: datagrams that lead elsewhere, one by one also if they come as a row, and
// those that do not beside them.
func TestForwardedElsewhere(t *testing.T) {
	forListeners(t, time.Hour, func(t *testing.T, l *listener) {
		ours, other := newPeer(t, l.fam.host(5)), newPeer(t, l.fam.host(5))
		l.mu.Lock()
		l.leads[other.at.Port()] = true
		l.mu.Unlock()
		l.asked(ours, 1, "a")
		raw, _ := other.SyscallConn()
		raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, 2) })
		other.answer(l.at(1), "bbccd")
		l.asked(ours, 1, "e")
		until(t, "all of it", func() bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			return len(l.elsewhere) == 3 && l.drained > 0
		})
		want := []string{" bb", " cc", " d"}
		for i, got := range l.elsewhere {
			if got != other.at.String()+want[i] {
				t.Errorf("%q, want %q", got, other.at.String()+want[i])
			}
		}
	})
}
