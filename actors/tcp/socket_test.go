package tcp

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"

	"fusilli/tapio/frame"
)

// soBufLock is SO_BUF_LOCK of asm-generic/socket.h, Linux 5.14: which buffers somebody has given a
// size.
const soBufLock = 72

// TestBuffersGrowAsTheKernelLikes: a transfer over a long path is not held back by a buffer or a
// window that somebody has given a size, from which on the kernel leaves them as they are (tcp(7)).
func TestBuffersGrowAsTheKernelLikes(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		for _, accepted := range []bool{false, true} {
			b := newBed(t, fam)
			if accepted {
				b = newAccepted(t, fam)
				b.establishAccepted(b.playAccepted)
			} else {
				b.establish(b.play)
			}
			b.send(seg{data: data(0, 1000)})
			b.turn()
			b.host.Write(data(0, 1000))
			b.wantData(data(0, 1000))
			v, err := unix.GetsockoptInt(b.c.fd, unix.SOL_SOCKET, soBufLock)
			if err == unix.ENOPROTOOPT {
				t.Skip("the kernel does not tell")
			}
			if err != nil || v != 0 {
				t.Errorf("accepted %v: buffers with a size of their own: %d, %v", accepted, v, err)
			}
			// The peer's socket is one that nobody has touched.
			ours, err := unix.GetsockoptInt(b.c.fd, unix.SOL_TCP, unix.TCP_WINDOW_CLAMP)
			if err != nil {
				t.Fatal(err)
			}
			b.peerFD(func(fd int) error {
				theirs, err := unix.GetsockoptInt(fd, unix.SOL_TCP, unix.TCP_WINDOW_CLAMP)
				if ours < theirs {
					t.Errorf("accepted %v: windows up to %d, %d where nobody has touched them", accepted, ours, theirs)
				}
				return err
			})
		}
	})
}

// TestKernelThatPeeksAtOneFamilyOnly: what was sent is sent again from the right place, whether the
// kernel has a peek offset for IPv4, for IPv6, for both, or for neither.
func TestKernelThatPeeksAtOneFamilyOnly(t *testing.T) {
	for _, tt := range []struct {
		name   string
		v4, v6 bool
	}{{"both", true, true}, {"IPv4", true, false}, {"IPv6", false, true}, {"neither", false, false}} {
		t.Run(tt.name, func(t *testing.T) {
			forFamilies(t, func(t *testing.T, fam family) {
				for _, accepted := range []bool{false, true} {
					b := newBed(t, fam)
					if accepted {
						b = newAccepted(t, fam)
					}
					b.env.PeekOff4, b.env.PeekOff6 = tt.v4 && b.env.PeekOff4, tt.v6 && b.env.PeekOff6
					if accepted {
						b.establishAccepted(b.playAccepted)
					} else {
						b.establish(b.play)
						if want := b.env.PeekOff4 && !b.c.v6 || b.env.PeekOff6 && b.c.v6; b.c.peekOff != want {
							t.Errorf("a peek offset: %v, want %v", b.c.peekOff, want)
						}
					}
					all := data(0, 4*guestMSS)
					b.host.Write(all)
					b.wantData(all)
					b.rcv += guestMSS
					b.send(seg{})
					b.turn()
					b.c.onTime(b.c.rtoAt)
					b.wantData(all[guestMSS:])
					b.rcv += 3 * guestMSS
					b.send(seg{})
					b.turn()
					b.host.Write(data(4*guestMSS, 100))
					b.wantData(data(4*guestMSS, 100))
				}
			})
		})
	}
}

// TestMSSFitsTheLink: a guest is told of no longer segments than its link takes, whoever asks for
// the connection.
func TestMSSFitsTheLink(t *testing.T) {
	for _, mtu := range []int{0, 1280, 1500, 9000, 65520, 65535} {
		forFamilies(t, func(t *testing.T, fam family) {
			want := maxSegment(fam.guest.Is6())
			if mtu > 0 {
				headers := 40
				if fam.guest.Is6() {
					headers = 60
				}
				want = min(want, mtu-headers)
			}
			for _, accepted := range []bool{false, true} {
				b := newBed(t, fam)
				if accepted {
					b = newAccepted(t, fam)
				}
				b.env.MTU = mtu
				var s seg
				if accepted {
					b.playAccepted()
					s = b.called()
				} else {
					b.sendSYN()
					b.play()
					s = b.receive()
				}
				if !bytes.HasPrefix(s.opt, []byte{2, 4, byte(want >> 8), byte(want)}) || s.flags&frame.SYN == 0 {
					t.Errorf("MTU %d, accepted %v: %v, want an MSS of %d", mtu, accepted, s, want)
				}
			}
		})
	}
}
