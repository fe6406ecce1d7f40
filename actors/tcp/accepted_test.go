package tcp

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/tapio/frame"
)

// newAccepted makes a connection that a peer has asked for; the guest was not told yet.
func newAccepted(t testing.TB, fam family) *bed {
	t.Helper()
	b := newBed(t, fam)
	b.env.SYNRetries, b.env.SYNLinear = 7, 4
	var err error
	if b.host, err = net.DialTCP("tcp", nil, b.listen.Addr().(*net.TCPAddr)); err != nil {
		t.Fatal(err)
	}
	b.host.SetDeadline(time.Now().Add(patience))
	c, err := b.listen.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { b.fd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bed) peer() netip.AddrPort {
	a := b.host.LocalAddr().(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// serveAccepted lets the actor run on a goroutine of its own.
func (b *bed) serveAccepted() {
	b.done = make(chan struct{})
	go func() {
		defer close(b.done)
		ServeAccepted(b.env, b.port, b.fd, b.peer())
	}()
}

// playAccepted makes the conn for a test that is its actor itself.
func (b *bed) playAccepted() {
	b.t.Helper()
	b.c = &conn{env: b.env, port: b.port, host: b.peer(), fd: b.fd}
	if !b.c.call() {
		b.t.Fatal("no connection")
	}
}

// called receives the SYN to the guest.
func (b *bed) called() seg {
	b.t.Helper()
	s := b.receive()
	if s.flags != frame.SYN {
		b.t.Fatalf("guest gets %v, want SYN", s)
	}
	b.isn, b.rcv, b.snd = s.seq, s.seq+1, guestISN+1
	return s
}

// answerSYN sends the guest's SYN,ACK, with further flags.
func (b *bed) answerSYN(flags uint8, opt []byte) {
	b.t.Helper()
	if !b.offer(seg{flags: frame.SYN | frame.ACK | flags, seq: guestISN, ack: b.rcv, wnd: 64240, opt: opt}) {
		b.t.Fatal("mailbox is full")
	}
}

// establishAccepted does the handshake, for serveAccepted or playAccepted.
func (b *bed) establishAccepted(run func()) {
	b.t.Helper()
	run()
	b.called()
	b.answerSYN(0, synOptions)
	if b.c != nil {
		b.turn()
	}
	if s := b.receive(); s.flags != frame.ACK || s.ack != b.snd || s.seq != b.rcv {
		b.t.Fatalf("guest gets %v, want the acknowledgement of its SYN", s)
	}
}

func (b *bed) wasReset() {
	b.t.Helper()
	if _, err := b.host.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		b.t.Errorf("host reads %v, want a reset", err)
	}
}

func TestCall(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		for _, tt := range []struct {
			name  string
			opt   []byte
			scale uint8 // of our windows
		}{
			{"MSS and scale", synOptions, ourScale},
			{"without scale", []byte{2, 4, 5, 0x78}, 0},
			{"broken options", []byte{2, 0, 3, 3, 7, 0, 0, 0}, 0},
		} {
			t.Run(tt.name, func(t *testing.T) {
				b := newAccepted(t, fam)
				b.host.Write(data(0, 300)) // long before the guest answers
				b.serveAccepted()
				s := b.called()
				mss := mtu - 40
				if fam.guest.Is6() {
					mss = mtu - 60
				}
				want := []byte{2, 4, byte(mss >> 8), byte(mss), 1, 3, 3, ourScale}
				if s.ack != 0 || s.wnd == 0 || !bytes.Equal(s.opt, want) || len(s.data) != 0 {
					t.Errorf("SYN to the guest: %v, want options %x", s, want)
				}
				b.answerSYN(0, tt.opt)
				if s = b.receive(); s.flags != frame.ACK || s.seq != b.rcv || s.ack != b.snd || len(s.data) != 0 {
					t.Fatalf("answer to SYN,ACK: %v", s)
				}
				for got := 0; got < 300; {
					s = b.receive()
					if s.seq != b.rcv+uint32(got) || !bytes.Equal(s.data, data(got, len(s.data))) {
						t.Fatalf("guest gets %v behind %d bytes", s, got)
					}
					got += len(s.data)
				}
				b.rcv += 300
				// And back, with a window that is scaled or not.
				b.send(seg{data: data(0, 1000)})
				b.acked()
				if got := b.read(1000); !bytes.Equal(got, data(0, 1000)) {
					t.Error("host gets other bytes")
				}
				b.send(seg{data: data(1000, 40000)}, seg{data: data(41000, 20000)})
				s = b.until("acknowledgement", func(s seg) bool { return s.ack == b.snd })
				if wnd := int(s.wnd) << tt.scale; wnd < 1000 || wnd > maxWindow {
					t.Errorf("window of %d", wnd)
				}
				b.answerSYN(0, tt.opt) // our acknowledgement was lost
				b.until("acknowledgement of SYN,ACK", func(s seg) bool { return s.flags == frame.ACK })
			})
		}
	})
}

// TestCallIsRepeated plays the clock: the same SYN after 1, 2, 3, 4, 5, 7 and 11 seconds, and a
// reset both ways after 19.
func TestCallIsRepeated(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		b := newAccepted(t, fam)
		b.playAccepted()
		first := b.called()
		start := b.c.seenAt
		for _, after := range []time.Duration{1, 2, 3, 4, 5, 7, 11} {
			at := start + flow.Time(after*time.Second)
			b.c.onTime(at - 1)
			b.quiet()
			b.c.onTime(at)
			if s := b.receive(); s.String() != first.String() {
				t.Errorf("after %d s: %v, want %v", after, s, first)
			}
		}
		b.c.onTime(start + flow.Time(19*time.Second) - 1)
		b.quiet()
		b.c.onTime(start + flow.Time(19*time.Second))
		if s := b.receive(); s.flags != frame.RST|frame.ACK || s.seq != first.seq+1 {
			t.Errorf("after 19 s: %v, want a reset", s)
		}
		if !b.c.over || !b.c.reset {
			t.Error("the connection goes on")
		}
	})
}

// TestCallIsAnswered is what a guest may say to a SYN besides SYN,ACK.
func TestCallIsAnswered(t *testing.T) {
	const (
		waits = iota // for a better answer, which comes then
		peerReset
		bothReset
	)
	for _, tt := range []struct {
		name  string
		in    func(b *bed) seg
		want  int
		reply uint8 // flags of what the guest gets at once
	}{
		{"refused", func(b *bed) seg { return seg{flags: frame.RST | frame.ACK, ack: b.rcv} }, peerReset, 0},
		{"reset of something else", func(b *bed) seg { return seg{flags: frame.RST | frame.ACK, ack: b.rcv + 1} }, waits, 0},
		{"reset without acknowledgement", func(b *bed) seg { return seg{flags: frame.RST, seq: guestISN} }, waits, 0},
		{"acknowledgement of something else", func(b *bed) seg {
			return seg{flags: frame.ACK, seq: 77, ack: b.rcv - 1000}
		}, waits, frame.RST},
		{"SYN,ACK for something else", func(b *bed) seg {
			return seg{flags: frame.SYN | frame.ACK, seq: 77, ack: b.rcv + 9}
		}, waits, frame.RST},
		{"acknowledgement only", func(b *bed) seg { return seg{flags: frame.ACK, seq: guestISN + 1, ack: b.rcv} }, waits, 0},
		{"end only", func(b *bed) seg { return seg{flags: frame.ACK | frame.FIN, seq: guestISN + 1, ack: b.rcv} }, waits, 0},
		{"nothing", func(b *bed) seg { return seg{seq: guestISN} }, waits, 0},
		{"SYN with an end", func(b *bed) seg { return seg{flags: frame.SYN | frame.FIN, seq: guestISN + 77} }, waits, 0},
		{"SYN,ACK with an end", func(b *bed) seg {
			return seg{flags: frame.SYN | frame.ACK | frame.FIN, seq: guestISN, ack: b.rcv}
		}, bothReset, frame.RST | frame.ACK},
	} {
		t.Run(tt.name, func(t *testing.T) {
			forFamilies(t, func(t *testing.T, fam family) {
				b := newAccepted(t, fam)
				b.serveAccepted()
				b.called()
				in := tt.in(b)
				b.offer(in)
				if tt.reply != 0 {
					s := b.receive()
					if s.flags != tt.reply || tt.want == waits && s.seq != in.ack {
						t.Errorf("guest gets %v, want flags %02x", s, tt.reply)
					}
				}
				if tt.want == waits {
					b.answerSYN(0, synOptions)
					b.until("acknowledgement", func(s seg) bool { return s.flags == frame.ACK && s.ack == b.snd })
					b.send(seg{data: data(0, 10)})
					if got := b.read(10); !bytes.Equal(got, data(0, 10)) {
						t.Error("host gets other bytes")
					}
					return
				}
				b.over()
				b.wasReset()
				b.quiet()
			})
		})
	}
}

func TestPeerGoesBeforeTheGuestAnswers(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		wantRST := func(t *testing.T, b *bed) {
			if s := b.receive(); s.flags != frame.RST|frame.ACK || s.seq != b.rcv {
				t.Errorf("guest gets %v, want a reset", s)
			}
			b.over()
		}
		t.Run("reset", func(t *testing.T) {
			b := newAccepted(t, fam)
			b.serveAccepted()
			b.called()
			b.host.SetLinger(0)
			b.host.Close()
			wantRST(t, b)
		})
		t.Run("reset before all", func(t *testing.T) {
			b := newAccepted(t, fam)
			b.host.SetLinger(0)
			b.host.Close()
			b.serveAccepted()
			b.called()
			wantRST(t, b)
		})
		t.Run("end", func(t *testing.T) { // which is none
			b := newAccepted(t, fam)
			b.host.Write(data(0, 10))
			b.host.CloseWrite()
			b.establishAccepted(b.serveAccepted)
			b.until("end", func(s seg) bool { return s.flags&frame.FIN != 0 && s.seq+uint32(len(s.data)) == b.rcv+10 })
			b.rcv += 11
			b.send(seg{data: data(0, 20), flags: frame.FIN})
			if got := b.read(20); !bytes.Equal(got, data(0, 20)) {
				t.Error("host gets other bytes")
			}
			b.eof()
			b.over()
		})
		t.Run("engine ends", func(t *testing.T) {
			b := newAccepted(t, fam)
			b.serveAccepted()
			b.called()
			b.port.Stop()
			wantRST(t, b)
			b.wasReset()
		})
	})
}

func TestCallOptionsOnTheSocket(t *testing.T) {
	b := newAccepted(t, families[0])
	b.playAccepted()
	if v, err := unix.GetsockoptInt(b.fd, unix.SOL_TCP, unix.TCP_NODELAY); v != 1 || err != nil {
		t.Errorf("TCP_NODELAY is %d, %v", v, err)
	}
	if b.env.PeekOff4 && !b.c.peekOff {
		t.Error("no peek offset")
	}
}
