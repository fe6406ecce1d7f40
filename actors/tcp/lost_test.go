package tcp

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/tapio"
	"fusilli/tapio/frame"
)

// fullLink drops the next frames that are written to it.
type fullLink struct {
	tapio.Link
	drop int
}

func (l *fullLink) Write(b []byte) error {
	if l.drop > 0 {
		l.drop--
		return tapio.ErrDropped
	}
	return l.Link.Write(b)
}

// TestFramesTheLinkHasNoRoomFor: data that the link has dropped comes again, in order and once, and
// so does the end.
func TestFramesTheLinkHasNoRoomFor(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		b := newBed(t, fam)
		b.establish(b.play)
		link := &fullLink{Link: b.env.Link}
		b.env.Link = link
		b.host.Write(data(0, 1000))
		b.wantData(data(0, 1000))
		b.host.Write(data(1000, 1000))
		link.drop = 2
		for end := time.Now().Add(patience); link.drop > 0; b.c.fromHost() {
			if time.Now().After(end) {
				t.Fatal("nothing is sent")
			}
		}
		b.wantData(data(1000, 1000))
		b.host.CloseWrite()
		link.drop = 1
		for end := time.Now().Add(patience); !b.c.eof; b.c.fromHost() {
			if time.Now().After(end) {
				t.Fatal("the peer's end is not seen")
			}
		}
		b.c.sendFIN()
		b.quiet()
		b.rcv += 2000
		b.send(seg{})
		b.turn()
		for end := time.Now().Add(patience); ; {
			if time.Now().After(end) || b.c.rtoAt == 0 {
				t.Fatal("the end is not sent again")
			}
			b.c.onTime(b.c.rtoAt)
			b.c.fromHost()
			if b.c.eof && !b.c.finSent {
				b.c.sendFIN()
			}
			if n, _ := b.link.TryRead(b.buf); n > 0 {
				if s, err := b.decode(b.buf[:n]); err != nil || s.flags&frame.FIN == 0 || s.seq != b.rcv || s.ack != b.snd {
					t.Fatalf("guest gets %v, %v, want FIN at %d", s, err, b.rcv)
				}
				break
			}
		}
	})
}

// TestWindowShrinksWithDataOnTheWay: nothing is sent into it, and what the guest has not taken
// comes again when it opens.
func TestWindowShrinksWithDataOnTheWay(t *testing.T) {
	b := newBed(t, families[0])
	b.establish(b.play)
	all := data(0, 3*guestMSS)
	b.host.Write(all)
	b.wantData(all)
	b.rcv += guestMSS
	b.wnd = 0
	b.send(seg{})
	b.turn()
	b.c.fromHost()
	b.quiet()
	for range 3 {
		b.c.onTime(b.c.rtoAt)
		b.c.fromHost()
		if s := b.receive(); len(s.data) != 0 || s.seq != b.rcv-1 {
			t.Fatalf("guest gets %v, want a probe", s)
		}
		b.quiet()
		b.send(seg{})
		b.turn()
	}
	b.wnd = 4096
	b.send(seg{})
	b.turn()
	b.wantData(all[guestMSS:])
}

// TestLastSegmentIsPushed: guests may keep data back until they see PSH, also if it fills a frame
// or the guest's window exactly.
func TestLastSegmentIsPushed(t *testing.T) {
	full := maxSegment(false) / guestMSS * guestMSS
	for _, tt := range []struct {
		name string
		n    int
		wnd  uint16
		want []int // lengths of segments with PSH
	}{
		{"a part of a frame", 3000, 4096, []int{3000}},
		{"a frame", full, 4096, []int{full}},
		{"a frame and a byte", full + 1, 4096, []int{1}},
		{"the window", 64 << 7, 64, []int{64 << 7 % guestMSS}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t, families[0])
			b.establish(b.play)
			b.wnd = tt.wnd
			b.send(seg{})
			b.turn()
			unix.SetsockoptInt(b.c.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20)
			go b.host.Write(data(0, tt.n))
			for end := time.Now().Add(patience); ; {
				if n, err := unix.IoctlGetInt(b.c.fd, unix.SIOCINQ); n == tt.n {
					break
				} else if err != nil || time.Now().After(end) {
					t.Fatalf("%d bytes wait in the socket, %v", n, err)
				}
			}
			var pushed []int
			for got := 0; got < tt.n; {
				b.c.fromHost()
				for n := 1; n != 0; {
					if n, _ = b.link.TryRead(b.buf); n == 0 {
						break
					}
					s, err := b.decode(b.buf[:n])
					if err != nil {
						t.Fatal(err)
					}
					if got += len(s.data); s.flags&frame.PSH != 0 {
						pushed = append(pushed, len(s.data))
					}
				}
				b.rcv = b.isn + 1 + uint32(got)
				b.send(seg{})
				b.turn()
			}
			if !slices.Equal(pushed, tt.want) {
				t.Errorf("segments of %d bytes are pushed, want %d", pushed, tt.want)
			}
		})
	}
}

// TestDataBehindTheEnd: what the guest sends after its FIN is not part of its stream.
func TestDataBehindTheEnd(t *testing.T) {
	b := newBed(t, families[0])
	b.establish(b.serve)
	b.send(seg{data: data(0, 10), flags: frame.FIN})
	b.read(10)
	b.send(seg{data: data(10, 10)})
	b.snd -= 10
	b.eof()
	b.acked()
	b.host.Write(data(0, 20))
	if s := b.until("data", func(s seg) bool { return len(s.data) > 0 }); !bytes.Equal(s.data, data(0, 20)) {
		t.Errorf("guest gets %v", s)
	}
}

// TestHalfClosedForHours: a direction that is open stays so, however long ago the other one has
// ended.
func TestHalfClosedForHours(t *testing.T) {
	for _, who := range []string{"guest", "peer"} {
		t.Run(who+" has ended", func(t *testing.T) {
			b := newBed(t, families[0])
			b.establish(b.play)
			if who == "guest" {
				b.send(seg{flags: frame.FIN})
				b.turn()
				b.eof()
			} else {
				b.host.CloseWrite()
				for end := time.Now().Add(patience); !b.c.eof; b.c.fromHost() {
					if time.Now().After(end) {
						t.Fatal("the peer's end is not seen")
					}
				}
				b.c.sendFIN()
				b.rcv++
				b.send(seg{})
				b.turn()
			}
			now := flow.Now()
			for range 100 { // the guest answers each probe
				now += keepAlive
				b.c.onTime(now)
				b.c.seenAt, b.c.liveAt = now, now
			}
			if b.c.over {
				t.Fatal("the connection is over")
			}
			for n := 1; n != 0; n, _ = b.link.TryRead(b.buf) {
			}
			if who == "guest" {
				b.host.Write(data(0, 100))
				b.wantData(data(0, 100))
			} else {
				b.send(seg{data: data(0, 100)})
				b.turn()
				if got := b.read(100); !bytes.Equal(got, data(0, 100)) {
					t.Error("host gets other bytes")
				}
			}
		})
	}
}

// TestWaitingCostsNoCPU: no state has the actor woken again and again by data that it cannot move.
func TestWaitingCostsNoCPU(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(*testing.T) *bed
	}{
		{"the guest has not answered yet", func(t *testing.T) *bed {
			b := newAccepted(t, families[0])
			b.serveAccepted()
			b.called()
			return b
		}},
		{"the guest's window is closed", func(t *testing.T) *bed {
			b := newBed(t, families[0])
			b.wnd = 0
			b.establish(b.serve)
			return b
		}},
		{"the guest acknowledges nothing", func(t *testing.T) *bed {
			b := newBed(t, families[0])
			b.wnd = 8
			b.establish(b.serve)
			return b
		}},
		{"the peer has ended, the guest acknowledges nothing", func(t *testing.T) *bed {
			b := newBed(t, families[0])
			b.establish(b.serve)
			b.host.CloseWrite()
			return b
		}},
		{"the guest has ended, the peer has not read", func(t *testing.T) *bed {
			b := newBed(t, families[0])
			b.establish(b.serve)
			b.send(seg{data: data(0, 60000), flags: frame.FIN})
			return b
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := tt.make(t)
			b.host.Write(data(0, 30000))
			used := func() time.Duration {
				var u unix.Rusage
				if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
					t.Fatal(err)
				}
				return time.Duration(u.Utime.Nano() + u.Stime.Nano())
			}
			// However busy the machine: some stretch of 100 ms must have been a quiet one.
			for end := time.Now().Add(patience); ; {
				before := used()
				time.Sleep(100 * time.Millisecond)
				if used()-before < 30*time.Millisecond {
					break
				}
				if time.Now().After(end) {
					t.Fatal("the actor does not come to rest")
				}
			}
		})
	}
}
