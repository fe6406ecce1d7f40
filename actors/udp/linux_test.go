package udp

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
	"fusilli/tapio"
	"fusilli/tapio/frame"
)

// linuxGuest is a network namespace with a tap, and one flow that its datagrams go through.
type linuxGuest struct {
	tap  *tapio.Tap
	conn *net.UDPConn // the guest's, connected to the remote end
}

// newLinuxGuest connects a kernel's stack at MTU mtu to p. It skips the test where that takes
// privileges the test does not have.
func newLinuxGuest(t *testing.T, fam family, mtu int, p *net.UDPConn, without tapio.Features) *linuxGuest {
	t.Helper()
	g := new(linuxGuest)
	ready := make(chan error)
	go func() {
		// never unlocked: the thread and its namespace end with the goroutine
		runtime.LockOSThread()
		ready <- g.setUp(fam, mtu, without)
	}()
	if err := <-ready; err != nil {
		if errors.Is(err, os.ErrPermission) {
			t.Skipf("namespace: %v", err)
		}
		t.Fatalf("namespace: %v", err)
	}
	b := &bed{env: &flow.Env{Link: g.tap, Log: nopLog, OurMAC: ourMAC, MTU: mtu, UDPTimeout: time.Hour, UDPStreamTimeout: time.Hour}, pool: flow.NewPool(64)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.carry(g.tap, netip.AddrPortFrom(fam.loopback, portOf(p)))
	}()
	t.Cleanup(func() {
		g.conn.Close()
		g.tap.Close()
		<-done
	})
	return g
}

func (g *linuxGuest) setUp(fam family, mtu int, without tapio.Features) (err error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	if g.tap, err = tapio.OpenTap("tap0", tapio.TapOptions{Without: without}); err != nil {
		return err
	}
	link, err := netlink.LinkByName("tap0")
	if err != nil {
		return err
	}
	bits := fam.guest.BitLen()
	remote := net.IP(fam.remote.AsSlice())
	return errors.Join(
		netlink.LinkSetMTU(link, mtu),
		netlink.LinkSetUp(link),
		netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: fam.guest.AsSlice(), Mask: net.CIDRMask(bits, bits)}, Flags: unix.IFA_F_NODAD}),
		netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: &net.IPNet{IP: remote, Mask: net.CIDRMask(bits, bits)}}),
		netlink.NeighAdd(&netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: remote, HardwareAddr: ourMAC[:]}),
		untilLocal(fam.guest),
		g.dial(fam),
	)
}

// untilLocal waits until packets to a are taken for ours: the kernel makes an IPv6 address's local
// route later than the address, even without duplicate address detection.
func untilLocal(a netip.Addr) error {
	for deadline := time.Now().Add(patience); ; runtime.Gosched() {
		r, err := netlink.RouteGet(a.AsSlice())
		if err == nil && len(r) > 0 && r[0].Type == unix.RTN_LOCAL {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.Join(errors.New("no local route"), err)
		}
	}
}

func (g *linuxGuest) dial(fam family) (err error) {
	g.conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(fam.remote, 7)))
	if err != nil {
		return err
	}
	g.conn.SetReadBuffer(4 << 20)
	return g.conn.SetDeadline(time.Now().Add(patience))
}

// carry is a small engine for one flow to host: it ends with the link.
func (b *bed) carry(link tapio.Link, host netip.AddrPort) {
	done := make(chan struct{})
	close(done)
	buf := make([]byte, frame.MaxFrame)
	for {
		n, err := link.Read(buf)
		if err != nil {
			break
		}
		var p frame.Packet
		if frame.Parse(buf[:n], &p) != frame.OK || p.Kind != frame.UDP || p.DstPort != 7 {
			continue
		}
		b.env.SetGuestMAC(frame.Src(buf))
		if b.port == nil {
			b.port = flow.NewPort(flow.Key{Guest: p.Src, Remote: p.Dst, GuestPort: p.SrcPort, RemotePort: p.DstPort, Proto: frame.ProtoUDP})
			done = make(chan struct{})
			go func() {
				defer close(done)
				Serve(b.env, b.port, &sock.Host{}, host)
			}()
		}
		slab := b.pool.Get()
		copy(slab.Room(), buf[:n])
		slab.Append(n, &p)
		if r := slab.Run(0); !b.port.Offer(r) {
			r.Release()
		}
		slab.Release()
	}
	if b.port != nil {
		b.port.Stop()
	}
	<-done
}

// The kernel takes frames longer than the link's MTU, and rows in one frame.
func TestLinuxGuest(t *testing.T) {
	for _, tt := range []struct {
		name    string
		mtu     int
		without tapio.Features
	}{
		{"MTU 1280", 1280, 0},
		{"MTU 1500", 1500, 0},
		{"MTU 65520", 65520, 0},
		{"no rows", 1500, tapio.USO},
		{"no offload", 1500, tapio.Csum},
	} {
		t.Run(tt.name, func(t *testing.T) {
			forFamilies(t, func(t *testing.T, fam family) {
				p := newPeer(t, fam)
				g := newLinuxGuest(t, fam, tt.mtu, p, tt.without)
				buf := make([]byte, 65536)
				for i, n := range []int{0, 1, 17, 1232, 1400, 1472, 9000, 40000, 65000, fam.maxData(), 3} {
					question := pattern(min(n, 1200), uint32(i))
					if _, err := g.conn.Write(question); err != nil {
						t.Fatal(err)
					}
					from := expect(t, p, [][]byte{question})
					answer := pattern(n, uint32(i))
					if _, err := p.WriteToUDPAddrPort(answer, from); err != nil {
						t.Fatal(err)
					}
					if got, err := g.conn.Read(buf); err != nil || !bytes.Equal(buf[:got], answer) {
						t.Fatalf("%d bytes: %d, %v", n, got, err)
					}
				}
				g.conn.Write([]byte("rows"))
				from := expect(t, p, [][]byte{[]byte("rows")})
				for _, size := range []int{1200, 300, 1} {
					data := pattern(20*size+(size+1)/2, uint32(size))
					sendRow(t, p, from, data, size)
					for rest := data; len(rest) > 0; {
						n := min(size, len(rest))
						if got, err := g.conn.Read(buf); err != nil || !bytes.Equal(buf[:got], rest[:n]) {
							t.Fatalf("row of %d bytes: %d, %v", size, got, err)
						}
						rest = rest[n:]
					}
				}
				// And out, as one frame if the link can.
				data := pattern(20*1200, 9)
				sendRow(t, g.conn, netip.AddrPort{}, data, 1200)
				var want [][]byte
				for i := range 20 {
					want = append(want, data[1200*i:1200*(i+1)])
				}
				expect(t, p, want)
			})
		})
	}
}
