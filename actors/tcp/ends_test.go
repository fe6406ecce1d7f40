package tcp

import (
	"bytes"
	"testing"
	"time"

	"fusilli/actors/flow"
	"fusilli/tapio/frame"
)

// peerEnds has the peer end its direction, and the played actor see that and tell the guest.
func (b *bed) peerEnds() {
	b.t.Helper()
	b.host.CloseWrite()
	for end := time.Now().Add(patience); !b.c.eof; b.c.fromHost() {
		if time.Now().After(end) {
			b.t.Fatal("the peer's end is not seen")
		}
	}
	b.c.sendFIN()
}

// TestWindowOpensBehindTheEnd: a guest that has ended its direction, and whose window was closed,
// goes on to receive when it opens.
func TestWindowOpensBehindTheEnd(t *testing.T) {
	b := newBed(t, families[0])
	b.establish(b.play)
	b.wnd = 0
	b.send(seg{data: data(0, 10), flags: frame.FIN})
	b.turn()
	b.read(10)
	b.eof()
	b.host.Write(data(0, 100))
	for range 3 {
		b.c.fromHost()
		b.c.onTime(b.c.rtoAt)
		b.until("probe", func(s seg) bool {
			if len(s.data) > 0 {
				t.Fatalf("%v into a closed window", s)
			}
			return s.seq == b.rcv-1
		})
		b.send(seg{})
		b.turn()
	}
	b.wnd = 4096
	b.send(seg{})
	b.turn()
	for k := 1; k != 0; k, _ = b.link.TryRead(b.buf) { // acknowledgements
	}
	b.wantData(data(0, 100))
}

// TestLossBehindAnEnd: one lost segment is sent again at once, whichever direction has ended.
func TestLossBehindAnEnd(t *testing.T) {
	for _, tt := range []struct {
		name        string
		guest, peer bool // has ended
	}{{"guest has ended", true, false}, {"peer has ended", false, true}, {"both have ended", true, true}} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t, families[0])
			b.establish(b.play)
			if tt.guest {
				b.send(seg{flags: frame.FIN})
				b.turn()
				b.eof()
			}
			all := data(0, 4*guestMSS)
			b.host.Write(all)
			for got := 0; got < len(all); {
				b.c.fromHost()
				if n, _ := b.link.TryRead(b.buf); n > 0 {
					s, err := b.decode(b.buf[:n])
					if err != nil || !bytes.HasPrefix(all[got:], s.data) {
						t.Fatalf("guest gets %v, %v", s, err)
					}
					got += len(s.data)
				}
			}
			if tt.peer {
				b.peerEnds()
			}
			for k := 1; k != 0; k, _ = b.link.TryRead(b.buf) {
			}
			b.send(seg{}, seg{}, seg{})
			b.turn()
			if s := b.receive(); s.seq != b.rcv || !bytes.Equal(s.data, all[:guestMSS]) {
				t.Errorf("guest gets %v", s)
			}
			// The acknowledgement shows whether something else is missing: the peer's end, and not
			// the data.
			b.rcv += 4 * guestMSS
			b.send(seg{})
			b.turn()
			if !tt.peer {
				b.quiet()
				return
			}
			if s := b.receive(); s.seq != b.rcv || s.flags&frame.FIN == 0 || len(s.data) > 0 {
				t.Errorf("guest gets %v, want the end at %d", s, b.rcv)
			}
		})
	}
}

// TestEndAcknowledgesWhatHasCome: a guest whose data and our end cross learns with the end that the
// data has arrived.
func TestEndAcknowledgesWhatHasCome(t *testing.T) {
	b := newBed(t, families[0])
	b.establish(b.play)
	b.send(seg{data: data(0, 1000)})
	b.turn()
	b.peerEnds()
	s := b.until("end", func(s seg) bool { return s.flags&frame.FIN != 0 })
	if s.ack != b.snd || s.seq != b.rcv {
		t.Errorf("guest gets %v, want an acknowledgement of %d", s, b.snd)
	}
}

// TestNothingIsAcknowledgedTwice: a guest that sends no more is told no more, until it is asked
// whether it is still there.
func TestNothingIsAcknowledgedTwice(t *testing.T) {
	for _, tt := range []struct {
		name string
		gate bool
	}{{"link with offloads", false}, {"link without", true}} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t, families[0])
			if tt.gate {
				b.env.Backpressure = gate{}
			}
			b.establish(b.play)
			b.c.prompt = 0
			b.send(seg{data: data(0, 3*guestMSS)})
			b.turn()
			b.read(3 * guestMSS)
			for i := range 5 {
				b.c.fromHost()
				b.c.onTime(flow.Now() + flow.Time(i)*ackDelay)
			}
			b.c.fromHost()
			if s := b.receive(); s.ack != b.snd {
				t.Errorf("guest gets %v, want an acknowledgement of %d", s, b.snd)
			}
			for i := range 20 {
				b.c.onTime(flow.Now() + flow.Time(i)*flow.Time(time.Second))
				b.c.fromHost()
			}
			b.quiet()
		})
	}
}

// TestManySmallSegmentsFillASocket: what the guest sends in them takes more of the kernel's memory
// than of its window. All of it arrives, and what has to be held for the socket stays within
// bounds.
func TestManySmallSegmentsFillASocket(t *testing.T) {
	const size = 50
	b := newBed(t, families[0])
	b.establish(b.play)
	b.host.SetReadBuffer(64 << 10)
	b.c.fromHost()
	n := 0
	for end := time.Now().Add(patience); ; {
		if time.Now().After(end) {
			t.Fatal("the window does not close")
		}
		wnd := int(b.c.rcvEdge-b.snd) >> ourScale << ourScale
		if wnd < size {
			break
		}
		var row []seg
		for range min(wnd/size, 30) {
			row = append(row, seg{data: data(n, size)})
			n += size
		}
		b.send(row...)
		b.turn()
		b.c.fromHost()
		if b.c.port.Written() {
			b.c.written()
		}
		if b.c.heldLen > headroom+maxWindow {
			t.Fatalf("%d bytes are held", b.c.heldLen)
		}
		for k := 1; k != 0; k, _ = b.link.TryRead(b.buf) {
		}
	}
	if got := b.readAll(n); !bytes.Equal(got, data(0, n)) {
		t.Error("host gets other bytes")
	}
}
