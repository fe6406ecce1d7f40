package tcp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/internal/leaktest"
	"fusilli/tapio/frame"
)

// The operations of FuzzSegments: four bytes each.
const (
	opData  = iota // a segment at an offset from what was acknowledged
	opFlags        // one with any flags
	opAck          // an acknowledgement near what was received
	opHost         // the peer sends
	opEnd          // the peer ends its direction
	opRun          // what was collected is handed over in one run
	numOps
)

// FuzzSegments has a guest send any segments on an established connection. The guest's stream is the
// same bytes at each place whatever segment carries them, so that whatever arrives out of order, twice
// or not at all is seen by the peer; it must get the stream up to an end that the guest has sent, and
// nothing else. The other direction is checked in the same way. One byte behind the operations has the
// host ask for the connection.
func FuzzSegments(f *testing.F) {
	for _, ops := range [][]byte{
		nil,
		{opData, 0, 10, 0, opRun, 0, 0, 0},
		{opData, 0, 200, 0, opData, 0, 200, 0, opData, 128, 40, 0, opRun, 0, 0, 0},
		{opData, 0, 10, 5, opData, 140, 10, 5, opRun, 0, 0, 0, opData, 120, 20, 5, opRun, 0, 0, 0},
		{opFlags, frame.FIN | frame.ACK, 0, 0, opRun, 0, 0, 0, opData, 0, 9, 0, opRun, 0, 0, 0},
		{opFlags, frame.FIN | frame.ACK, 3, 0, opFlags, frame.RST, 0, 0, opRun, 0, 0, 0},
		{opFlags, frame.RST, 0, 0, opRun, 0, 0, 0},
		{opFlags, frame.SYN, 0, 0, opRun, 0, 0, 0, opFlags, frame.SYN | frame.ACK, 1, 0, opRun, 0, 0, 0},
		{opHost, 200, 0, 0, opAck, 128, 0, 0, opRun, 0, 0, 0, opHost, 20, 0, 0, opAck, 129, 255, 0, opRun, 0, 0, 0, opEnd, 0, 0, 0},
		{opAck, 128, 0, 0, opAck, 128, 0, 0, opAck, 128, 0, 0, opAck, 128, 0, 0, opRun, 0, 0, 0, opHost, 255, 0, 0},
		{opHost, 255, 0, 0, opAck, 127, 16, 0, opAck, 127, 16, 0, opAck, 127, 16, 0, opAck, 127, 16, 0, opRun, 0, 0, 0},
		{opEnd, 0, 0, 0, opFlags, frame.FIN | frame.ACK, 0, 0, opRun, 0, 0, 0, opAck, 129, 0, 0, opRun, 0, 0, 0},
		{1},
		{opHost, 200, 0, 0, opEnd, 0, 0, 0, opData, 0, 10, 0, opRun, 0, 0, 0, opFlags, frame.FIN | frame.ACK, 0, 0, opRun, 0, 0, 0, 1},
	} {
		f.Add(ops)
	}
	f.Fuzz(func(t *testing.T, ops []byte) {
		g := newFuzzGuest(t, len(ops)%4 == 1)
		for len(ops) >= 4 && g.ops < 64 {
			g.do(ops[0]%numOps, ops[1], ops[2], ops[3])
			ops = ops[4:]
			g.ops++
		}
		g.finish()
	})
}

// fuzzGuest is the guest of FuzzSegments and its peer.
type fuzzGuest struct {
	*bed
	ops     int
	segs    []seg
	ends    map[int]bool // where the guest's stream has ended, by one segment or another
	reset   bool         // it has sent RST
	ended   bool         // the peer has ended its direction
	written int          // bytes the peer has sent
	refused bool         // the peer has heard of a reset when it sent, and so does not hear of it again

	peer     sync.WaitGroup
	got      []byte // what the peer has received, when peerErr is set
	peerErr  error
	peerDone chan struct{}

	mu    sync.Mutex // what follows is what the guest has received
	acked int        // of its stream; the SYN does not count, the FIN does
	ours  int        // bytes of the peer's stream in a row
	fin   bool       // and its end
	err   error
}

func newFuzzGuest(t *testing.T, accepted bool) *fuzzGuest {
	leaktest.NothingLeft(t, patience)
	g := &fuzzGuest{ends: map[int]bool{}, peerDone: make(chan struct{})}
	if accepted {
		g.bed = newAccepted(t, families[0])
		g.establishAccepted(g.serveAccepted)
	} else {
		g.bed = newBed(t, families[0])
		g.establish(g.serve)
	}
	g.peer.Go(func() {
		defer close(g.peerDone)
		g.got, g.peerErr = io.ReadAll(g.host)
	})
	g.peer.Go(g.watch)
	return g
}

// watch looks at what the guest receives until the link is closed.
func (g *fuzzGuest) watch() {
	buf := make([]byte, frame.MaxFrame)
	for {
		n, err := g.link.Read(buf)
		if err != nil {
			return
		}
		s, err := g.decode(buf[:n])
		g.mu.Lock()
		if err == nil {
			err = g.see(s)
		}
		if g.err == nil {
			g.err = err
		}
		g.mu.Unlock()
	}
}

// see checks a segment to the guest.
func (g *fuzzGuest) see(s seg) error {
	if s.flags&frame.RST != 0 {
		return nil
	}
	if s.flags&frame.SYN != 0 {
		return fmt.Errorf("SYN on an established connection: %v", s)
	}
	ack, at := int(int32(s.ack-guestISN-1)), int(int32(s.seq-g.isn-1))
	if ack < 0 || ack > 1<<20 {
		return fmt.Errorf("acknowledgement of what was never sent: %v", s)
	}
	g.acked = max(g.acked, ack)
	if at+len(s.data) > 1<<20 || len(s.data) > 0 && (at < 0 || !bytes.Equal(s.data, data(at, len(s.data)))) {
		return fmt.Errorf("other bytes than the peer's: %v", s)
	}
	if at <= g.ours {
		g.ours = max(g.ours, at+len(s.data))
	}
	if s.flags&frame.FIN != 0 && at+len(s.data) <= g.ours {
		g.fin = true
	}
	return nil
}

// seen returns how much of the guest's stream is acknowledged, and how much of the peer's has come.
func (g *fuzzGuest) seen() (acked, ours int, fin bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err != nil {
		g.t.Fatal(g.err)
	}
	return g.acked, g.ours, g.fin
}

// near turns x into a distance: small ones, those around a segment's length, and absurd ones.
func near(x byte) int {
	switch d := int(x) - 128; {
	case d == 127:
		return 1 << 30
	case d == -127:
		return -1 << 30
	case d > 64 || d < -64:
		return d * 500
	default:
		return d
	}
}

func (g *fuzzGuest) do(op, a, b, c byte) {
	acked, ours, _ := g.seen()
	s := seg{flags: frame.ACK, wnd: 4096, ack: g.isn + 1 + uint32(ours)}
	switch op {
	case opData, opFlags:
		at := acked
		n := int(b) * int(c%16) // 0 to 3825
		if op == opFlags {
			s.flags = a & (frame.FIN | frame.SYN | frame.RST | frame.ACK | frame.PSH)
			at += int(c / 16)
			n = int(b)
		} else if a != 0 {
			at += near(a)
		}
		s.seq = guestISN + 1 + uint32(at)
		if at < 0 {
			// The part of the stream before its beginning has no bytes.
			n = 0
		}
		if at < 1<<20 {
			s.data = data(max(at, 0), n)
		} else {
			s.data = make([]byte, n)
		}
		if s.flags&frame.FIN != 0 {
			g.ends[at+n] = true
		}
		g.reset = g.reset || s.flags&frame.RST != 0
	case opAck:
		s.seq = guestISN + 1 + uint32(acked)
		if d := near(a); d > 0 {
			s.ack += uint32(g.written - ours + 2 + d) // of what the peer has never sent
		} else {
			s.ack += uint32(d)
		}
		s.wnd = uint16(b) * 16
	case opHost:
		if !g.ended && g.written < 1<<18 {
			// The socket takes it, or does not: the peer does not wait.
			g.host.SetWriteDeadline(time.Now().Add(patience))
			n := int(a) * 20
			g.peerWrite(data(g.written, n))
			g.written += n
		}
		return
	case opEnd:
		g.ended = true
		g.host.CloseWrite()
		return
	case opRun:
		g.flush()
		return
	}
	g.segs = append(g.segs, s)
	if len(g.segs) == 12 {
		g.flush()
	}
}

// peerWrite has the peer send b, which fits its send buffer.
func (g *fuzzGuest) peerWrite(b []byte) {
	_, err := g.host.Write(b)
	g.refused = g.refused || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
	if err != nil && !g.refused {
		g.t.Errorf("peer writes: %v", err)
	}
}

func (g *fuzzGuest) flush() {
	if len(g.segs) > 0 && !g.port.Gone() {
		g.offer(g.segs...)
	}
	g.segs = g.segs[:0]
}

// finish has the guest go on as it should until both streams have ended, and checks what came.
func (g *fuzzGuest) finish() {
	const total = 1 << 18 // more than any operation can reach
	t := g.t
	g.flush()
	if !g.ended {
		g.host.CloseWrite()
	}
	tick := time.NewTicker(200 * time.Microsecond)
	defer tick.Stop()
	g.ends[total] = true
	for end := time.Now().Add(patience); ; <-tick.C {
		acked, ours, fin := g.seen()
		if g.port.Gone() {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("does not end: %d acknowledged, %d of %d bytes received, end %v", acked, ours, g.written, fin)
		}
		s := seg{flags: frame.ACK, seq: guestISN + 1 + uint32(acked), ack: g.isn + 1 + uint32(ours), wnd: 4096}
		if fin {
			s.ack++
		}
		if acked < total {
			n := min(total-acked, 40000)
			s.data = data(acked, n)
		}
		if acked+len(s.data) == total {
			s.flags |= frame.FIN
		}
		g.offer(s)
		if fin && acked >= total {
			continue
		}
	}
	g.over()
	<-g.peerDone
	g.link.Close()
	g.peer.Wait()
	g.verdict(g.reset)
}

// verdict checks what the peer has got, which may have been reset if the guest has asked for that.
func (g *fuzzGuest) verdict(reset bool) {
	if !bytes.Equal(g.got, data(0, len(g.got))) {
		g.t.Errorf("the peer has got other bytes than the guest has sent")
	}
	switch {
	case errors.Is(g.peerErr, unix.ECONNRESET) || g.peerErr == nil && g.refused:
		if !reset {
			g.t.Errorf("the peer was reset after %d bytes, and the guest had not asked for that", len(g.got))
		}
	case g.peerErr != nil:
		g.t.Errorf("peer reads: %v", g.peerErr)
	case !g.ends[len(g.got)]:
		g.t.Errorf("the peer has got the end after %d bytes, where there was none: %v", len(g.got), g.ends)
	}
}
