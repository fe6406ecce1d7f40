package tcp

import (
	"fmt"
	"io"
	"testing"
	"time"

	"fusilli/internal/leaktest"
	"fusilli/tapio/frame"
)

// FuzzHandshake has a guest send any segments while its connection is being made: four bytes each, for flags,
// place in the stream, acknowledgement, and length. One byte behind them has the host ask for the connection.
// A guest that goes on as it should afterwards gets a connection that carries its stream, or was told that
// there is none, as was the peer.
func FuzzHandshake(f *testing.F) {
	const syn, ack, fin, rst = frame.SYN, frame.ACK, frame.FIN, frame.RST
	for _, ops := range [][]byte{
		nil,
		{1},
		{syn, 0, 0, 0},
		{ack, 129, 0, 10, ack, 129, 0, 20},
		{ack, 129, 200, 10},
		{ack | fin, 129, 0, 10},
		{fin, 129, 0, 0, syn | fin, 0, 0, 0},
		{rst, 129, 0, 0},
		{rst | ack, 129, 0, 0, 1},
		{rst, 140, 0, 0, 1},
		{syn, 0, 0, 0, 1},
		{syn, 0, 0, 0, syn | ack, 0, 0, 0, 1},
		{syn, 0, 0, 0, ack, 129, 0, 9, 1},
		{syn | ack, 0, 200, 0, syn | ack, 0, 0, 0, 1},
		{syn | ack, 0, 0, 50, ack, 129, 0, 50, 1},
		{syn | fin, 0, 0, 0, 1},
		{ack, 129, 0, 10, ack, 150, 0, 10, 1},
		{0, 0, 0, 0, ack | syn | fin | rst, 0, 0, 0, 1},
	} {
		f.Add(ops)
	}
	f.Fuzz(func(t *testing.T, ops []byte) {
		g := newShaking(t, len(ops)%4 == 1)
		for n := 0; len(ops) >= 4 && n < 32; n++ {
			g.any(ops[0], ops[1], ops[2], ops[3])
			ops = ops[4:]
		}
		g.conclude()
	})
}

// shaking is the guest of FuzzHandshake and its peer.
type shaking struct {
	*fuzzGuest
	accepted bool
	odd      bool // the guest has sent what makes no sense while a connection is made
	known    bool // isn is, under mu
	begun    bool // its SYN is acknowledged, under mu
}

func newShaking(t *testing.T, accepted bool) *shaking {
	leaktest.NothingLeft(t, patience)
	g := &shaking{fuzzGuest: &fuzzGuest{ends: map[int]bool{}, peerDone: make(chan struct{})}, accepted: accepted}
	if accepted {
		g.bed = newAccepted(t, families[0])
		g.serveAccepted()
	} else {
		g.bed = newBed(t, families[0])
		g.sendSYN()
		g.serve()
		var err error
		if g.host, err = g.listen.AcceptTCP(); err != nil {
			t.Fatal(err)
		}
	}
	g.host.SetDeadline(time.Now().Add(patience))
	g.peer.Go(func() {
		defer close(g.peerDone)
		g.got, g.peerErr = io.ReadAll(g.host)
	})
	g.peer.Go(g.look)
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Microsecond) {
		g.mu.Lock()
		known := g.known
		g.mu.Unlock()
		if known {
			return g
		}
		if time.Now().After(end) {
			t.Fatal("the guest hears nothing")
		}
	}
}

// look looks at what the guest receives until the link is closed.
func (g *shaking) look() {
	buf := make([]byte, frame.MaxFrame)
	for {
		n, err := g.link.Read(buf)
		if err != nil {
			return
		}
		s, err := g.decode(buf[:n])
		g.mu.Lock()
		switch {
		case err != nil:
		case s.flags&frame.RST != 0:
		case s.flags&frame.SYN != 0:
			if g.known && s.seq != g.isn {
				err = fmt.Errorf("another SYN: %v, the first had %d", s, g.isn)
			}
			g.isn, g.known = s.seq, true
			if s.flags&frame.ACK != 0 {
				g.begun = true
				if s.ack != guestISN+1 {
					err = fmt.Errorf("acknowledgement of another SYN: %v", s)
				}
			}
		default:
			g.begun = true
			err = g.see(s)
		}
		if g.err == nil {
			g.err = err
		}
		g.mu.Unlock()
	}
}

// any sends one segment.
func (g *shaking) any(flags, place, ack, n byte) {
	g.mu.Lock()
	s := seg{flags: flags & (frame.FIN | frame.SYN | frame.RST | frame.ACK | frame.PSH | frame.URG), wnd: uint16(n) * 200, ack: g.isn + 1}
	g.mu.Unlock()
	if ack >= 128 {
		s.ack += uint32(near(ack))
	}
	at := near(place) - 1
	if s.flags&frame.SYN != 0 {
		at, s.opt = -1, synOptions
		if place == 255 && !g.accepted {
			at = 1 << 28 // of another connection
		}
		g.odd = g.odd || s.flags&(frame.FIN|frame.RST) != 0 || g.accepted && s.flags&frame.ACK == 0 && s.flags&frame.URG != 0
	} else if at >= 0 && at < 1<<20 {
		s.data = data(at, int(n))
	}
	s.seq = guestISN + 1 + uint32(at)
	if s.flags&frame.FIN != 0 {
		g.ends[at+len(s.data)] = true
	}
	g.reset = g.reset || s.flags&frame.RST != 0
	if !g.port.Gone() {
		g.offer(s)
	}
}

// conclude has the guest do as it should until both streams have ended, and checks what came.
func (g *shaking) conclude() {
	const total = 1 << 18 // more than any operation can reach
	t := g.t
	g.peerWrite(data(0, 5000))
	g.host.CloseWrite()
	g.written = 5000
	tick := time.NewTicker(200 * time.Microsecond)
	defer tick.Stop()
	g.ends[total] = true
	for end := time.Now().Add(patience); !g.port.Gone(); <-tick.C {
		acked, ours, fin := g.seen()
		g.mu.Lock()
		isn, begun := g.isn, g.begun
		g.mu.Unlock()
		if time.Now().After(end) {
			t.Fatalf("does not end: begun %v, %d acknowledged, %d bytes received, end %v", begun, acked, ours, fin)
		}
		if !begun {
			g.offer(seg{flags: frame.SYN | frame.ACK, seq: guestISN, ack: isn + 1, wnd: 64240, opt: synOptions})
			continue
		}
		s := seg{flags: frame.ACK, seq: guestISN + 1 + uint32(acked), ack: isn + 1 + uint32(ours), wnd: 4096}
		if fin {
			s.ack++
		}
		if acked < total {
			s.data = data(acked, min(total-acked, 40000))
		}
		if acked+len(s.data) == total {
			s.flags |= frame.FIN
		}
		g.offer(s)
	}
	g.over()
	<-g.peerDone
	g.link.Close()
	g.peer.Wait()
	g.seen()
	g.verdict(g.reset || g.odd)
}
