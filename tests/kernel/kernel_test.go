// Package kernel tests what Linux does where its documentation leaves it open and the
// program relies on it. A failure here explains a failure elsewhere: it says which kernel
// behaves differently, not that the program is wrong.
package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	inside, status, err := bed.Isolate()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if !inside {
		return status
	}
	return m.Run()
}

// loopbacks names the addresses that socket tests use.
var loopbacks = map[string]string{"IPv4": "127.0.0.1:0", "IPv6": "[::1]:0"}

// namespace makes a network namespace whose loopback is up.
func namespace(t *testing.T) *bed.NS {
	t.Helper()
	n, err := bed.NewNS("test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// pair returns both ends of a TCP connection, and a descriptor of the second end, which is
// non-blocking and belongs to it.
func pair(t *testing.T, addr string) (*net.TCPConn, *net.TCPConn, int) {
	t.Helper()
	n := namespace(t)
	l, err := n.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := n.Dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return a.(*net.TCPConn), b.(*net.TCPConn), fd(t, b.(*net.TCPConn))
}

// fd is the descriptor of c, valid as long as c is.
func fd(t *testing.T, c syscall.Conn) int {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var fd int
	if err := raw.Control(func(f uintptr) { fd = int(f) }); err != nil {
		t.Fatal(err)
	}
	return fd
}

// ready reports whether fd becomes readable within d.
func ready(t *testing.T, fd int, d time.Duration) bool {
	t.Helper()
	for end := time.Now().Add(d); ; {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(time.Until(end).Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		return n > 0
	}
}

// filled waits until fd has n bytes to read.
func filled(t *testing.T, fd, n int) {
	t.Helper()
	err := bed.Wait(t.Context(), "data", func() (bool, error) {
		queued, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
		return queued >= n, err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Since Linux 6.9 (IPv4) and 6.11 (IPv6) a peek can begin beyond what was peeked before.
func TestPeekOffset(t *testing.T) {
	for name, addr := range loopbacks {
		t.Run(name, func(t *testing.T) {
			a, _, fd := pair(t, addr)
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0); err != nil {
				t.Skipf("this kernel cannot: %v", err)
			}
			if _, err := a.Write([]byte("0123456789")); err != nil {
				t.Fatal(err)
			}
			filled(t, fd, 10)
			b := make([]byte, 4)
			peek := func(want string) {
				t.Helper()
				n, _, err := unix.Recvfrom(fd, b, unix.MSG_PEEK)
				if err != nil || string(b[:n]) != want {
					t.Errorf("peek = %q, %v; want %q", b[:n], err, want)
				}
			}
			peek("0123")
			peek("4567")
			// What is taken away moves the offset back by as much.
			if n, _, err := unix.Recvfrom(fd, b[:2], 0); err != nil || n != 2 {
				t.Fatalf("read %d, %v", n, err)
			}
			peek("89")
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 1); err != nil {
				t.Fatal(err)
			}
			peek("3456")
			peek("789")
			if _, _, err := unix.Recvfrom(fd, b, unix.MSG_PEEK); err != unix.EAGAIN {
				t.Errorf("peek beyond the end: %v, want EAGAIN", err)
			}
		})
	}
}

// A socket with nothing beyond the peek offset counts as readable all the same: poll looks
// at the queue, not at the offset.
func TestPollIgnoresPeekOffset(t *testing.T) {
	a, _, fd := pair(t, loopbacks["IPv4"])
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0); err != nil {
		t.Skipf("this kernel cannot: %v", err)
	}
	if _, err := a.Write([]byte("0123")); err != nil {
		t.Fatal(err)
	}
	filled(t, fd, 4)
	if n, _, err := unix.Recvfrom(fd, make([]byte, 8), unix.MSG_PEEK); err != nil || n != 4 {
		t.Fatalf("peek = %d, %v", n, err)
	}
	if !ready(t, fd, 0) {
		t.Error("not readable")
	}
}

// MSG_TRUNC on a stream discards without copying.
func TestTruncDiscards(t *testing.T) {
	for name, addr := range loopbacks {
		t.Run(name, func(t *testing.T) {
			a, b, fd := pair(t, addr)
			if _, err := a.Write([]byte("0123456789")); err != nil {
				t.Fatal(err)
			}
			filled(t, fd, 10)
			buf := bytes.Repeat([]byte{'x'}, 7)
			n, _, err := unix.Recvfrom(fd, buf, unix.MSG_TRUNC)
			if err != nil || n != 7 || string(buf) != "xxxxxxx" {
				t.Errorf("recv = %d, %q, %v; want 7 and an untouched buffer", n, buf, err)
			}
			if n, err := b.Read(buf); err != nil || string(buf[:n]) != "789" {
				t.Errorf("rest %q, %v", buf[:n], err)
			}
		})
	}
}

// SO_RCVLOWAT holds a wake-up back until there is enough, or the end.
func TestLowWaterMark(t *testing.T) {
	a, _, fd := pair(t, loopbacks["IPv4"])
	set := func(n int) {
		t.Helper()
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT, n); err != nil {
			t.Fatal(err)
		}
	}
	write := func(n int) {
		t.Helper()
		if _, err := a.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
	}
	set(100)
	write(99)
	filled(t, fd, 99)
	if ready(t, fd, 0) {
		t.Error("readable with less than the mark")
	}
	write(1)
	if !ready(t, fd, 5*time.Second) {
		t.Error("not readable with as much as the mark")
	}
	set(200)
	if ready(t, fd, 0) {
		t.Error("readable after the mark was raised")
	}
	set(50)
	if !ready(t, fd, 5*time.Second) {
		t.Error("not readable after the mark was lowered")
	}
	set(1000)
	if err := a.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if !ready(t, fd, 5*time.Second) {
		t.Error("not readable at the end of the stream")
	}
}

// SO_LINGER with a time of 0 makes close a reset.
func TestLingerZeroResets(t *testing.T) {
	a, b, _ := pair(t, loopbacks["IPv4"])
	if err := a.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	a.Close()
	if _, err := b.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("read: %v, want ECONNRESET", err)
	}
}

// UDP_SEGMENT (Linux 4.18) makes one call many datagrams, the last of which may be short.
func TestUDPSegment(t *testing.T) {
	for name, addr := range loopbacks {
		t.Run(name, func(t *testing.T) {
			n := namespace(t)
			pc, err := n.ListenPacket("udp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer pc.Close()
			c, err := n.Dial(t.Context(), "udp", pc.LocalAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := unix.SetsockoptInt(fd(t, c.(*net.UDPConn)), unix.IPPROTO_UDP, unix.UDP_SEGMENT, 100); err != nil {
				t.Skipf("this kernel cannot: %v", err)
			}
			if _, err := c.Write(make([]byte, 250)); err != nil {
				t.Fatal(err)
			}
			var sizes []int
			pc.SetReadDeadline(time.Now().Add(5 * time.Second))
			for range 3 {
				n, _, err := pc.ReadFrom(make([]byte, 500))
				if err != nil {
					t.Fatal(err)
				}
				sizes = append(sizes, n)
			}
			if !slices.Equal(sizes, []int{100, 100, 50}) {
				t.Errorf("datagrams of %v bytes, want 100, 100 and 50", sizes)
			}
		})
	}
}

// A connected UDP socket hears of a closed port at its next call.
func TestUDPRefused(t *testing.T) {
	n := namespace(t)
	c, err := n.Dial(t.Context(), "udp", "127.0.0.1:9")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("read: %v, want ECONNREFUSED", err)
	}
}

// A UDP socket whose association is dissolved keeps its port, but one of IPv6 goes on hearing its
// old peer's address only: it takes another socket to hear others.
func TestUDPDissolved(t *testing.T) {
	n := namespace(t)
	if err := n.IP("address add fd00::1/128 dev lo nodad"); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, first, other string }{{"IPv4", "127.0.0.1", "127.0.0.2"}, {"IPv6", "fd00::1", "::1"}} {
		t.Run(tc.name, func(t *testing.T) {
			const port = 7000 // one that was asked for: others are lost
			open := func(addr, port string) *net.UDPConn {
				c, err := n.ListenPacket("udp", net.JoinHostPort(addr, port))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				return c.(*net.UDPConn)
			}
			first, other := open(tc.first, "0"), open(tc.other, "0")
			c := open(map[string]string{"IPv4": "0.0.0.0", "IPv6": "::"}[tc.name], fmt.Sprint(port))
			raw, err := c.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			raw.Control(func(fd uintptr) {
				to := first.LocalAddr().(*net.UDPAddr).AddrPort()
				var sa unix.Sockaddr = &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())}
				if to.Addr().Is4() {
					sa = &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
				}
				if err := unix.Connect(int(fd), sa); err != nil {
					t.Error(err)
				}
				none := unix.RawSockaddrInet6{Family: unix.AF_UNSPEC}
				if _, _, e := unix.RawSyscall(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(&none)), unsafe.Sizeof(none)); e != 0 {
					t.Error(e)
				}
				var now int
				switch a, _ := unix.Getsockname(int(fd)); a := a.(type) {
				case *unix.SockaddrInet4:
					now = a.Port
				case *unix.SockaddrInet6:
					now = a.Port
				}
				if now != port {
					t.Errorf("port %d, before %d", now, port)
				}
			})
			send := func(from *net.UDPConn, to string) {
				if _, err := from.WriteTo([]byte(to), &net.UDPAddr{IP: net.ParseIP(to), Port: port}); err != nil {
					t.Error(err)
				}
			}
			send(other, tc.other)
			send(first, tc.first)
			want := map[string]string{"IPv4": tc.other, "IPv6": tc.first}[tc.name]
			b := make([]byte, 20)
			c.SetReadDeadline(time.Now().Add(5 * time.Second))
			got, _, err := c.ReadFrom(b)
			if err == nil && tc.name == "IPv6" && string(b[:got]) == tc.other {
				t.Skip("this kernel lets it hear others")
			}
			if err != nil || string(b[:got]) != want {
				t.Errorf("got what was sent to %q, %v; want to %s", b[:got], err, want)
			}
		})
	}
}

// A tap takes the offloads: checksum and TCP segmentation on every kernel that we support,
// UDP segmentation since Linux 6.2.
func TestTapOffloads(t *testing.T) {
	n := namespace(t)
	for _, tc := range []struct {
		name     string
		flags    int
		optional bool
	}{
		{"none", 0, false},
		{"checksum", unix.TUN_F_CSUM, false},
		{"TSO", unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6, false},
		{"TSO with ECN", unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN, true},
		{"USO", unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_USO4 | unix.TUN_F_USO6, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := n.Do(func() error {
				fd, err := openTap()
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tc.flags)
			})
			if err == unix.EINVAL && tc.optional {
				t.Skip("this kernel refuses it")
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
}

func openTap() (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	ifr, err := unix.NewIfreq("tap0")
	if err == nil {
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
