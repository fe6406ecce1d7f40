package tcp

import (
	"bytes"
	"testing"
	"time"

	"fusilli/actors/flow"
	"fusilli/tapio/frame"
)

// occupy has others hold all of the budget but for left bytes. They are given back by what it
// returns.
func (b *bed) occupy(left int) (release func()) {
	b.t.Helper()
	var list []*flow.Credit
	for b.env.Held.Free() > left {
		c := new(flow.Credit)
		if n := min(b.env.Held.Free()-left, b.env.Held.Free()/2); !c.Take(&b.env.Held, max(n, 1)) {
			break
		}
		list = append(list, c)
	}
	return func() {
		for _, c := range list {
			c.Give(&b.env.Held, c.Used())
		}
		list = nil
	}
}

// unread has the guest send to a peer that reads nothing, size bytes at a time, until its window
// closes or something is refused. It returns what was sent.
func (b *bed) unread(size int) (sent int) {
	b.t.Helper()
	for end := time.Now().Add(patience); int32(b.c.rcvEdge-b.snd) >= int32(size) && b.c.rcvNxt == b.snd; {
		if time.Now().After(end) {
			b.t.Fatal("the window does not close")
		}
		b.drain()
		b.send(seg{data: data(sent, size)})
		sent += size
		b.turn()
		if b.c.port.Written() {
			b.c.written()
		}
		b.c.fromHost()
	}
	return sent
}

// drain returns the last segment that has come to the guest.
func (b *bed) drain() (s seg) {
	b.t.Helper()
	for {
		n, _ := b.link.TryRead(b.buf)
		if n == 0 {
			return s
		}
		var err error
		if s, err = b.decode(b.buf[:n]); err != nil {
			b.t.Fatal(err)
		}
	}
}

// TestNoRoomIsNotAcknowledged: when neither the socket nor the budget of all flows has room, the
// guest keeps what it sends, with a window that is closed. Once the peer reads, it sends that
// again, and all arrives.
func TestNoRoomIsNotAcknowledged(t *testing.T) {
	for _, tt := range []struct {
		name string
		last uint8
	}{{"data", 0}, {"data and FIN", frame.FIN}} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t, families[0])
			b.establish(b.play)
			b.host.SetReadBuffer(64 << 10)
			release := b.occupy(0)
			defer release()
			n := b.unread(1000)
			if b.c.heldLen != 0 {
				t.Fatalf("%d bytes are held, the budget is used up", b.c.heldLen)
			}
			// A guest that sends what is beyond its window, in spite of that.
			for b.c.rcvNxt == b.snd {
				b.c.rcvEdge = b.snd + 1<<20
				b.drain()
				b.send(seg{data: data(n, 1000)})
				n += 1000
				b.turn()
				b.c.fromHost()
			}
			if b.c.heldLen != 0 || b.env.Counters.HeldRefused.Load() == 0 {
				t.Errorf("%d bytes are held", b.c.heldLen)
			}
			// What it acknowledges meanwhile counts, although it has sent more than it is allowed
			// now.
			b.offer(seg{flags: frame.ACK, seq: b.snd, ack: b.rcv, wnd: 999})
			b.turn()
			b.c.fromHost()
			if want := uint32(999) << b.c.guestScale; b.c.guestWnd != want {
				t.Errorf("the guest's window is %d, want %d", b.c.guestWnd, want)
			}
			got := int(b.c.rcvNxt - guestISN - 1)
			if s := b.drain(); s.ack != b.c.rcvNxt || uint32(s.wnd) != (b.c.rcvEdge-b.c.rcvNxt)>>ourScale {
				t.Errorf("the guest is told %v, want ack %d and %d of window", s, b.c.rcvNxt, b.c.rcvEdge-b.c.rcvNxt)
			}
			if tt.last != 0 {
				b.snd = b.c.rcvNxt
				b.c.rcvEdge = b.snd + 1<<20
				b.send(seg{data: data(got, 100), flags: tt.last})
				b.turn()
				b.c.fromHost()
				if s := b.drain(); b.c.guestFIN || s.ack != b.c.rcvNxt {
					t.Errorf("FIN counts, without what is before it: %v", s)
				}
				got = int(b.c.rcvNxt - guestISN - 1)
			}
			first := b.readAll(got)
			release()
			// The guest repeats the rest.
			b.snd = b.c.rcvNxt
			b.c.openWindow(true)
			b.send(seg{data: data(got, 5000), flags: tt.last})
			b.turn()
			rest := b.readAll(5000)
			if !bytes.Equal(append(first, rest...), data(0, got+5000)) {
				t.Error("host gets other bytes")
			}
			if b.c.guestFIN != (tt.last != 0) {
				t.Errorf("FIN: %v", b.c.guestFIN)
			}
		})
	}
}

// TestWindowOpensByItself when the peer of a flow reads again, which had no headroom.
func TestWindowOpensByItself(t *testing.T) {
	b := newBed(t, families[0])
	defer b.occupy(0)()
	b.establish(b.serve)
	b.host.SetReadBuffer(64 << 10)
	n, edge := 0, b.snd+leastWindow
	for int32(edge-b.snd) > 1<<ourScale {
		k := min(int(edge-b.snd), guestMSS)
		b.send(seg{data: data(n, k)})
		n += k
		s := b.until("acknowledgement", func(s seg) bool { return s.ack == b.snd })
		edge = s.ack + uint32(s.wnd)<<ourScale
	}
	if got := b.read(n); !bytes.Equal(got, data(0, n)) {
		t.Error("host gets other bytes")
	}
	b.until("a wide window", func(s seg) bool { return s.ack == b.snd && s.wnd > leastWindow>>ourScale })
	if b.env.Counters.HeldRefused.Load() != 0 {
		t.Error("a guest that keeps to its window has lost something")
	}
}

// TestFirstWindowShrinks when others hold much: to what the socket has room for.
func TestFirstWindowShrinks(t *testing.T) {
	b := newBed(t, families[0])
	defer b.occupy(0)()
	b.sendSYN()
	b.play()
	s := b.receive()
	free, _ := sendRoom(b.c.fd)
	if want := uint16(min(max(free, leastWindow), 65535)); s.wnd != want || b.c.rcvEdge != s.ack+uint32(want) {
		t.Errorf("window %d, want %d", s.wnd, want)
	}
}

// TestBeyondTheWindowIsCounted, and not kept.
func TestBeyondTheWindowIsCounted(t *testing.T) {
	b := newBed(t, families[0])
	b.establish(b.play)
	b.offer(seg{flags: frame.ACK, seq: b.c.rcvEdge + 1, ack: b.rcv, wnd: b.wnd, data: data(0, 100)})
	b.turn()
	if n := b.env.Counters.Unasked.Load(); n != 1 || b.c.credit.Used() != 0 {
		t.Errorf("counted %d times, %d bytes are held", n, b.c.credit.Used())
	}
}

// TestSmallSegmentsCostMore than their bytes: what holds them counts as well.
func TestSmallSegmentsCostMore(t *testing.T) {
	b := newBed(t, families[0])
	b.establish(b.play)
	b.host.SetReadBuffer(64 << 10)
	for b.c.heldLen == 0 {
		b.c.rcvEdge = b.snd + 1<<20
		b.drain()
		b.send(seg{data: data(0, 1000)})
		b.turn()
		b.c.fromHost()
	}
	b.c.promise(0)
	before := b.c.credit.Used()
	for range 20 {
		b.send(seg{data: data(0, 1)})
		b.turn()
		b.c.promise(0)
	}
	if got := b.c.credit.Used() - before; got != 20*(1+chunkCost) {
		t.Errorf("20 bytes in 20 segments count as %d, want %d", got, 20*(1+chunkCost))
	}
}
