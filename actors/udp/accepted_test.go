package udp

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/tapio/frame"
)

// accepted is a flow that a peer on the host's side has begun.
type accepted struct {
	*bed
	peer *net.UDPConn
	fd   int
	to   netip.AddrPort // where fd is bound
}

// newAccepted makes a socket that is connected to a peer's, not served yet. dual has it be one of
// IPv6 whatever the address.
func newAccepted(t testing.TB, fam family, dual bool, o options) *accepted {
	t.Helper()
	p := newPeer(t, fam)
	o.doNotServe = true
	a := &accepted{bed: newBed(t, fam, portOf(p), o), peer: p}
	domain := unix.AF_INET
	if fam.loopback.Is6() || dual {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	a.fd = fd
	if err := unix.Bind(fd, sockaddr(domain, netip.AddrPortFrom(fam.loopback, 0))); err != nil {
		t.Fatal(err)
	}
	switch name, _ := unix.Getsockname(fd); name := name.(type) {
	case *unix.SockaddrInet4:
		a.to = netip.AddrPortFrom(fam.loopback, uint16(name.Port))
	case *unix.SockaddrInet6:
		a.to = netip.AddrPortFrom(fam.loopback, uint16(name.Port))
	}
	return a
}

func sockaddr(domain int, a netip.AddrPort) unix.Sockaddr {
	if domain == unix.AF_INET {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// serve connects the socket and lets the actor run on a goroutine of its own.
func (a *accepted) serve(first ...[]byte) {
	a.t.Helper()
	host := netip.AddrPortFrom(a.fam.loopback, portOf(a.peer))
	domain, err := unix.GetsockoptInt(a.fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		a.t.Fatal(err)
	}
	if err := unix.Connect(a.fd, sockaddr(domain, host)); err != nil {
		a.t.Fatal(err)
	}
	go func() {
		defer close(a.done)
		ServeAccepted(a.env, a.port, a.fd, host, first)
	}()
	a.t.Cleanup(func() {
		a.port.Stop()
		<-a.done
	})
}

// next checks the next datagram to the guest.
func (a *accepted) next(want []byte) {
	a.t.Helper()
	got := a.receive()
	if len(got) != 1 || !bytes.Equal(got[0], want) {
		a.t.Fatalf("guest gets %d datagrams, the first of %d bytes; want one of %d", len(got), len(got[0]), len(want))
	}
}

// forSockets runs f for both IP versions, and for IPv4 on a socket of IPv6.
func forSockets(t *testing.T, f func(t *testing.T, fam family, dual bool)) {
	forFamilies(t, func(t *testing.T, fam family) { f(t, fam, false) })
	t.Run("IPv4 on IPv6", func(t *testing.T) { f(t, families[0], true) })
}

// TestFirstDatagramsComeFirst: before those in the socket, of which strangers' are dropped.
func TestFirstDatagramsComeFirst(t *testing.T) {
	forSockets(t, func(t *testing.T, fam family, dual bool) {
		a := newAccepted(t, fam, dual, options{})
		first := datagrams([]int{5, 0, 1400, 1400, 1400, 1, fam.maxData()})
		stranger := newPeer(t, fam)
		stranger.WriteToUDPAddrPort([]byte("stranger"), a.to)
		a.peer.WriteToUDPAddrPort([]byte("early"), a.to)
		stranger.WriteToUDPAddrPort([]byte("stranger"), a.to)
		a.serve(first...)
		for _, d := range first {
			a.next(d)
		}
		a.next([]byte("early"))
		for _, s := range []string{"a", "", "bcd"} {
			a.send([]byte(s))
			expect(t, a.peer, [][]byte{[]byte(s)})
			a.peer.WriteToUDPAddrPort([]byte(s+s), a.to)
			a.next([]byte(s + s))
		}
	})
}

// TestFirstDatagramTooLong: it can be no datagram, and what follows is not lost.
func TestFirstDatagramTooLong(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		a := newAccepted(t, fam, false, options{})
		a.serve(make([]byte, 65528), make([]byte, 1<<17), []byte("x"))
		a.next([]byte("x"))
	})
}

func TestAcceptedRowsStayRows(t *testing.T) {
	forSockets(t, func(t *testing.T, fam family, dual bool) {
		a := newAccepted(t, fam, dual, options{})
		a.serve([]byte("x"))
		a.next([]byte("x"))
		// With UDP_GRO on, which is so once the flow has answered.
		a.send([]byte("y"))
		expect(t, a.peer, [][]byte{[]byte("y")})
		row := pattern(10*1000+7, 1)
		sendRow(t, a.peer, a.to, row, 1000)
		all, _ := a.collect(11)
		if got := bytes.Join(all, nil); !bytes.Equal(got, row) || len(all[10]) != 7 {
			t.Errorf("%d datagrams, %d bytes", len(all), len(got))
		}
	})
}

// TestAcceptedErrorReachesGuest: the peer has closed its port before the guest answers.
func TestAcceptedErrorReachesGuest(t *testing.T) {
	forSockets(t, func(t *testing.T, fam family, dual bool) {
		a := newAccepted(t, fam, dual, options{})
		a.serve([]byte("x"))
		a.next([]byte("x"))
		a.peer.Close()
		a.send([]byte("answer"))
		f := a.frame()
		icmp, want := f[frame.L3Off+frame.IPv4Len:], [2]byte{3, 3} // port unreachable
		if fam.guest.Is6() {
			icmp, want = f[frame.L3Off+frame.IPv6Len:], [2]byte{1, 4}
		}
		if [2]byte(icmp[:2]) != want {
			t.Errorf("guest gets %x", f)
		}
		if !bytes.Contains(icmp, []byte("answer")) {
			t.Error("the datagram is not quoted")
		}
	})
}

// TestAcceptedExpiry: a stream is what the guest has answered.
func TestAcceptedExpiry(t *testing.T) {
	const short, long = 30 * time.Millisecond, time.Hour
	for _, tt := range []struct {
		timeout, stream time.Duration
		sends, answers  int
	}{
		{short, long, 3, 0},
		{short, long, 1, 1},
		{long, short, 2, 1},
		{long, short, 1, 2},
	} {
		t.Run(fmt.Sprintf("%d questions, %d answers", tt.sends, tt.answers), func(t *testing.T) {
			a := newAccepted(t, families[0], false, options{timeout: tt.timeout, stream: tt.stream})
			a.serve(datagrams(repeat(10, tt.sends))...)
			for range tt.sends {
				a.receive()
			}
			for range tt.answers {
				a.send([]byte("y"))
				expect(t, a.peer, [][]byte{[]byte("y")})
			}
			select {
			case <-a.done:
			case <-time.After(patience):
				t.Error("flow does not end")
			}
		})
	}
}

// TestAcceptedTTL: what the guest answers with is copied.
func TestAcceptedTTL(t *testing.T) {
	forSockets(t, func(t *testing.T, fam family, dual bool) {
		a := newAccepted(t, fam, dual, options{})
		raw, err := a.peer.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) {
			unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_RECVTTL, 1)
			unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVHOPLIMIT, 1)
		})
		a.serve([]byte("x"))
		a.next([]byte("x"))
		for _, ttl := range []uint8{64, 9, 255} {
			a.ttl = ttl
			a.send([]byte("x"))
			oob := make([]byte, 256)
			_, n, _, _, err := a.peer.ReadMsgUDPAddrPort(make([]byte, 1), oob)
			if err != nil {
				t.Fatal(err)
			}
			msgs, err := unix.ParseSocketControlMessage(oob[:n])
			if err != nil || len(msgs) != 1 {
				t.Fatalf("%v, %v", msgs, err)
			}
			if got := *(*int32)(ptr(msgs[0].Data)); got != int32(ttl) {
				t.Errorf("TTL %d, want %d", got, ttl)
			}
		}
	})
}
