package tcp

import (
	"bytes"
	"testing"

	"fusilli/actors/flow"
	"fusilli/tapio/frame"
)

// TestOneLossCostsOneSegment: what came behind a gap need not be sent again.
func TestOneLossCostsOneSegment(t *testing.T) {
	for _, tt := range []struct {
		name string
		segs [][2]int // first byte and length of what comes, in this order
		want int      // bytes that have arrived
	}{
		{"gap", [][2]int{{10, 20}, {0, 10}}, 30},
		{"two gaps", [][2]int{{10, 10}, {30, 10}, {20, 10}, {0, 10}}, 40},
		{"backwards", [][2]int{{30, 10}, {20, 10}, {10, 10}, {0, 10}}, 40},
		{"twice", [][2]int{{10, 10}, {10, 10}, {0, 10}, {10, 10}}, 20},
		{"one over several", [][2]int{{10, 5}, {20, 5}, {30, 5}, {5, 40}, {0, 10}}, 45},
		{"overlaps at both ends", [][2]int{{10, 10}, {5, 10}, {15, 10}, {0, 6}}, 25},
		{"inside", [][2]int{{10, 30}, {15, 5}, {0, 10}}, 40},
		{"the gap is filled with more", [][2]int{{10, 10}, {30, 10}, {0, 35}}, 40},
		{"more than all", [][2]int{{10, 10}, {30, 10}, {0, 50}}, 50},
		{"only the first gap", [][2]int{{10, 10}, {30, 10}, {0, 10}}, 20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t, families[0])
			b.establish(b.serve)
			start := b.snd
			for _, s := range tt.segs {
				b.offer(seg{flags: frame.ACK, seq: start + uint32(s[0]), ack: b.rcv, wnd: b.wnd, data: data(s[0], s[1])})
			}
			b.snd = start + uint32(tt.want)
			b.acked()
			if got := b.read(tt.want); !bytes.Equal(got, data(0, tt.want)) {
				t.Errorf("host gets %x, want %x", got, data(0, tt.want))
			}
			b.send(seg{data: data(tt.want, 50), flags: frame.FIN})
			if got := b.read(50); !bytes.Equal(got, data(tt.want, 50)) {
				t.Errorf("host gets %x, want %x", got, data(tt.want, 50))
			}
			b.eof()
		})
	}
}

// TestEndBehindAGap: the guest's FIN is kept with what it ends.
func TestEndBehindAGap(t *testing.T) {
	b := newBed(t, families[0])
	b.establish(b.serve)
	start := b.snd
	b.snd += 10
	b.send(seg{data: data(10, 10), flags: frame.FIN})
	end := b.snd
	b.snd = start
	b.send(seg{data: data(0, 10)})
	if got := b.read(20); !bytes.Equal(got, data(0, 20)) {
		t.Errorf("host gets %x", got)
	}
	b.eof()
	b.snd = end
	b.acked()
}

// TestEarlySegmentsAreBounded: a guest that never fills a gap has us keep earlyPieces segments and
// no more, and nothing outside its window; while slabs are scarce it holds none.
func TestEarlySegmentsAreBounded(t *testing.T) {
	b := newBed(t, families[0])
	b.establish(b.play)
	var lent = b.pool.Out()
	for i := 1; i <= 2*earlyPieces; i++ {
		b.offer(seg{flags: frame.ACK, seq: b.snd + uint32(2*i), ack: b.rcv, wnd: b.wnd, data: data(2*i, 1)})
		b.turn()
		if b.pool.Out() == lent {
			continue // it was copied
		}
		lent = b.pool.Out()
	}
	if n := len(b.c.early.pieces); n != earlyPieces {
		t.Errorf("%d pieces are kept, want %d", n, earlyPieces)
	}
	if lent > 64/2+1 {
		t.Errorf("%d of 64 slabs are kept", lent)
	}
	b.offer(seg{flags: frame.ACK, seq: b.c.rcvEdge, ack: b.rcv, wnd: b.wnd, data: data(0, 100)},
		seg{flags: frame.ACK, seq: b.c.rcvEdge - 1, ack: b.rcv, wnd: b.wnd, data: data(0, 100)})
	b.c.dropReassembly()
	b.turn()
	if n := len(b.c.early.pieces); n != 1 || len(b.c.early.pieces[0].data) != 1 {
		t.Errorf("%d pieces are kept of what is at the edge, want 1 of 1 byte", n)
	}
	b.c.dropReassembly()
	var others flow.Credit
	all := b.env.Held.Free()/2 + 1
	if !others.Take(&b.env.Held, all) {
		t.Fatal("the budget is not free")
	}
	b.offer(seg{flags: frame.ACK, seq: b.snd + 10, ack: b.rcv, wnd: b.wnd, data: data(10, 10)})
	b.turn()
	others.Give(&b.env.Held, all)
	if n := len(b.c.early.pieces); n != 0 {
		t.Errorf("%d pieces are kept beyond the budget of all flows", n)
	}
}
