package tcp

import (
	"runtime"
	"runtime/debug"
	"testing"

	"golang.org/x/sys/unix"

	"fusilli/tapio/frame"
)

// TestSegmentsAllocateNothing: neither direction of a connection in steady state allocates for a
// segment, with the actor asleep in between or not. A pool that is empty on one CPU while another
// one has all the buffers accounts for a few.
func TestSegmentsAllocateNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	const segments, allowed = 10000, 100
	forFamilies(t, func(t *testing.T, fam family) {
		for _, tt := range []struct {
			name     string
			accepted bool
			round    func(*steady)
		}{
			{"from the guest", false, (*steady).fromGuest},
			{"from the host", false, (*steady).fromHost},
			{"request and response", false, func(s *steady) { s.fromGuest(); s.fromHost() }},
			{"response and request, the host has asked", true, func(s *steady) { s.fromHost(); s.fromGuest() }},
		} {
			t.Run(tt.name, func(t *testing.T) {
				b := newBed(t, fam)
				if tt.accepted {
					b = newAccepted(t, fam)
					b.establishAccepted(b.serveAccepted)
				} else {
					b.establish(b.serve)
				}
				s := newSteady(b)
				for range 100 {
					tt.round(s)
				}
				// A collection empties pools, which is not what is measured.
				defer debug.SetGCPercent(debug.SetGCPercent(-1))
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				for range segments {
					tt.round(s)
				}
				runtime.ReadMemStats(&after)
				if n := after.Mallocs - before.Mallocs; n > allowed {
					t.Errorf("%d allocations for %d segments", n, segments)
				}
			})
		}
	})
}

// steady plays guest and peer of a connection without allocating anything itself.
type steady struct {
	*bed
	fd    int // the peer's socket
	frame []byte
	pkt   frame.Packet
	data  [guestMSS]byte
}

func newSteady(b *bed) *steady {
	s := &steady{bed: b}
	raw, err := b.host.SyscallConn()
	if err != nil {
		b.t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { s.fd = int(fd) })
	s.frame = b.frameOf(seg{flags: frame.ACK, data: s.data[:]})
	if why := frame.Parse(s.frame, &s.pkt); why != frame.OK {
		b.t.Fatal(why)
	}
	return s
}

// offer has the guest send a segment of n bytes.
func (s *steady) offer(n int) {
	pkt := s.pkt
	pkt.End = pkt.Payload + n
	slab := s.pool.Get()
	room := slab.Room()
	copy(room, s.frame)
	frame.PutTCP(room[pkt.L4:], &frame.TCPFields{SrcPort: s.port.Key().GuestPort, DstPort: s.port.Key().RemotePort,
		Seq: s.snd, Ack: s.rcv, Flags: frame.ACK, Window: s.wnd})
	slab.Append(pkt.End, &pkt)
	r := slab.Run(0)
	slab.Release()
	s.snd += uint32(n)
	for !s.port.Offer(r) {
		runtime.Gosched()
	}
}

// next reads the next frame to the guest and returns the segment's acknowledgement and the length
// of its data.
func (s *steady) next() (ack uint32, n int) {
	got, err := s.link.Read(s.buf)
	if err != nil {
		s.t.Fatal(err)
	}
	var p frame.Packet
	if why := frame.Parse(s.buf[:got], &p); why != frame.OK {
		s.t.Fatal(why)
	}
	return frame.TCPHeader(s.buf[p.L4:]).Ack(), p.End - p.Payload
}

// fromGuest moves one segment to the peer and waits for its acknowledgement.
func (s *steady) fromGuest() {
	s.offer(guestMSS)
	for ack := s.snd - 1; ack != s.snd; {
		ack, _ = s.next()
	}
	for left := guestMSS; left > 0; {
		n, err := unix.Read(s.fd, s.data[:left])
		if err != nil && err != unix.EAGAIN && err != unix.EINTR {
			s.t.Fatal(err)
		}
		left -= max(n, 0)
	}
}

// fromHost moves one segment to the guest and acknowledges it.
func (s *steady) fromHost() {
	if n, err := unix.Write(s.fd, s.data[:]); n != guestMSS {
		s.t.Fatal(n, err)
	}
	for left := guestMSS; left > 0; {
		_, n := s.next()
		left -= n
		s.rcv += uint32(n)
	}
	s.offer(0)
}
