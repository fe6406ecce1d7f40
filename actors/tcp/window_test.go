package tcp

import (
	"bytes"
	"testing"

	"fusilli/actors/flow"
	"fusilli/tapio/frame"
)

// handshakes are the ways to synReceived, and to the answer that the guest waits for there.
var handshakes = []struct {
	name  string
	begin func(*bed)
}{
	{"guest asks", func(b *bed) {
		b.sendSYN()
		b.play()
		s := b.receive()
		b.rcv, b.snd = s.seq+1, guestISN+1
		var err error
		if b.host, err = b.listen.AcceptTCP(); err != nil {
			b.t.Fatal(err)
		}
	}},
	{"both ask", func(b *bed) {
		b.playAccepted()
		b.called()
		b.sendSYN()
		b.turn()
		b.receive()
	}},
}

// TestGuestGetsDataAfterAStrayAnswer: what has the right acknowledgement, but does not lie in the
// window, does not complete the handshake (RFC 9293, section 3.10.7.4). Its window would be
// believed and that of all that follows would not, for it is older: the guest would get no data.
func TestGuestGetsDataAfterAStrayAnswer(t *testing.T) {
	const challenge = frame.ACK
	for _, hs := range handshakes {
		for _, tt := range []struct {
			name   string
			seg    seg // sequence number and acknowledgement relative to those expected
			answer uint8
		}{
			{"just beyond the window", seg{flags: frame.ACK, seq: 65536}, challenge},
			{"far beyond the window", seg{flags: frame.ACK, seq: 1 << 30}, challenge},
			{"data beyond the window", seg{flags: frame.ACK, seq: 1 << 20, data: data(0, 100)}, challenge},
			{"end beyond the window", seg{flags: frame.ACK | frame.FIN, seq: 1 << 20}, challenge},
			{"just before the window", seg{flags: frame.ACK, seq: 1<<32 - 1}, challenge},
			{"one byte before the window", seg{flags: frame.ACK, seq: 1<<32 - 2, data: data(0, 1)}, challenge},
			{"far before the window", seg{flags: frame.ACK, seq: 1 << 31}, challenge},
			{"data before the window", seg{flags: frame.ACK, seq: 1<<32 - 100, data: data(0, 99)}, challenge},
			{"SYN of another connection", seg{flags: frame.SYN, seq: 1 << 30}, challenge},
			{"SYN,ACK beyond the window", seg{flags: frame.SYN | frame.ACK, seq: 1 << 30}, challenge},
			{"SYN,ACK in the window", seg{flags: frame.SYN | frame.ACK, seq: 100}, challenge},
			{"other acknowledgement", seg{flags: frame.ACK, ack: 1}, frame.RST},
			{"other acknowledgement beyond the window", seg{flags: frame.ACK, seq: 1 << 30, ack: 1<<32 - 1}, frame.RST},
			{"SYN,ACK for another SYN", seg{flags: frame.SYN | frame.ACK, seq: 1<<32 - 1, ack: 9}, frame.RST},
			{"reset in the window", seg{flags: frame.RST, seq: 1}, challenge},
			{"reset beyond the window", seg{flags: frame.RST, seq: 65536}, 0},
			{"reset before the window", seg{flags: frame.RST, seq: 1<<32 - 1}, 0},
			{"no acknowledgement", seg{seq: 0, data: data(0, 10)}, 0},
		} {
			t.Run(hs.name+"/"+tt.name, func(t *testing.T) {
				b := newBed(t, families[0])
				if hs.name == "both ask" {
					b = newAccepted(t, families[0])
				}
				hs.begin(b)
				in := tt.seg
				in.seq += b.snd
				in.ack += b.rcv
				b.offer(in)
				b.turn()
				b.c.fromHost()
				if b.c.state != synReceived || b.c.over {
					t.Fatalf("state %d, over %v, want synReceived", b.c.state, b.c.over)
				}
				if tt.answer != 0 {
					s := b.receive()
					want := b.rcv
					if tt.answer == frame.RST {
						want = in.ack
					}
					if s.flags != tt.answer || s.seq != want || s.flags&frame.ACK != 0 && s.ack != b.snd {
						t.Errorf("answer is %v, want flags %02x", s, tt.answer)
					}
				}
				b.quiet()
				b.send(seg{})
				b.turn()
				b.host.Write(data(0, 100))
				b.wantData(data(0, 100))
				b.send(seg{data: data(0, 10)})
				b.turn()
				if got := b.read(10); !bytes.Equal(got, data(0, 10)) {
					t.Error("host gets other bytes")
				}
			})
		}
	}
}

// TestGuestRestartsInTheHandshake: a guest that asks again from the same ports, with another
// sequence number, hears of the connection that it has forgotten, and its reset of that frees the
// ports.
func TestGuestRestartsInTheHandshake(t *testing.T) {
	b := newBed(t, families[0])
	handshakes[0].begin(b)
	b.offer(seg{flags: frame.SYN, seq: b.snd + 1<<28, wnd: 64240, opt: synOptions})
	b.turn()
	b.c.fromHost()
	s := b.receive()
	if s.flags != frame.ACK || s.ack != b.snd {
		t.Fatalf("answer is %v, want a challenge at %d", s, b.snd)
	}
	b.offer(seg{flags: frame.RST, seq: s.ack}) // RFC 9293, section 3.10.7.3
	b.turn()
	if !b.c.over || !b.c.reset {
		t.Error("the connection lives on")
	}
}

// TestSegmentsOutsideTheWindowAreNotBelieved: on an established connection neither the
// acknowledgement nor the window of a segment counts that does not lie in the window, and it is
// answered.
func TestSegmentsOutsideTheWindowAreNotBelieved(t *testing.T) {
	for _, tt := range []struct {
		name string
		seq  uint32 // relative to what is expected
		n    int
		fl   uint8
	}{
		{"just beyond", 1<<20 + 1<<19, 0, 0},
		{"far beyond", 1 << 30, 0, 0},
		{"data beyond", 1 << 30, 100, 0},
		{"end beyond", 1 << 30, 0, frame.FIN},
		{"before", 1<<32 - 2, 0, 0},
		{"far before", 1<<32 - 1<<30, 0, 0},
		{"the other half", 1 << 31, 0, 0},
		{"data before", 1<<32 - 100, 50, 0},
		{"end before", 1<<32 - 100, 0, frame.FIN},
		{"data and an end before", 1<<32 - 100, 98, frame.FIN},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t, families[0])
			b.establish(b.play)
			b.send(seg{data: data(0, 200)})
			b.turn()
			b.read(200)
			b.host.Write(data(0, 300))
			b.wantData(data(0, 300))
			for k := 1; k != 0; k, _ = b.link.TryRead(b.buf) {
			}
			una, wl1, wnd := b.c.sndUna, b.c.wl1, b.c.guestWnd
			b.offer(seg{flags: frame.ACK | tt.fl, seq: b.snd + tt.seq, ack: b.rcv + 300, wnd: 1, data: data(0, tt.n)})
			b.turn()
			b.c.fromHost()
			if b.c.sndUna != una || b.c.wl1 != wl1 || b.c.guestWnd != wnd || b.c.guestFIN {
				t.Errorf("acknowledged %d, window %d from %d, end %v; were %d, %d, %d and none", b.c.sndUna, b.c.guestWnd,
					b.c.wl1, b.c.guestFIN, una, wnd, wl1)
			}
			if s := b.receive(); s.flags != frame.ACK || s.ack != b.snd {
				t.Errorf("answer is %v, want an acknowledgement of %d", s, b.snd)
			}
			b.quiet()
		})
	}
}

// TestFullWindowHearsAcknowledgements: a guest that has filled the window, with a gap in what came,
// sends acknowledgements from its right edge; they count.
func TestFullWindowHearsAcknowledgements(t *testing.T) {
	b := newBed(t, families[0])
	b.establish(b.play)
	b.host.Write(data(0, 300))
	b.wantData(data(0, 300))
	b.offer(seg{flags: frame.ACK, seq: b.c.rcvEdge, ack: b.rcv + 300, wnd: b.wnd})
	b.turn()
	if b.c.sndUna != b.rcv+300 {
		t.Errorf("%d is acknowledged, want %d", b.c.sndUna, b.rcv+300)
	}
}

// TestRepeatedDataAcknowledges: a guest that repeats its last segment, since our acknowledgement
// was lost, says in it what it has received; that counts.
func TestRepeatedDataAcknowledges(t *testing.T) {
	b := newBed(t, families[0])
	b.establish(b.play)
	b.send(seg{data: data(0, 200)})
	b.turn()
	b.host.Write(data(0, 300))
	b.wantData(data(0, 300))
	b.offer(seg{flags: frame.ACK, seq: b.snd - 200, ack: b.rcv + 300, wnd: b.wnd, data: data(0, 200)})
	b.turn()
	if b.c.sndUna != b.rcv+300 {
		t.Errorf("%d is acknowledged, want %d", b.c.sndUna, b.rcv+300)
	}
}

// TestNothingBeforeTheSYNACK: while the host's socket connects the guest gets no segment, whatever
// it sends.
func TestNothingBeforeTheSYNACK(t *testing.T) {
	for _, s := range []seg{
		{flags: frame.RST, seq: 100},
		{flags: frame.ACK, seq: 0, ack: 1},
		{flags: frame.SYN, seq: 1 << 30},
		{flags: frame.SYN | frame.ACK, seq: 1<<32 - 1, ack: 1},
		{flags: frame.FIN | frame.ACK, seq: 0, ack: 1},
		{flags: frame.FIN},
	} {
		t.Run(s.String(), func(t *testing.T) {
			b := newBed(t, families[0])
			b.c = &conn{env: b.env, port: b.port, fd: -1, rcvNxt: b.snd + 1, ackSent: b.snd + 1, rcvEdge: b.snd + 65536}
			b.c.begin()
			s.seq += guestISN + 1
			s.ack += b.c.sndNxt
			b.offer(s)
			b.turn()
			b.c.fromHost()
			b.quiet()
			if b.c.over || b.c.state != connecting {
				t.Errorf("state %d, over %v", b.c.state, b.c.over)
			}
		})
	}
}

// TestOnlyASYNReplacesAConnection: when both directions have ended, a SYN that opens a connection
// takes the ports over, and nothing else that has the flag.
func TestOnlyASYNReplacesAConnection(t *testing.T) {
	for _, fl := range []uint8{frame.SYN | frame.ACK, frame.SYN | frame.FIN} {
		b := newBed(t, families[0])
		b.establish(b.play)
		b.c.shut, b.c.finSent, b.c.finOnce, b.c.guestFIN = true, true, true, true
		b.c.sndNxt++
		b.c.sndMax++
		b.c.rtoAt = flow.Now()
		b.offer(seg{flags: fl, seq: b.snd + 1<<20, ack: b.rcv + 1, wnd: b.wnd})
		b.turn()
		if b.c.over || !b.c.ackNow {
			t.Errorf("flags %02x: over %v, answer %v, want a challenge", fl, b.c.over, b.c.ackNow)
		}
	}
}
