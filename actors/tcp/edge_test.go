package tcp

import (
	"bytes"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/tapio/frame"
)

// peerFD calls f with the descriptor of the peer's socket.
func (b *bed) peerFD(f func(fd int) error) {
	b.t.Helper()
	raw, err := b.host.SyscallConn()
	if err != nil {
		b.t.Fatal(err)
	}
	var err2 error
	if err := raw.Control(func(fd uintptr) { err2 = f(int(fd)) }); err != nil || err2 != nil {
		b.t.Fatal(err, err2)
	}
}

// TestUrgentDataIsData: what telnet and rlogin send as urgent arrives in its place in the stream,
// in both directions, and what follows it too.
func TestUrgentDataIsData(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		for _, accepted := range []bool{false, true} {
			b := newBed(t, fam)
			if accepted {
				b = newAccepted(t, fam)
				b.establishAccepted(b.serveAccepted)
			} else {
				b.establish(b.serve)
			}
			b.send(seg{data: data(0, 10)}, seg{data: data(10, 1), flags: frame.URG}, seg{data: data(11, 10)})
			if got := b.read(21); !bytes.Equal(got, data(0, 21)) {
				t.Errorf("host gets %x, want %x", got, data(0, 21))
			}
			b.acked()
			b.peerFD(func(fd int) error {
				unix.Write(fd, data(0, 100))
				// the last byte is
				if err := unix.Send(fd, data(100, 51), unix.MSG_OOB); err != nil {
					return err
				}
				unix.Write(fd, data(151, 49))
				return nil
			})
			for got := 0; got < 200; {
				s := b.receive()
				if s.seq != b.rcv+uint32(got) && len(s.data) > 0 || !bytes.Equal(s.data, data(got, len(s.data))) {
					t.Fatalf("guest gets %v behind %d bytes: %x, want %x", s, got, s.data, data(got, len(s.data)))
				}
				got += len(s.data)
			}
		}
	})
}

// TestBothEndAtOnce: the FIN of either side has left when the other one's comes.
func TestBothEndAtOnce(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		b := newBed(t, fam)
		b.establish(b.play)
		b.host.Write(data(0, 20))
		b.wantData(data(0, 20))
		b.host.CloseWrite()
		for end := time.Now().Add(patience); !b.c.eof; b.c.fromHost() {
			if time.Now().After(end) {
				t.Fatal("the peer's end is not seen")
			}
		}
		b.c.sendFIN()
		if s := b.receive(); s.flags&frame.FIN == 0 || s.seq != b.rcv+20 {
			t.Fatalf("guest gets %v, want FIN", s)
		}
		b.send(seg{data: data(0, 10), flags: frame.FIN}) // acknowledges nothing of that
		b.turn()
		b.read(10)
		b.eof()
		if b.c.finAcked || b.c.over {
			t.Fatal("over before the guest has acknowledged the peer's end")
		}
		b.rcv += 21
		b.send(seg{})
		b.turn()
		for end := time.Now().Add(patience); !b.c.over; b.c.step() {
			if time.Now().After(end) {
				t.Fatal("the connection does not end")
			}
			b.port.SetAlarm(flow.Now() + flow.Time(time.Millisecond))
		}
		if b.c.reset {
			t.Error("the peer is reset")
		}
		b.until("acknowledgement of the guest's end", func(s seg) bool { return s.ack == b.snd && s.flags == frame.ACK })
	})
}

// TestGuestThatForgotTheConnection answers a probe with a reset; then the peer hears of it.
func TestGuestThatForgotTheConnection(t *testing.T) {
	b := newBed(t, families[0])
	b.establish(b.play)
	b.c.fromHost()
	b.c.onTime(b.c.seenAt + keepAlive)
	s := b.receive()
	b.offer(seg{flags: frame.RST, seq: s.ack})
	b.turn()
	if !b.c.over || !b.c.reset {
		t.Error("the connection lives on")
	}
}

// TestGuestProbesAClosedWindow: the answer says what the window is now, with either kind of probe,
// and what lies beyond the window is not taken.
func TestGuestProbesAClosedWindow(t *testing.T) {
	for _, tt := range []struct {
		name string
		data int
		back uint32
	}{{"sequence number before", 0, 1}, {"one byte behind", 1, 0}} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t, families[0])
			b.establish(b.play)
			b.c.fromHost()
			b.shut()
			for range 3 {
				b.offer(seg{flags: frame.ACK, seq: b.snd - tt.back, ack: b.rcv, wnd: b.wnd, data: data(int(b.snd-guestISN-1), tt.data)})
				b.turn()
				b.c.fromHost()
				s := b.receive()
				if s.ack == b.snd+uint32(tt.data) {
					b.snd = s.ack // the window was a little larger than it could be told
				}
				if s.ack != b.snd || s.wnd != 0 {
					t.Fatalf("answer to a probe: %v, want window 0 at %d", s, b.snd)
				}
			}
			// The peer reads, and the announcement gets lost.
			n := int(b.snd - guestISN - 1)
			if got := b.readAll(n); !bytes.Equal(got, data(0, n)) {
				t.Error("host gets other bytes")
			}
			for b.link.TryRead(b.buf); len(b.c.held) > 0; b.c.flush() {
			}
			for k := 1; k != 0; k, _ = b.link.TryRead(b.buf) {
			}
			b.offer(seg{flags: frame.ACK, seq: b.snd - tt.back, ack: b.rcv, wnd: b.wnd, data: data(n, tt.data)})
			b.turn()
			b.c.fromHost()
			if s := b.until("answer", func(s seg) bool { return s.flags == frame.ACK }); int(s.wnd)<<ourScale < guestMSS {
				t.Errorf("answer to a probe: %v, want a window", s)
			}
		})
	}
}

// shut has the guest send until its window is closed, while the peer does not read.
func (b *bed) shut() {
	b.t.Helper()
	for end := time.Now().Add(patience); ; {
		if time.Now().After(end) {
			b.t.Fatal("the window does not close")
		}
		wnd := int(b.c.rcvEdge-b.snd) >> ourScale << ourScale
		if wnd == 0 {
			break
		}
		b.send(seg{data: data(int(b.snd-guestISN-1), min(wnd, 40000))})
		b.turn()
		b.c.fromHost()
		if b.c.port.Written() {
			b.c.written()
		}
	}
	for k := 1; k != 0; k, _ = b.link.TryRead(b.buf) {
	}
}

// readAll reads n bytes at the peer while the played actor moves what it holds.
func (b *bed) readAll(n int) []byte {
	b.t.Helper()
	got := make(chan []byte, 1)
	go func() { got <- b.read(n) }()
	for {
		select {
		case d := <-got:
			return d
		default:
			b.c.flush()
		}
	}
}

// TestWindowOpensInLargeSteps: a peer that reads a little at a time does not have the guest send
// small segments (silly window syndrome: RFC 9293, section 3.8.6.2.2).
func TestWindowOpensInLargeSteps(t *testing.T) {
	b := newBed(t, families[0])
	b.establish(b.play)
	b.c.fromHost()
	b.shut()
	edge := b.c.rcvEdge
	n := int(b.snd - guestISN - 1)
	for left := n; left > 0; {
		k := min(left, 100)
		b.read(k)
		left -= k
		if len(b.c.held) > 0 {
			b.c.flush()
		}
		b.c.openWindow(true)
		if d := b.c.rcvEdge - edge; d != 0 && d < guestMSS {
			t.Fatalf("the window opens by %d bytes, with %d to be read", d, left)
		}
		edge = b.c.rcvEdge
	}
	if edge-b.snd < guestMSS {
		t.Error("the window stays closed")
	}
}

// TestGuestWithASmallWindow: no small segment is sent while others are on the way, and what fits is
// when nothing is (RFC 9293, section 3.8.6.2.1).
func TestGuestWithASmallWindow(t *testing.T) {
	b := newBed(t, families[0])
	b.wnd = (2*guestMSS + 100) >> 7
	b.establish(b.play)
	b.turn()
	all := data(0, 8*guestMSS)
	b.host.Write(all)
	b.wantData(all[:2*guestMSS])
	for range 3 {
		b.c.fromHost()
		b.quiet()
	}
	b.rcv += 2 * guestMSS
	b.wnd = 500 >> 7
	b.send(seg{})
	b.turn()
	b.wantData(all[2*guestMSS : 2*guestMSS+500>>7<<7])
}

// TestOldAcknowledgements: a segment from long ago is answered, and nothing in it is believed (RFC
// 5961, section 5).
func TestOldAcknowledgements(t *testing.T) {
	b := newBed(t, families[0])
	b.establish(b.play)
	b.c.fromHost()
	for _, tt := range []struct {
		name string
		ack  uint32
	}{
		{"of the future", b.rcv + 1},
		{"far in the future", b.rcv + 1<<30},
		{"of the past", b.rcv - 1<<30},
	} {
		b.offer(seg{flags: frame.ACK, seq: b.snd, ack: tt.ack, wnd: 0, data: data(0, 10)})
		b.turn()
		b.c.fromHost()
		if s := b.receive(); s.flags != frame.ACK || s.ack != b.snd {
			t.Errorf("acknowledgement %s: %v, want a challenge at %d", tt.name, s, b.snd)
		}
		if b.c.guestWnd == 0 {
			t.Errorf("acknowledgement %s has closed the window", tt.name)
		}
	}
	b.send(seg{data: data(0, 10)})
	b.turn()
	if got := b.read(10); !bytes.Equal(got, data(0, 10)) {
		t.Error("host gets other bytes")
	}
}

// TestKeepAliveOpensTheWindow: a guest that has lost its announcement says in a keep-alive what its
// window is.
func TestKeepAliveOpensTheWindow(t *testing.T) {
	b := newBed(t, families[0])
	b.establish(b.play)
	b.send(seg{data: data(0, 10)})
	b.turn()
	b.wnd = 0
	b.send(seg{})
	b.turn()
	b.host.Write(data(0, 100))
	b.c.fromHost()
	for k := 1; k != 0; k, _ = b.link.TryRead(b.buf) {
	}
	b.offer(seg{flags: frame.ACK, seq: b.snd - 1, ack: b.rcv, wnd: 4096})
	b.turn()
	b.wantData(data(0, 100))
}
