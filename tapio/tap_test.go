package tapio

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fusilli/tapio/frame"
)

// inNetns runs f on a thread in a network namespace of its own, which ends with f and whatever was
// opened there. f must not call t.Fatal.
func inNetns(t testing.TB, f func() error) {
	t.Helper()
	needRoot(t)
	if err := unshared(f); err != nil {
		t.Fatal(err)
	}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a network namespace needs root")
	}
}

func unshared(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends here
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// up gives the interface its addresses, a route and neighbours outside, and brings it up.
func up(name string, mtu int) error {
	h, err := netlink.NewHandle()
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	if err := h.LinkSetHardwareAddr(l, guestMAC[:]); err != nil {
		return err
	}
	if err := h.LinkSetMTU(l, mtu); err != nil {
		return err
	}
	for _, a := range []netip.Addr{guest4, guest6} {
		flags := 0
		if a.Is6() {
			flags = unix.IFA_F_NODAD
		}
		n := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen()-8, a.BitLen())}
		if err := h.AddrAdd(l, &netlink.Addr{IPNet: n, Flags: flags}); err != nil {
			return err
		}
	}
	if err := h.LinkSetUp(l); err != nil {
		return err
	}
	for _, a := range []netip.Addr{remote4, remote6} {
		if err := h.NeighAdd(&netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT,
			IP: a.AsSlice(), HardwareAddr: ourMAC[:]}); err != nil {
			return err
		}
		n := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
		if err := h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: n, Scope: netlink.SCOPE_LINK}); err != nil {
			return err
		}
	}
	// The kernel takes an IPv6 address for its own a moment after the interface is up.
	for {
		r, err := h.RouteGet(guest6.AsSlice())
		if err == nil && len(r) > 0 && r[0].Type == unix.RTN_LOCAL {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
}

// withTap runs f with a tap that is up in a namespace of its own. f runs outside of it; in runs a
// function inside.
func withTap(t testing.TB, o TapOptions, mtu int, f func(tap *Tap, in func(func() error))) {
	t.Helper()
	needRoot(t)
	var tap *Tap
	calls := make(chan func() error)
	results := make(chan error)
	ready := make(chan bool)
	var wg sync.WaitGroup
	wg.Go(func() {
		err := unshared(func() error {
			var err error
			if tap, err = OpenTap("eth0", o); err == nil {
				err = up(tap.Name(), mtu)
			}
			if err != nil {
				return err
			}
			ready <- true
			for c := range calls {
				results <- c()
			}
			return nil
		})
		if err != nil {
			t.Error(err)
			close(ready)
		}
	})
	if !<-ready {
		wg.Wait()
		return
	}
	defer wg.Wait()
	defer close(calls)
	defer tap.Close()
	f(tap, func(c func() error) {
		t.Helper()
		calls <- c
		if err := <-results; err != nil {
			t.Fatal(err)
		}
	})
}

// next reads frames until one of kind comes.
func next(t testing.TB, l Link, b []byte, p *frame.Packet, kind frame.Kind) []byte {
	t.Helper()
	for {
		n, err := l.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		if frame.Parse(b[:n], p) == frame.OK && p.Kind == kind {
			return b[:n]
		}
	}
}

func TestTapFeatures(t *testing.T) {
	inNetns(t, func() error {
		for i, tt := range []struct {
			o       TapOptions
			want    Features // at least
			without Features // at most all but these
			queues  int
		}{
			{TapOptions{}, VnetHeader | Csum | TSO | TSOECN, 0, 1},
			{TapOptions{Without: USO}, VnetHeader | Csum | TSO | TSOECN, USO, 1},
			{TapOptions{Without: TSO}, VnetHeader | Csum, TSO | TSOECN, 1},
			{TapOptions{Without: Csum}, VnetHeader, Csum | TSO | TSOECN | USO, 1},
			{TapOptions{Without: VnetHeader}, 0, allFeatures, 1},
			{TapOptions{Queues: 3}, VnetHeader | Csum | TSO, 0, 3},
			{TapOptions{TxQueueLen: 4321}, VnetHeader, 0, 1},
		} {
			name := fmt.Sprintf("tap%d", i)
			tap, err := OpenTap(name, tt.o)
			if err != nil {
				return err
			}
			if f := tap.Features(); f&tt.want != tt.want || f&tt.without != 0 {
				t.Errorf("%+v: features %v", tt.o, f)
			}
			if tap.Queues() != tt.queues || tap.Name() != name {
				t.Errorf("%+v: %d queues, name %q", tt.o, tap.Queues(), tap.Name())
			}
			h, err := netlink.NewHandle()
			if err != nil {
				return err
			}
			l, err := h.LinkByName(name)
			if err != nil {
				return err
			}
			if want := tt.o.TxQueueLen; want != 0 && l.Attrs().TxQLen != want {
				t.Errorf("queue length %d, want %d", l.Attrs().TxQLen, want)
			}
			if err := tap.Close(); err != nil {
				t.Error(err)
			}
			if _, err := h.LinkByName(name); err == nil {
				t.Errorf("%s is still there after Close", name)
			}
			h.Close()
		}
		return nil
	})
}

func TestTapOpenErrors(t *testing.T) {
	inNetns(t, func() error {
		tap, err := OpenTap("", TapOptions{})
		if err != nil {
			return err
		}
		defer tap.Close()
		if tap.Name() != "tap0" {
			t.Errorf("name %q", tap.Name())
		}
		for name, want := range map[string]error{"tap0": unix.EBUSY, "lo": unix.EINVAL, "a name that is too long": unix.EINVAL, "a/b": unix.EINVAL} {
			_, err := OpenTap(name, TapOptions{})
			if !errors.Is(err, want) || err.Error() != fmt.Sprintf("open tap %q: %v", name, want) {
				t.Errorf("OpenTap(%q) = %v, want %v", name, err, want)
			}
		}
		return nil
	})
}

// TestTapUDP sends rows of datagrams into the namespace and out of it, with each set of features.
func TestTapUDP(t *testing.T) {
	for _, without := range []Features{0, USO, TSO | USO, Csum, VnetHeader} {
		t.Run("without "+without.String(), func(t *testing.T) {
			withTap(t, TapOptions{Without: without}, 1500, func(tap *Tap, in func(func() error)) {
				for _, fam := range []struct{ guest, remote netip.Addr }{{guest4, remote4}, {guest6, remote6}} {
					var c *net.UDPConn
					in(func() (err error) {
						c, err = net.ListenUDP("udp", &net.UDPAddr{IP: fam.guest.AsSlice(), Port: 5000})
						return err
					})
					defer c.Close()
					payload := pattern(20 * 1200)
					if err := tap.Write(row(fam.remote, fam.guest, true, &frame.TCPFields{SrcPort: 9000, DstPort: 5000}, 1200, payload)); err != nil {
						t.Fatal(err)
					}
					var got []byte
					b := make([]byte, frame.MaxFrame)
					for len(got) < len(payload) {
						n, from, err := c.ReadFromUDPAddrPort(b)
						if err != nil {
							t.Fatal(err)
						}
						if n != 1200 || from.Addr().Unmap() != fam.remote {
							t.Errorf("%d bytes from %v", n, from)
						}
						got = append(got, b[:n]...)
					}
					if !bytes.Equal(got, payload) {
						t.Error("payload changed")
					}

					// And out: one send of several segments.
					raw, _ := c.SyscallConn()
					var sendErr error
					raw.Control(func(fd uintptr) {
						// UDP_SEGMENT, udp(7)
						if sendErr = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, 1200); sendErr != nil {
							return
						}
						var sa unix.Sockaddr = &unix.SockaddrInet4{Port: 9000, Addr: remote4.As4()}
						if fam.guest.Is6() {
							sa = &unix.SockaddrInet6{Port: 9000, Addr: fam.remote.As16()}
						}
						sendErr = unix.Sendto(int(fd), payload, 0, sa)
					})
					if sendErr != nil {
						t.Fatal(sendErr)
					}
					got = got[:0]
					frames := 0
					for len(got) < len(payload) {
						var p frame.Packet
						f := next(t, tap, b, &p, frame.UDP)
						frames++
						if p.GSO != 0 && p.GSO != 1200 {
							t.Errorf("segments of %d", p.GSO)
						}
						if p.DstPort != 9000 || p.Src != frame.AddrOf(fam.guest) {
							t.Errorf("packet %+v", p)
						}
						if tap.Features()&Csum == 0 {
							decode(t, f)
						}
						got = append(got, f[p.Payload:p.End]...)
					}
					if !bytes.Equal(got, payload) {
						t.Error("payload changed on the way out")
					}
					if want := map[bool]int{true: 1, false: 20}[tap.Features()&USO != 0]; frames != want {
						t.Errorf("%d frames, want %d", frames, want)
					}
				}
			})
		})
	}
}

// TestTapTCP lets the namespace's kernel connect, sends it rows of segments and has it send some.
func TestTapTCP(t *testing.T) {
	const mtu, mss = 1500, 1400
	for _, without := range []Features{0, TSOECN, TSO, Csum, VnetHeader} {
		t.Run("without "+without.String(), func(t *testing.T) {
			for _, fam := range []struct{ guest, remote netip.Addr }{{guest4, remote4}, {guest6, remote6}} {
				withTap(t, TapOptions{Without: without}, mtu, func(tap *Tap, in func(func() error)) {
					var fd int
					in(func() (err error) {
						domain := unix.AF_INET
						var sa unix.Sockaddr = &unix.SockaddrInet4{Port: 80, Addr: remote4.As4()}
						if fam.guest.Is6() {
							domain, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: 80, Addr: fam.remote.As16()}
						}
						if fd, err = unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
							return err
						}
						if err = unix.Connect(fd, sa); err == unix.EINPROGRESS {
							err = nil
						}
						return err
					})
					b := make([]byte, frame.MaxFrame)
					var p frame.Packet
					syn := frame.TCPHeader(next(t, tap, b, &p, frame.TCP)[p.L4:])
					isn := syn.Seq()
					f := frame.TCPFields{SrcPort: 80, DstPort: p.SrcPort, Seq: 1000, Ack: isn + 1, Flags: frame.SYN | frame.ACK, Window: 0xffff, Options: 8}
					synack := row(fam.remote, fam.guest, false, &f, 0, nil)
					frame.PutSYNOptions(synack[len(synack)-8:], mss, 4)
					if err := tap.Write(synack); err != nil {
						t.Fatal(err)
					}
					if h := frame.TCPHeader(next(t, tap, b, &p, frame.TCP)[p.L4:]); h.Flags() != frame.ACK || h.Ack() != 1001 {
						t.Fatalf("answer to SYN, ACK: flags %#x, ack %d", h.Flags(), h.Ack())
					}
					file := os.NewFile(uintptr(fd), "tcp")
					c, err := net.FileConn(file)
					file.Close()
					if err != nil {
						t.Fatal(err)
					}
					defer c.Close()

					data := pattern(40000)
					f = frame.TCPFields{SrcPort: 80, DstPort: f.DstPort, Seq: 1001, Ack: isn + 1, Flags: frame.ACK | frame.PSH, Window: 0xffff}
					for rest := data; len(rest) > 0; {
						n := min(len(rest), 10*mss)
						if err := tap.Write(row(fam.remote, fam.guest, false, &f, mss, rest[:n])); err != nil {
							t.Fatal(err)
						}
						f.Seq += uint32(n)
						rest = rest[n:]
					}
					got := make([]byte, len(data))
					if _, err := io.ReadFull(c, got); err != nil {
						t.Fatal(err)
					}
					if d := cmp.Diff(data, got); d != "" {
						t.Error("data changed on the way in")
					}

					if _, err := c.Write(data); err != nil {
						t.Fatal(err)
					}
					clear(got)
					biggest, sum := 0, 0
					for sum < len(data) {
						fr := next(t, tap, b, &p, frame.TCP)
						h := frame.TCPHeader(fr[p.L4:])
						if p.End == p.Payload {
							continue
						}
						if tap.Features()&Csum == 0 {
							decode(t, fr)
						}
						at := int(h.Seq() - isn - 1)
						if at != sum {
							continue // again: it has waited for us
						}
						sum += copy(got[at:], fr[p.Payload:p.End])
						biggest = max(biggest, p.End-p.Payload)
						ack := f
						ack.Ack, ack.Flags = isn+1+uint32(sum), frame.ACK
						if err := tap.Write(row(fam.remote, fam.guest, false, &ack, 0, nil)); err != nil {
							t.Fatal(err)
						}
					}
					if !bytes.Equal(got, data) {
						t.Error("data changed on the way out")
					}
					if tap.Features()&TSO != 0 && biggest <= mss {
						t.Errorf("no segments in a row, largest %d", biggest)
					}
					if tap.Features()&TSO == 0 && biggest > mss {
						t.Errorf("a row of segments of %d bytes", biggest)
					}
				})
			}
		})
	}
}

// TestTapLeftBehind: the interface outlives the tap, and is not needed for that.
func TestTapLeftBehind(t *testing.T) {
	inNetns(t, func() error {
		for _, left := range []bool{true, false} {
			tap, err := OpenTap("left%d", TapOptions{})
			if err != nil {
				return err
			}
			if left {
				if err := tap.Leave(); err != nil {
					return err
				}
			}
			tap.Close()
			if err := tap.Leave(); !errors.Is(err, os.ErrClosed) {
				return fmt.Errorf("after Close: %v", err)
			}
			_, err = net.InterfaceByName(tap.Name())
			if (err == nil) != left {
				return fmt.Errorf("left behind %v: looked for, %v", left, err)
			}
		}
		return nil
	})
}

func TestTapCloseWakesRead(t *testing.T) {
	withTap(t, TapOptions{}, 1500, func(tap *Tap, in func(func() error)) {
		got := make(chan error)
		started := make(chan bool)
		go func() {
			b := make([]byte, frame.MaxFrame)
			close(started)
			for {
				if _, err := tap.Read(b); err != nil {
					got <- err
					return
				}
			}
		}()
		<-started
		if err := tap.Close(); err != nil {
			t.Error(err)
		}
		if err := <-got; !errors.Is(err, os.ErrClosed) {
			t.Errorf("Read = %v", err)
		}
		b := make([]byte, frame.MaxFrame)
		_, readErr := tap.Read(b)
		_, tryErr := tap.TryRead(b)
		for _, err := range []error{readErr, tryErr, tap.Write(numbered(1)), tap.Close()} {
			if !errors.Is(err, os.ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
		}
	})
}

// The descriptor must not be closed, and its number perhaps taken by another, under a writer.
func TestTapCloseWhileWriting(t *testing.T) {
	for range 20 {
		withTap(t, TapOptions{}, 1500, func(tap *Tap, in func(func() error)) {
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					in := row(remote4, guest4, true, &frame.TCPFields{SrcPort: 1, DstPort: 2}, 0, pattern(100))
					for {
						if err := tap.Write(in); err != nil {
							if !errors.Is(err, os.ErrClosed) {
								t.Errorf("Write = %v", err)
							}
							return
						}
					}
				})
			}
			tap.Close()
			wg.Wait()
			if n := tap.life.calls.Load(); n != closed {
				t.Errorf("calls = %d", n)
			}
			if err := tap.file.SetReadDeadline(time.Time{}); err == nil {
				t.Error("descriptor is still open")
			}
		})
	}
}

func TestTapRemovedDuringRead(t *testing.T) {
	withTap(t, TapOptions{}, 1500, func(tap *Tap, in func(func() error)) {
		got := make(chan error)
		go func() {
			b := make([]byte, frame.MaxFrame)
			for {
				if _, err := tap.Read(b); err != nil {
					got <- err
					return
				}
			}
		}()
		in(func() error {
			h, err := netlink.NewHandle()
			if err != nil {
				return err
			}
			defer h.Close()
			l, err := h.LinkByName("eth0")
			if err != nil {
				return err
			}
			return h.LinkDel(l)
		})
		if err := <-got; !errors.Is(err, ErrGone) || err.Error() != `read tap "eth0": device is gone` {
			t.Errorf("Read = %v", err)
		}
		if err := tap.Write(numbered(1)); !errors.Is(err, ErrGone) {
			t.Errorf("Write = %v", err)
		}
		if _, err := tap.TryRead(make([]byte, frame.MaxFrame)); !errors.Is(err, ErrGone) {
			t.Errorf("TryRead = %v", err)
		}
	})
}

func TestTapDown(t *testing.T) {
	inNetns(t, func() error {
		tap, err := OpenTap("eth0", TapOptions{})
		if err != nil {
			return err
		}
		defer tap.Close()
		if err := tap.Write(numbered(1)); !errors.Is(err, ErrDropped) {
			t.Errorf("Write while down = %v", err)
		}
		if n, err := tap.TryRead(make([]byte, frame.MaxFrame)); n != 0 || err != nil {
			t.Errorf("TryRead while down = %d, %v", n, err)
		}
		return nil
	})
}

func TestTapRefuses(t *testing.T) {
	withTap(t, TapOptions{}, 1500, func(tap *Tap, in func(func() error)) {
		bad := row(remote4, guest4, false, &frame.TCPFields{SrcPort: 1, DstPort: 2}, 100, pattern(1000))
		v := frame.GetVnet(bad)
		v.CsumStart = 0xfff0
		frame.PutVnet(bad, v)
		for name, b := range map[string][]byte{"empty": nil, "short": make([]byte, 23), "long": make([]byte, frame.MaxFrame+1), "bad header": bad} {
			if err := tap.Write(b); !errors.Is(err, ErrRefused) {
				t.Errorf("%s: Write = %v", name, err)
			}
		}
		if err := tap.Write(numbered(1)); err != nil {
			t.Errorf("a good one = %v", err)
		}
	})
}

func TestTapQueues(t *testing.T) {
	withTap(t, TapOptions{Queues: 2}, 1500, func(tap *Tap, in func(func() error)) {
		var wg sync.WaitGroup
		got := make(chan uint16)
		for i := range tap.Queues() {
			wg.Go(func() {
				b := make([]byte, frame.MaxFrame)
				for {
					n, err := tap.Queue(i).Read(b)
					if err != nil {
						if !errors.Is(err, os.ErrClosed) {
							t.Errorf("queue %d: %v", i, err)
						}
						return
					}
					var p frame.Packet
					if frame.Parse(b[:n], &p) == frame.OK && p.Kind == frame.UDP {
						got <- p.DstPort
					}
				}
			})
		}
		var c *net.UDPConn
		in(func() (err error) {
			c, err = net.ListenUDP("udp4", &net.UDPAddr{IP: guest4.AsSlice(), Port: 5000})
			return err
		})
		defer c.Close()
		for port := uint16(1); port <= 20; port++ {
			if _, err := c.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(remote4, port)); err != nil {
				t.Fatal(err)
			}
			if p := <-got; p != port {
				t.Errorf("datagram to port %d, want %d", p, port)
			}
		}
		tap.Close()
		wg.Wait()
	})
}

func TestTapAllocs(t *testing.T) {
	withTap(t, TapOptions{}, 1500, func(tap *Tap, in func(func() error)) {
		var c *net.UDPConn
		in(func() (err error) {
			c, err = net.DialUDP("udp4", &net.UDPAddr{IP: guest4.AsSlice(), Port: 5000}, &net.UDPAddr{IP: remote4.AsSlice(), Port: 9000})
			return err
		})
		defer c.Close()
		b, x := make([]byte, frame.MaxFrame), []byte("x")
		one := numbered(1)
		for n := 1; n > 0; { // what the interface sends when it comes up
			n, _ = tap.TryRead(b)
		}
		for what, f := range map[string]func(){
			"Write":            func() { tap.Write(one) },
			"Read":             func() { c.Write(x); tap.Read(b) },
			"TryRead":          func() { c.Write(x); tap.TryRead(b) },
			"TryRead of none":  func() { tap.TryRead(b) },
			"Write in segment": func() { tap.Write(row4) },
		} {
			if n := testing.AllocsPerRun(200, f); n != 0 {
				t.Errorf("%s: %v allocations", what, n)
			}
		}
	})
}

var row4 = row(remote4, guest4, false, &frame.TCPFields{SrcPort: 1, DstPort: 2, Flags: frame.ACK}, 1000, pattern(5000))

func BenchmarkTap(b *testing.B) {
	withTap(b, TapOptions{}, 1500, func(tap *Tap, in func(func() error)) {
		one, buf := numbered(1), make([]byte, frame.MaxFrame)
		fd := int(tap.fd)
		b.Run("write", func(b *testing.B) {
			for b.Loop() {
				tap.Write(one)
			}
		})
		b.Run("write(2) alone", func(b *testing.B) {
			for b.Loop() {
				syscall.Write(fd, one)
			}
		})
		b.Run("read of none", func(b *testing.B) {
			for b.Loop() {
				tap.TryRead(buf)
			}
		})
	})
}
