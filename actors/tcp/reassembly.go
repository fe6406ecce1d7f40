package tcp

import (
	"slices"

	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
)

const (
	earlyPieces = 1024 // segments a flow keeps before their turn; their bytes lie in its window
	chunkCost   = 128  // bytes of book-keeping a chunk is charged with
)

// reassembly is what has come before its turn: segments behind a gap, and perhaps the guest's FIN.
// They are in the order of their sequence numbers, do not overlap, and begin behind rcvNxt, except
// while fill is about to take them.
type reassembly struct {
	pieces []piece
	last   int // index of the piece that came last
	fin    bool
	finSeq uint32 // where the guest's stream ends, if fin
}

// due reports whether next, the sequence number expected, has reached what came early.
func (e *reassembly) due(next uint32) bool {
	return len(e.pieces) > 0 && !seqGT(e.pieces[0].seq, next) || e.fin && !seqGT(e.finSeq, next)
}

// piece is a chunk that begins at seq.
type piece struct {
	seq uint32
	chunk
}

func (p *piece) end() uint32 { return p.seq + uint32(len(p.data)) }

// insert holds what is new of data, which begins at seq behind rcvNxt and lies in run; as much of
// it as the window covers and the limits allow. What is not kept the guest sends again.
func (c *conn) insert(seq uint32, data []byte, run *flow.Run) {
	if room := c.rcvEdge - seq; seqGT(c.rcvEdge, seq) && uint32(len(data)) > room {
		data = data[:room]
	} else if !seqGT(c.rcvEdge, seq) {
		return
	}
	e := &c.early
	// Of two copies the one that came first stays: a segment that fills several holes is cut.
	i := 0
	if n := len(e.pieces); n > 0 && seqGE(seq, e.pieces[n-1].seq) {
		i = n - 1 // most come in order
	}
	for ; len(data) > 0; i++ {
		if i == len(e.pieces) {
			c.place(i, seq, data, run)
			return
		}
		p := &e.pieces[i]
		if seqGE(seq, p.end()) {
			continue
		}
		if seqLT(seq, p.seq) {
			n := min(int(p.seq-seq), len(data))
			if !c.place(i, seq, data[:n], run) {
				return
			}
			seq, data = seq+uint32(n), data[n:]
			continue // with what p has become, one further
		}
		n := min(int(p.end()-seq), len(data))
		seq, data = seq+uint32(n), data[n:]
		e.last = i
	}
}

// place makes data piece i and reports whether there is one more.
func (c *conn) place(i int, seq uint32, data []byte, run *flow.Run) bool {
	if len(c.early.pieces) >= earlyPieces {
		return false
	}
	// What is acknowledged goes before: it needs room that what is not leaves.
	if c.env.Held.Scarce() || !c.credit.Take(&c.env.Held, len(data)+chunkCost) {
		c.env.Counters.EarlyFull.Hit(c.env.Log, "Too many segments before their turn, some are lost")
		return false
	}
	c.early.pieces = slices.Insert(c.early.pieces, i, piece{seq: seq, chunk: newChunk(data, run)})
	c.early.last = i
	return true
}

// drain takes what has come early and is due now.
func (c *conn) drain() {
	e := &c.early
	b := batches.Get().(*batch)
	defer batches.Put(b)
	for len(e.pieces) > 0 && !c.failed && !seqGT(e.pieces[0].seq, c.rcvNxt) {
		b.n, b.len = 0, 0
		n := 0
		for ; n < len(e.pieces) && b.n < maxPieces && !seqGT(e.pieces[n].seq, c.rcvNxt); n++ {
			p := &e.pieces[n]
			// the gap was filled with more than was missing
			p.data = p.data[min(c.rcvNxt-p.seq, uint32(len(p.data))):]
			if room := c.rcvEdge - c.rcvNxt; uint32(len(p.data)) > room {
				p.data = p.data[:room]
			}
			if len(p.data) > 0 {
				b.add(p.data)
				c.rcvNxt += uint32(len(p.data))
			}
		}
		c.pushPieces(b, n)
		c.forget(n)
		c.ackNow = true // RFC 5681, section 4.2: the guest is in recovery
	}
	if e.fin && !seqGT(e.finSeq, c.rcvNxt) {
		if e.finSeq == c.rcvNxt && !c.guestFIN {
			c.guestFIN = true
			c.rcvNxt++
			c.ackNow = true
		}
		e.fin = false
	}
	if c.guestFIN {
		c.dropReassembly()
	}
}

// pushPieces hands b, which has the payload of the first n pieces, to the socket, behind what is
// held, and holds what it does not take.
func (c *conn) pushPieces(b *batch, n int) {
	if b.n == 0 {
		return
	}
	sent, err := 0, unix.Errno(0)
	if len(c.held) == 0 {
		sent, err = sendIov(c.fd, b)
		if err != 0 && err != unix.EAGAIN && !sock.NoMemory(err) {
			c.sockErr, c.failed = err, true
			return
		}
	}
	if left := b.len - sent; left > 0 {
		c.heldLen += left
		for i := range n {
			p := &c.early.pieces[i]
			took := min(sent, len(p.data))
			sent -= took
			if took == len(p.data) {
				continue
			}
			p.data = p.data[took:]
			c.held = append(c.held, p.chunk)
			p.chunk = chunk{} // it is held there now
		}
		c.awaitSend(err)
	}
	c.openWindow(false)
}

// forget gives the first n pieces back.
func (c *conn) forget(n int) {
	e := &c.early
	cost := 0
	for i := range n {
		cost += e.pieces[i].cost
		e.pieces[i].run.Release()
	}
	c.credit.Give(&c.env.Held, cost)
	e.pieces = slices.Delete(e.pieces, 0, n)
	e.last = max(e.last-n, 0)
	if len(e.pieces) == 0 {
		e.pieces = nil
	}
}

// dropReassembly gives everything back that has come early: the guest sends it again.
func (c *conn) dropReassembly() {
	c.early.fin = false
	if len(c.early.pieces) > 0 {
		c.forget(len(c.early.pieces))
	}
}
