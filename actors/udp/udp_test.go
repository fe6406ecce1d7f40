package udp

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
	"fusilli/tapio"
	"fusilli/tapio/frame"
)

// maxData is the longest payload that fits frame.MaxFrame.
func (f family) maxData() int {
	if f.guest.Is4() {
		return 65507
	}
	return min(65527, frame.MaxFrame-frame.L3Off-frame.IPv6Len-frame.UDPLen)
}

func TestEcho(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		p := newPeer(t, fam)
		b := newBed(t, fam, portOf(p), options{})
		buf := make([]byte, 65536)
		for i, n := range []int{0, 1, 2, 17, 18, 19, 63, 64, 1400, 1472, 1473, 9000, 0, 32768, 65000, 5, fam.maxData(), 1} {
			data := pattern(n, uint32(i))
			b.send(data)
			got, from, err := p.ReadFromUDPAddrPort(buf)
			if err != nil {
				t.Fatalf("%d bytes: %v", n, err)
			}
			if !bytes.Equal(buf[:got], data) {
				t.Fatalf("%d bytes arrive as %d others", n, got)
			}
			if _, err := p.WriteToUDPAddrPort(data, from); err != nil {
				t.Fatal(err)
			}
			if back := b.receive(); len(back) != 1 || !bytes.Equal(back[0], data) {
				t.Fatalf("%d bytes come back as %d datagrams", n, len(back))
			}
		}
	})
}

func TestGuestPortIsKept(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		free := newPeer(t, fam)
		port := portOf(free)
		free.Close()
		p := newPeer(t, fam)
		b := newBed(t, fam, portOf(p), options{guestPort: port})
		b.send([]byte("x"))
		_, from, err := p.ReadFromUDPAddrPort(make([]byte, 1))
		if err != nil || from.Port() != port {
			t.Errorf("came from %v, %v, want port %d", from, err, port)
		}
	})
}

func TestGuestPortInUseOnHost(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		taken, p := newPeer(t, fam), newPeer(t, fam)
		b := newBed(t, fam, portOf(p), options{guestPort: portOf(taken)})
		b.send([]byte("x"))
		_, from, err := p.ReadFromUDPAddrPort(make([]byte, 1))
		if err != nil || from.Port() == portOf(taken) {
			t.Fatalf("came from %v, %v", from, err)
		}
		p.WriteToUDPAddrPort([]byte("y"), from)
		if got := b.receive(); string(got[0]) != "y" {
			t.Errorf("got %q", got)
		}
	})
}

// TestPortIsTheSameForAllPeers: what a third party (STUN, RFC 8489) says about the guest's address
// holds for its other peers, even if the host does not give us the guest's port.
func TestPortIsTheSameForAllPeers(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		taken := newPeer(t, fam)
		free := newPeer(t, fam)
		port := portOf(free)
		free.Close()
		for _, tt := range []struct {
			name string
			port uint16
			same bool
		}{{"free", port, true}, {"taken", portOf(taken), false}} {
			t.Run(tt.name, func(t *testing.T) {
				dialer := &sock.Host{Ports: new(sock.Ports)}
				seen := map[uint16]bool{}
				for range 5 {
					p := newPeer(t, fam)
					b := newBed(t, fam, portOf(p), options{guestPort: tt.port, dialer: dialer})
					b.send([]byte("x"))
					from := expect(t, p, [][]byte{[]byte("x")})
					seen[from.Port()] = true
					p.WriteToUDPAddrPort([]byte("y"), from)
					if got := b.receive(); string(got[0]) != "y" {
						t.Errorf("got %q", got)
					}
				}
				if len(seen) != 1 || seen[tt.port] != tt.same {
					t.Errorf("ports %v of %d", seen, tt.port)
				}
			})
		}
	})
}

// expect reads datagrams off p and compares.
func expect(t testing.TB, p *net.UDPConn, want [][]byte) netip.AddrPort {
	t.Helper()
	buf := make([]byte, 65536)
	var from netip.AddrPort
	for i, w := range want {
		n, a, err := p.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Fatalf("datagram %d of %d: %v", i, len(want), err)
		}
		if !bytes.Equal(buf[:n], w) {
			t.Fatalf("datagram %d: got %d bytes, want %d", i, n, len(w))
		}
		from = a
	}
	return from
}

// noRows makes sockets on which the kernel refuses UDP_SEGMENT (udp(7)): SO_NO_CHECK does that.
type noRows struct{ sock.Host }

func (d *noRows) UDP(port uint16, addr netip.AddrPort) (int, sock.Held, error) {
	fd, held, err := d.Host.UDP(port, addr)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1)
	}
	return fd, held, err
}

var batches = []struct {
	name  string
	sizes []int
}{
	{"one size", []int{100, 100, 100, 100, 100}},
	{"last shorter", []int{1400, 1400, 1400, 700}},
	{"shorter in between", []int{1400, 700, 1400, 700, 700, 1400}},
	{"empty ones", []int{0, 0, 5, 0, 5, 5, 0}},
	{"growing", []int{1, 2, 3, 4, 5, 6, 7, 8}},
	{"many small", repeat(1, 200)},
	{"many different", mixed(150)},
	{"large", []int{30000, 30000, 30000, 30000, 65000, 20000}},
}

func repeat(n, times int) []int {
	s := make([]int, times)
	for i := range s {
		s[i] = n
	}
	return s
}

func mixed(n int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = i * i * 7 % 1473
	}
	return s
}

func datagrams(sizes []int) [][]byte {
	var all [][]byte
	for i, n := range sizes {
		all = append(all, pattern(n, uint32(i)))
	}
	return all
}

func TestBatchFromGuest(t *testing.T) {
	for _, d := range []struct {
		name   string
		dialer Dialer
	}{{"rows", &sock.Host{}}, {"no rows", &noRows{}}} {
		for _, tt := range batches {
			t.Run(d.name+"/"+tt.name, func(t *testing.T) {
				forFamilies(t, func(t *testing.T, fam family) {
					if d.name == "no rows" && !fam.guest.Is4() {
						t.Skip("the kernel drops datagrams without checksum")
					}
					p := newPeer(t, fam)
					b := newBed(t, fam, portOf(p), options{dialer: d.dialer})
					for range 2 {
						all := datagrams(tt.sizes)
						b.send(all...)
						expect(t, p, all)
					}
				})
			})
		}
	}
}

func TestRowFromGuest(t *testing.T) {
	for _, tt := range []struct {
		name       string
		bytes, gso int
		dialer     Dialer
	}{
		{"even", 14000, 1400, nil},
		{"last shorter", 14001, 1400, nil},
		{"as long as it gets", maxRow, 1200, nil},
		{"more segments than the kernel sends at once", 128 * 100, 100, nil},
		{"no row at all", 100, 100, nil},
		{"shorter than a segment", 100, 200, nil},
		{"one byte each", frame.MaxUDPSegments, 1, nil},
		{"refused by the kernel", 14001, 1400, &noRows{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			forFamilies(t, func(t *testing.T, fam family) {
				if tt.dialer != nil && !fam.guest.Is4() {
					t.Skip("the kernel drops datagrams without checksum")
				}
				p := newPeer(t, fam)
				b := newBed(t, fam, portOf(p), options{dialer: tt.dialer})
				data := pattern(tt.bytes, 1)
				var want [][]byte
				for rest := data; len(rest) > 0; {
					n := min(tt.gso, len(rest))
					want = append(want, rest[:n])
					rest = rest[n:]
				}
				b.offer(b.frameOf(data, tt.gso), b.frameOf(data, tt.gso), b.frameOf([]byte("end"), 0))
				want = append(want, want...)
				expect(t, p, append(want, []byte("end")))
			})
		})
	}
}

// collect reads frames until there are n datagrams.
func (b *bed) collect(n int) (all [][]byte, frames int) {
	b.t.Helper()
	for len(all) < n {
		all = append(all, b.receive()...)
		frames++
	}
	return all, frames
}

func TestBatchToGuest(t *testing.T) {
	for _, tt := range batches {
		t.Run(tt.name, func(t *testing.T) {
			forFamilies(t, func(t *testing.T, fam family) {
				p := newPeer(t, fam)
				b := newBed(t, fam, portOf(p), options{})
				b.send([]byte("hello"))
				from := expect(t, p, [][]byte{[]byte("hello")})
				for range 3 {
					all := datagrams(tt.sizes)
					for i, d := range all {
						if _, err := p.WriteToUDPAddrPort(d, from); err != nil {
							t.Fatal(err)
						}
						if i%16 == 15 { // no more than the socket's buffer holds
							compare(t, b, all[i-15:i+1])
						}
					}
					compare(t, b, all[len(all)&^15:])
				}
			})
		})
	}
}

func compare(t *testing.T, b *bed, want [][]byte) {
	t.Helper()
	got, _ := b.collect(len(want))
	if len(got) != len(want) {
		t.Fatalf("%d datagrams, want %d", len(got), len(want))
	}
	for i := range want {
		if !bytes.Equal(got[i], want[i]) {
			t.Fatalf("datagram %d: %d bytes, want %d", i, len(got[i]), len(want[i]))
		}
	}
}

// openConn returns a flow that nobody runs, connected to p.
func openConn(t testing.TB, fam family, p *net.UDPConn) (*bed, *conn) {
	t.Helper()
	b := newBed(t, fam, portOf(p), options{doNotServe: true})
	c := newConn(b.env, b.port, netip.AddrPortFrom(fam.loopback, portOf(p)))
	c.dialer = &sock.Host{}
	if !c.open() {
		t.Fatal("flow does not open")
	}
	t.Cleanup(b.port.Close)
	b.send([]byte("hello"))
	c.fromGuest()
	return b, c
}

func TestWaitingDatagramsMakeOneRow(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		p := newPeer(t, fam)
		b, c := openConn(t, fam, p)
		from := expect(t, p, [][]byte{[]byte("hello")})
		c.fromHost() // nothing there
		for round := range 3 {
			all := datagrams(append(repeat(1400, 20), 300))
			for _, d := range all {
				p.WriteToUDPAddrPort(d, from)
			}
			c.fromHost()
			got, frames := b.collect(len(all))
			for i := range all {
				if !bytes.Equal(got[i], all[i]) {
					t.Fatalf("round %d: datagram %d differs", round, i)
				}
			}
			if frames != 1 {
				t.Errorf("round %d: %d frames, want 1", round, frames)
			}
		}
	})
}

// sendRow sends data as datagrams of size bytes in one call.
func sendRow(t *testing.T, p *net.UDPConn, to netip.AddrPort, data []byte, size int) {
	t.Helper()
	oob := make([]byte, unix.CmsgSpace(2))
	h := (*unix.Cmsghdr)(ptr(oob))
	h.Level, h.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	*(*uint16)(ptr(oob[unix.CmsgLen(0):])) = uint16(size)
	if _, _, err := p.WriteMsgUDPAddrPort(data, oob, to); err != nil {
		t.Fatal(err)
	}
}

func TestRowsFromHostStayRows(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		p := newPeer(t, fam)
		b, c := openConn(t, fam, p)
		from := expect(t, p, [][]byte{[]byte("hello")})
		for _, tt := range []struct{ n, size int }{{14000, 1400}, {14001, 1400}, {64 * 100, 100}, {64 * 1000, 1000}, {2, 1}, {65400, 1200}} {
			data := pattern(tt.n, 3)
			sendRow(t, p, from, data, tt.size)
			p.WriteToUDPAddrPort([]byte("end"), from)
			c.fromHost()
			got, frames := b.collect((tt.n+tt.size-1)/tt.size + 1)
			if !bytes.Equal(bytes.Join(got, nil), append(data, "end"...)) {
				t.Fatalf("%+v: data differ", tt)
			}
			if len(got[0]) != tt.size || frames != 2 {
				t.Errorf("%+v: %d datagrams of %d bytes in %d frames", tt, len(got), len(got[0]), frames)
			}
		}
	})
}

func TestGuestWithoutRows(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		p := newPeer(t, fam)
		b := newBed(t, fam, portOf(p), options{without: tapio.USO | tapio.Csum})
		b.send([]byte("hello"))
		from := expect(t, p, [][]byte{[]byte("hello")})
		data := pattern(14001, 1)
		sendRow(t, p, from, data, 1400)
		got, frames := b.collect(11)
		if !bytes.Equal(bytes.Join(got, nil), data) || frames != 11 {
			t.Errorf("%d frames", frames)
		}
	})
}

func TestUnreachablePortReachesGuest(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		p := newPeer(t, fam)
		port := portOf(p)
		p.Close()
		b := newBed(t, fam, port, options{})
		data := pattern(2000, 1)
		for range 3 {
			b.send(data)
			f := b.frame()
			pkt := gopacket.NewPacket(f[frame.VnetLen:], layers.LayerTypeEthernet, gopacket.Default)
			src, dst := pkt.NetworkLayer().NetworkFlow().Endpoints()
			if !bytes.Equal(src.Raw(), fam.remote.AsSlice()) || !bytes.Equal(dst.Raw(), fam.guest.AsSlice()) {
				t.Fatalf("error from %v to %v", src, dst)
			}
			var quote, sum []byte
			var first gopacket.Decoder = layers.LayerTypeIPv4
			n := 8
			if l, ok := pkt.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok {
				if l.TypeCode != layers.CreateICMPv4TypeCode(3, 3) {
					t.Fatalf("type %v", l.TypeCode)
				}
				quote, sum = l.Payload, append(bytes.Clone(l.Contents), l.Payload...)
				if frame.Checksum(sum, 0) != 0 {
					t.Error("checksum is wrong")
				}
			} else if l, ok := pkt.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); ok {
				if l.TypeCode != layers.CreateICMPv6TypeCode(1, 4) {
					t.Fatalf("type %v", l.TypeCode)
				}
				quote, sum = l.Payload[4:], append(bytes.Clone(l.Contents), l.Payload...)
				if frame.Checksum(sum, frame.PseudoSum(&b.key.Remote, &b.key.Guest, frame.ProtoICMPv6, len(sum))) != 0 {
					t.Error("checksum is wrong")
				}
				// The kernel that sent it quotes up to 1232 bytes with headers.
				first, n = layers.LayerTypeIPv6, 1232-frame.IPv6Len-frame.UDPLen
			} else {
				t.Fatalf("no ICMP: %v", pkt)
			}
			q := gopacket.NewPacket(quote, first, gopacket.Default)
			udp, ok := q.TransportLayer().(*layers.UDP)
			if !ok || uint16(udp.SrcPort) != b.key.GuestPort || uint16(udp.DstPort) != b.key.RemotePort {
				t.Fatalf("quoted: %v", q)
			}
			if !bytes.HasPrefix(udp.Payload, data[:n]) {
				t.Errorf("quoted payload differs")
			}
		}
	})
}

// A pending error makes one call fail; the datagram it fails with is not lost.
func TestDatagramAfterErrorIsNotLost(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		p := newPeer(t, fam)
		port := portOf(p)
		p.Close()
		b := newBed(t, fam, port, options{doNotServe: true})
		c := newConn(b.env, b.port, netip.AddrPortFrom(fam.loopback, port))
		c.fresh, c.dialer = false, &sock.Host{}
		if !c.open() {
			t.Fatal("flow does not open")
		}
		defer b.port.Close()
		b.send([]byte("lost"))
		c.fromGuest() // refused at once, on loopback
		p, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(c.host))
		if err != nil {
			t.Skip("somebody has taken the port")
		}
		defer p.Close()
		p.SetDeadline(time.Now().Add(patience))
		all := datagrams([]int{10, 10, 20})
		b.send(all...)
		c.step()
		expect(t, p, all)
		if b.frame()[frame.VnetLen+12] == 0 {
			t.Error("no error for the first one")
		}
		if c.failed || c.sendError {
			t.Error("flow has failed")
		}
	})
}

func TestTTLIsCopied(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		p := newPeer(t, fam)
		raw, err := p.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) {
			unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_RECVTTL, 1)
			unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVHOPLIMIT, 1)
		})
		b := newBed(t, fam, portOf(p), options{})
		for _, ttl := range []uint8{64, 3, 3, 255, 64, 1} {
			b.ttl = ttl
			b.send([]byte("x"))
			oob := make([]byte, 256)
			_, n, _, _, err := p.ReadMsgUDPAddrPort(make([]byte, 1), oob)
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

// TestServiceClassIsCarried: a call's packets keep their priority, and congestion marks arrive.
func TestServiceClassIsCarried(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		p := newPeer(t, fam)
		level, recv, set, hops := unix.SOL_IP, unix.IP_RECVTOS, unix.IP_TOS, unix.IP_TTL
		if fam.guest.Is6() {
			level, recv, set, hops = unix.SOL_IPV6, unix.IPV6_RECVTCLASS, unix.IPV6_TCLASS, unix.IPV6_UNICAST_HOPS
		}
		raw, err := p.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), level, recv, 1) })
		b := newBed(t, fam, portOf(p), options{})
		for _, tt := range []struct{ tos, back, ttl uint8 }{{0, 0, 64}, {0xb8, 0, 64}, {0xba, 0xbb, 3}, {1, 1, 3}, {0, 0x48, 200}, {0, 0, 64}} {
			b.tos = tt.tos
			b.send([]byte("x"), []byte("y"))
			var from netip.AddrPort
			for range 2 {
				oob := make([]byte, 256)
				var n int
				if _, n, _, from, err = p.ReadMsgUDPAddrPort(make([]byte, 1), oob); err != nil {
					t.Fatal(err)
				}
				msgs, err := unix.ParseSocketControlMessage(oob[:n])
				if err != nil || len(msgs) != 1 || msgs[0].Data[0] != tt.tos {
					t.Fatalf("arrives with %v, %v, want %#x", msgs, err, tt.tos)
				}
			}
			raw.Control(func(fd uintptr) {
				unix.SetsockoptInt(int(fd), level, set, int(tt.back))
				unix.SetsockoptInt(int(fd), level, hops, int(tt.ttl))
			})
			p.WriteToUDPAddrPort([]byte("back"), from)
			f := b.frame()
			ip := f[frame.L3Off:]
			tos, ttl := ip[1], ip[8]
			if b.key.V6() {
				tos, ttl = ip[0]<<4|ip[1]>>4, ip[7]
			} else if frame.Fold(frame.Sum(ip[:frame.IPv4Len], 0)) != 0xffff {
				t.Errorf("header % x", ip[:frame.IPv4Len])
			}
			if tos != tt.back || ttl != tt.ttl {
				t.Errorf("guest gets %#x with TTL %d, want %#x with %d", tos, ttl, tt.back, tt.ttl)
			}
		}
	})
}

// TestMarksSplitRows: of datagrams that come together, each keeps its mark.
func TestMarksSplitRows(t *testing.T) {
	fam := families[0]
	p := newPeer(t, fam)
	b, c := openConn(t, fam, p)
	from := expect(t, p, [][]byte{[]byte("hello")})
	raw, err := p.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	want := []uint8{0, 0, 1, 3, 3, 1}
	for _, tos := range want {
		raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TOS, int(tos)) })
		p.WriteToUDPAddrPort(make([]byte, 100), from)
	}
	c.fromHost()
	var got []uint8
	for len(got) < len(want) {
		f := b.frame()
		data, size, err := b.check(f)
		if err != nil {
			t.Fatal(err)
		}
		for n := len(data); n > 0; n -= size {
			got = append(got, f[frame.L3Off+1])
		}
	}
	if !bytes.Equal(got, want) {
		t.Errorf("marks %v, want %v", got, want)
	}
}

func TestExpiry(t *testing.T) {
	const short, long = 30 * time.Millisecond, time.Hour
	for _, tt := range []struct {
		name           string
		timeout        time.Duration
		stream         time.Duration
		sends, answers int
	}{
		{"no answer", short, long, 3, 0},
		{"question and answer", short, long, 1, 1},
		{"stream", long, short, 2, 1},
		{"two answers", long, short, 1, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPeer(t, families[0])
			b := newBed(t, families[0], portOf(p), options{timeout: tt.timeout, stream: tt.stream})
			var from netip.AddrPort
			for range tt.sends {
				b.send([]byte("x"))
				from = expect(t, p, [][]byte{[]byte("x")})
			}
			for range tt.answers {
				p.WriteToUDPAddrPort([]byte("y"), from)
				b.receive()
			}
			select {
			case <-b.done:
			case <-time.After(patience):
				t.Error("flow does not end")
			}
		})
	}
}

// late connects its sockets after a stranger has sent something to them.
type late struct {
	t        *testing.T
	stranger *net.UDPConn
}

func (d *late) ShareUDP(int) (int, error) { return -1, unix.EADDRINUSE }
func (d *late) Contested(int) bool        { return false }

func (d *late) UDP(port uint16, addr netip.AddrPort) (int, sock.Held, error) {
	h := &sock.Host{}
	fd, held, err := h.UDP(port, addr)
	if err != nil {
		return fd, held, err
	}
	// Back to unconnected (connect(2), AF_UNSPEC), but bound.
	any := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	if _, _, e := syscall.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(ptrOf(&any)), unsafeSize); e != 0 {
		d.t.Error(e)
	}
	to := netip.AddrPortFrom(addr.Addr(), port)
	for i := range 6 {
		if _, err := d.stranger.WriteToUDPAddrPort(make([]byte, 100*i), to); err != nil {
			d.t.Error(err)
		}
	}
	return fd, held, unix.Connect(fd, h.Sockaddr(addr))
}

func TestStrangersAreNotHeard(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		free := newPeer(t, fam)
		port := portOf(free)
		free.Close()
		p := newPeer(t, fam)
		b := newBed(t, fam, portOf(p), options{guestPort: port, dialer: &late{t, newPeer(t, fam)}})
		b.send([]byte("x"))
		from := expect(t, p, [][]byte{[]byte("x")})
		p.WriteToUDPAddrPort([]byte("peer"), from)
		if got := b.receive(); string(got[0]) != "peer" {
			t.Errorf("got %d bytes", len(got[0]))
		}
	})
}

type noDialer struct{ Dialer }

func (noDialer) UDP(uint16, netip.AddrPort) (int, sock.Held, error) {
	return -1, sock.Held{}, os.ErrPermission
}

func TestFlowWithoutSocketEnds(t *testing.T) {
	b := newBed(t, families[0], 9, options{dialer: noDialer{}, doNotServe: true})
	b.send([]byte("x"))
	Serve(b.env, b.port, noDialer{}, netip.AddrPortFrom(families[0].loopback, 9))
	if !b.port.Gone() {
		t.Error("port is open")
	}
}

func TestOutOfDescriptorsWarnsOnce(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	c := newConn(&flow.Env{Log: zap.New(core)}, flow.NewPort(flow.Key{}), netip.AddrPort{})
	for _, e := range []unix.Errno{unix.ENETUNREACH, unix.EMFILE, unix.EMFILE, unix.EACCES} {
		c.noSocket(os.NewSyscallError("socket", e))
	}
	if n := logs.Len(); n != 1 {
		t.Errorf("%d warnings, want 1", n)
	}
}

func TestBroadcastIsRefused(t *testing.T) {
	_, _, err := (&sock.Host{}).UDP(40000, netip.MustParseAddrPort("255.255.255.255:9"))
	if !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("err = %v", err)
	}
}

func TestManyFlows(t *testing.T) {
	n := 500
	if testing.Short() {
		n = 50
	}
	p := newPeer(t, families[0])
	for i := range n {
		b := newBed(t, families[0], portOf(p), options{guestPort: uint16(20000 + i)})
		p.SetDeadline(time.Now().Add(patience)) // for each
		want := fmt.Appendf(nil, "flow %d", i)
		b.send(want)
		from := expect(t, p, [][]byte{want})
		p.WriteToUDPAddrPort(want, from)
		if got := b.receive(); !bytes.Equal(got[0], want) {
			t.Fatalf("got %q, want %q", got[0], want)
		}
	}
}

func TestNoAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("pools lose things on purpose under the race detector")
	}
	forFamilies(t, func(t *testing.T, fam family) {
		p := newPeer(t, fam)
		b, c := openConn(t, fam, p)
		from := expect(t, p, [][]byte{[]byte("hello")})
		c.env.Link = nullLink{c.env.Link}
		lone, row := b.frameOf(pattern(64, 1), 0), b.frameOf(pattern(14001, 1), 1400)
		var v frame.Packet
		frame.Parse(row, &v)
		fill := func(f []byte) {
			var pkt frame.Packet
			frame.Parse(f, &pkt)
			slab := b.pool.Get()
			for range 3 {
				copy(slab.Room(), f)
				slab.Append(len(f), &pkt)
				b.port.Offer(slab.Run(0))
			}
			slab.Release()
		}
		data := pattern(1400, 1)
		buf := make([]byte, 65536)
		run := func() {
			fill(lone)
			c.step()
			fill(row)
			c.step()
			for range 10 {
				p.WriteToUDPAddrPort(data, from)
			}
			c.fromHost()
			for range 10 {
				p.ReadFromUDPAddrPort(buf)
			}
		}
		run()
		if n := testing.AllocsPerRun(100, run); n >= 1 {
			t.Errorf("%v allocations", n)
		}
	})
}

// nullLink takes everything.
type nullLink struct{ tapio.Link }

func (nullLink) Write([]byte) error { return nil }

func TestPresent(t *testing.T) {
	hidden, alias := netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("192.0.2.1")
	port := flow.NewPort(flow.Key{Guest: frame.AddrOf(families[0].guest), Remote: frame.AddrOf(families[0].remote)})
	c := newConn(&flow.Env{}, port, netip.MustParseAddrPort("198.51.100.7:53"))
	c.env.Present = func(a netip.Addr) (netip.Addr, bool) {
		if a.IsLoopback() {
			return alias, a == netip.MustParseAddr("127.0.0.1")
		}
		return a, a != hidden
	}
	for _, tt := range []struct {
		name, from, want string
	}{
		{"peer", "198.51.100.7", "192.0.2.9"},
		{"router", "203.0.113.1", "203.0.113.1"},
		{"known by an alias", "127.0.0.1", "192.0.2.1"},
		{"loopback", "127.0.0.2", ""},
		{"the host, not known by an alias", "203.0.113.7", "192.0.2.9"},
		{"the host, by the guest's own address", "10.0.2.15", "192.0.2.9"},
		{"unspecified", "0.0.0.0", ""},
		{"other family", "2001:db8::1", ""},
		{"none", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var from netip.Addr
			if tt.from != "" {
				from = netip.MustParseAddr(tt.from)
			}
			got, ok := c.present(from)
			if ok != (tt.want != "") || ok && frame.NetIP(got).String() != tt.want {
				t.Errorf("present = %v, %v, want %q", frame.NetIP(got), ok, tt.want)
			}
		})
	}
}
