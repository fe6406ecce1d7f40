package tcp

import (
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
	"fusilli/tapio/frame"
)

const (
	headroom    = 128 << 10 // bytes a flow may hold beyond its socket's send buffer
	leastWindow = 4 << 10   // advertised with our SYN, whatever is free
	maxPieces   = 64        // pieces of payload in one sendmsg
	maxRuns     = 8         // runs they may lie in
)

// batch is payload to be handed to the socket in one call.
type batch struct {
	iov [maxPieces]unix.Iovec
	in  [maxPieces]uint8 // which of runs a piece lies in, where there are runs
	msg unix.Msghdr
	n   int
	len int

	runs  [maxRuns]flow.Run
	nruns int
}

var batches = sync.Pool{New: func() any { return new(batch) }}

// fromGuest handles the runs of segments that have come and releases them, or keeps them as held
// data.
func (c *conn) fromGuest() {
	if !c.port.Mail() {
		return
	}
	b := batches.Get().(*batch)
	b.n, b.len = 0, 0
	c.seenAt = flow.Now()
	c.liveAt = c.seenAt
	for !c.over {
		r, ok := c.port.Recv()
		if !ok {
			break
		}
		c.handle(&r, b)
		if c.over && FindOpening(&r) {
			c.port.HandOver(r.Rest())
		}
		// What several runs have goes in one call, whose peer is woken once.
		if b.nruns < maxRuns && c.port.Mail() && !c.guestFIN && !c.over {
			continue
		}
		if !c.over {
			c.push(b)
		}
		b.release()
		if c.guestFIN && !c.shut && len(c.held) == 0 && !c.over {
			c.shutdown()
		}
	}
	batches.Put(b)
}

// handle handles the run r, which b holds from here on, to r's end or until the connection is over;
// then r is what is left of it.
func (c *conn) handle(r *flow.Run, b *batch) {
	run := b.hold(r)
	var v flow.View
	for !c.over {
		at := *r
		if !r.Next(&v) {
			break
		}
		c.segment(&v, b, run)
		if c.replaced {
			*r = at
		}
		if b.n == maxPieces {
			c.push(b)
		}
		if c.early.due(c.rcvNxt) && !c.over {
			c.push(b)
			c.drain()
		}
	}
}

// segment handles one segment, which lies in run; payload in order is added to b.
func (c *conn) segment(v *flow.View, b *batch, run *flow.Run) {
	c.env.See(&c.station, v.Frame)
	tcp := frame.TCPHeader(v.Frame[v.L4:v.End])
	data := v.Frame[v.Payload:v.End]
	seq, fl := tcp.Seq(), tcp.Flags()

	switch {
	case c.state == synSent:
		c.answered(v, tcp)
		return
	case fl&frame.RST != 0:
		c.guestReset(seq, b)
		return
	case fl&frame.SYN != 0:
		c.synAgain(tcp)
		return
	case fl&frame.ACK == 0 || c.state == connecting:
		return
	}
	ack := tcp.Ack()
	if c.state == synReceived && ack != c.sndNxt {
		// Not an answer to our SYN,ACK (RFC 9293, section 3.5.2, group 2): the guest has had this
		// connection already, and the SYN came late. The reset makes it forget that one, so that
		// it resets this one when our SYN,ACK is repeated.
		c.bareRST(ack)
		return
	}
	probe := c.state == established && seq+1 == c.rcvNxt && len(data) <= 1 && fl&frame.FIN == 0
	if !probe && !c.acceptable(seq, len(data), fl) {
		if len(data) > 0 && seqGT(seq, c.rcvEdge) {
			c.env.Counters.Unasked.Hit(c.env.Log, "The guest sends beyond its window, that is dropped")
		}
		c.ackNow, c.prompt = true, promptAcks
		return
	}
	if c.state == synReceived {
		c.establish(seq, tcp)
	}
	if seqGT(ack, c.sndMax) || seqLT(ack, c.sndUna-c.mostWnd) {
		c.ackNow = true // RFC 5961, section 5.2
		return
	}
	if probe {
		// Keep-alive or window probe: answer, and make the host's kernel ask the peer.
		unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		c.openWindow(true)
		c.ackNow = true
		seq, data = seq+1, nil // what it says about its window is as new as anything it may send
	}
	c.acked(seq, ack, tcp, len(data), fl)
	end := seq + uint32(len(data))
	if len(data) > 0 {
		if seqGT(seq, c.rcvNxt) {
			c.push(b) // what is acknowledged with the gap
		}
		if data = c.inOrder(seq, data, run); data != nil {
			b.add(data)
			c.rcvNxt += uint32(len(data))
			c.pending += len(data)
		}
	}
	switch {
	case fl&frame.FIN == 0:
	case !c.guestFIN && end == c.rcvNxt:
		c.guestFIN = true
		c.rcvNxt++
		c.dropReassembly()
	case !c.guestFIN && seqGT(end, c.rcvNxt) && !seqGT(end, c.rcvEdge):
		c.early.fin, c.early.finSeq = true, end
		c.ackNow = true
	default:
		c.ackNow = true
		if c.guestFIN && end+1 == c.rcvNxt && c.finAgain < finRepeats {
			c.finAgain++
		}
	}
}

// inOrder returns the part of data, which begins at seq and lies in run, that continues what was
// received, or nil if there is none: what is behind a gap is kept.
func (c *conn) inOrder(seq uint32, data []byte, run *flow.Run) []byte {
	if seq != c.rcvNxt || c.guestFIN {
		c.ackNow, c.prompt = true, promptAcks
	}
	if c.guestFIN {
		return nil
	}
	if seqGT(seq, c.rcvNxt) {
		// A gap. It is kept until that is filled. One acknowledgement for each such segment lets
		// the guest count them (RFC 5681).
		c.insert(seq, data, run)
		c.sendAck()
		return nil
	}
	old := c.rcvNxt - seq
	if old >= uint32(len(data)) {
		return nil
	}
	data = data[old:]
	if room := c.rcvEdge - c.rcvNxt; uint32(len(data)) > room {
		data = data[:room]
		c.ackNow = true
	}
	if len(data) == 0 {
		return nil
	}
	return data
}

// acceptable reports whether a segment with n bytes of payload that begins at seq lies in the
// window. This is the first check (RFC 9293, section 3.10.7.4): of a segment that fails it nothing
// is believed, neither its acknowledgement nor its window, and it is answered with an
// acknowledgement.
//
// Two kinds of segments at the edges pass as they do in Linux: one that begins at the right edge,
// as a guest's acknowledgements do that has filled the window, and a repetition that ends at the
// left one.
func (c *conn) acceptable(seq uint32, n int, fl uint8) bool {
	end := seq + uint32(n)
	if fl&frame.FIN != 0 {
		end++
	}
	return !seqGT(seq, c.rcvEdge) && !seqLT(end, c.rcvNxt)
}

// synAgain handles a SYN after the guest's first one.
func (c *conn) synAgain(tcp frame.TCPHeader) {
	seq, answer := tcp.Seq(), tcp.Flags()&frame.ACK != 0
	switch {
	case c.state == connecting:
		// The guest repeats it.
	case c.state == synReceived && answer && tcp.Ack() != c.sndNxt:
		c.bareRST(tcp.Ack()) // RFC 9293, section 3.5.2, group 2
	case c.state == synReceived && seq+1 == c.rcvNxt && answer && c.crossed:
		c.establish(c.rcvNxt, tcp)
		c.setWnd(uint32(tcp.Window())) // not scaled in a SYN
		c.ackNow = true
	case c.state == synReceived && seq+1 == c.rcvNxt:
		c.sendSYN()
	case c.state == established && Opens(tcp) && c.shut && c.finSent && seqGT(seq, c.rcvNxt):
		// Both directions have ended, and the guest has forgotten the connection before we have
		// (RFC 9293, section 3.6.1). What it has sent is on its way to the peer.
		c.replaced, c.over = true, true
	default:
		c.ackNow = true // RFC 5961, section 4: a guest that has restarted answers RST
	}
}

// guestReset handles RST behind the payload of b (RFC 5961, section 3): only the exact sequence
// number resets.
func (c *conn) guestReset(seq uint32, b *batch) {
	switch {
	case seq == c.rcvNxt || seq == c.ackSent:
		c.push(b)
		c.abort(false)
		// All the guest has sent is on its way to the peer, and the end of it too: let it arrive.
		// If the peer sends more it is reset by that.
		c.reset = !c.shut
	case c.state != connecting && seqGE(seq, c.rcvNxt) && seqLT(seq, c.rcvEdge):
		c.ackNow = true
	}
}

// establish handles the segment that completes the handshake.
func (c *conn) establish(seq uint32, tcp frame.TCPHeader) {
	c.state = established
	c.port.Assured()
	c.sndUna = c.sndNxt
	c.handshake()
	c.wl1 = seq
	c.setWnd(uint32(tcp.Window()) << c.guestScale)
}

// setWnd notes the window the guest has advertised.
func (c *conn) setWnd(wnd uint32) {
	c.guestWnd = wnd
	c.mostWnd = max(c.mostWnd, wnd)
}

// acked handles the acknowledgement and window of a segment.
func (c *conn) acked(seq, ack uint32, tcp frame.TCPHeader, n int, fl uint8) {
	wnd := uint32(tcp.Window()) << c.guestScale
	if seqGT(ack, c.sndUna) {
		c.advance(ack)
	} else if ack == c.sndUna && n == 0 && fl&frame.FIN == 0 && c.sndMax != c.sndUna && wnd == c.guestWnd {
		c.dupAcks++
		if c.dupAcks == 3 && !c.recovering {
			c.recovering, c.recover = true, c.sndMax
			c.resendFirst()
		}
	}
	if ack == c.sndUna && seqGE(seq, c.wl1) {
		c.wl1 = seq
		c.setWnd(wnd)
		if wnd == 0 && c.rtoAt == 0 && !c.finSent {
			c.rto = c.rtt.base
			c.rtoAt = c.seenAt + c.rto
		}
		c.retries = 0 // it answers
	}
}

// advance takes what the guest has acknowledged off the socket.
func (c *conn) advance(ack uint32) {
	n := int(ack - c.sndUna)
	if c.finOnce && ack == c.sndMax {
		c.finSent, c.finAcked = true, true
		n--
	}
	if n > 0 && !c.discard(n) {
		return
	}
	c.sndUna = ack
	if seqLT(c.sndNxt, ack) {
		c.sndNxt = ack
		c.setPeek(0)
	}
	c.dupAcks = 0
	c.retries = 0
	c.rtt.acked(ack, c.seenAt)
	c.rto = c.rtt.base
	if c.sndMax == ack {
		c.rtoAt = 0
		c.recovering = false
	} else {
		c.rtoAt = c.seenAt + c.rto
		if c.recovering {
			if seqGE(ack, c.recover) {
				c.recovering = false
			} else {
				c.resendFirst() // RFC 6582: a partial acknowledgement shows the next loss
			}
		}
	}
}

// Towards the socket.

// add adds data to b. There is room: the caller pushes a full batch.
func (b *batch) add(data []byte) {
	b.iov[b.n].Base = &data[0]
	b.iov[b.n].SetLen(len(data))
	b.in[b.n] = uint8(b.nruns - 1)
	b.n++
	b.len += len(data)
}

// hold takes r over, in which what is added from here on lies. It returns it with r's hold.
func (b *batch) hold(r *flow.Run) *flow.Run {
	b.runs[b.nruns] = *r
	b.nruns++
	return &b.runs[b.nruns-1]
}

// release gives the runs back.
func (b *batch) release() {
	for i := range b.nruns {
		b.runs[i].Release()
	}
	b.nruns = 0
}

// push hands b's payload to the socket, behind what is held, and holds what the socket does not
// take. What there is no room for either is refused. b has no payload afterwards, but its runs.
func (c *conn) push(b *batch) {
	if b.n == 0 {
		return
	}
	c.pending = 0
	c.ackDue = true
	sent, err := 0, unix.Errno(0)
	if len(c.held) == 0 {
		var n int
		n, err = sendIov(c.fd, b)
		if err != 0 && err != unix.EAGAIN && !sock.NoMemory(err) {
			c.sockErr, c.failed = err, true
			b.n, b.len = 0, 0
			return
		}
		sent = n
	}
	c.env.Message(c.port, flow.FromGuest, b.len)
	if sent < b.len {
		if left := b.len - sent - c.hold(b, sent); left > 0 {
			c.refuse(left)
		}
		c.awaitSend(err)
	}
	b.n, b.len = 0, 0
	c.openWindow(false)
}

// hold keeps b's payload but for its first skip bytes, as far as there is room for it, and returns
// how much it keeps.
func (c *conn) hold(b *batch, skip int) (n int) {
	for i := 0; i < b.n; i++ {
		d := unsafe.Slice(b.iov[i].Base, int(b.iov[i].Len))
		if skip >= len(d) {
			skip -= len(d)
			continue
		}
		d = d[skip:]
		skip = 0
		promised := min(len(d), c.promised)
		if !c.credit.Take(&c.env.Held, len(d)+chunkCost-promised) {
			break
		}
		c.promised -= promised
		c.held = append(c.held, newChunk(d, &b.runs[b.in[i]]))
		n += len(d)
	}
	c.heldLen += n
	return n
}

// refuse takes back that the last n bytes of what was received were. The guest, which gets no
// acknowledgement for them, sends them again, as if they were lost on the way. The window stays:
// not all guests cope with one that shrinks (RFC 9293, section 3.8.6). It is the last resort, since
// windows promise no more than there is.
func (c *conn) refuse(n int) {
	if c.guestFIN {
		c.guestFIN = false
		n++
	}
	c.rcvNxt -= uint32(n)
	c.ackNow = true
	c.env.Counters.HeldRefused.Hit(c.env.Log, "Connections hold too much that their peers do not take, the guest has to repeat some")
}

// flush hands held payload to the socket, which takes data again.
func (c *conn) flush() {
	b := batches.Get().(*batch)
	for len(c.held) > 0 {
		b.n, b.len = 0, 0
		for i := range c.held {
			if b.n == maxPieces {
				break
			}
			b.add(c.held[i].data)
		}
		n, err := sendIov(c.fd, b)
		if err != 0 && err != unix.EAGAIN && !sock.NoMemory(err) {
			c.sockErr, c.failed = err, true
			break
		}
		c.dropHeld(n)
		if n < b.len {
			if n == 0 && sock.Poll(c.fd, unix.POLLOUT) != 0 {
				// so the kernel is short of memory for sockets (tcp_mem, tcp(7)), and says EAGAIN
				err = unix.ENOBUFS
			}
			c.awaitSend(err)
			break
		}
	}
	batches.Put(b)
	c.openWindow(true)
	c.ackNow = true
	if c.guestFIN && !c.shut && len(c.held) == 0 && !c.failed {
		c.shutdown()
	}
}

// awaitSend has what is held offered to the socket again, which has not taken all of it because of
// err, if that is not 0.
func (c *conn) awaitSend(err unix.Errno) {
	if sock.NoMemory(err) {
		c.sendAt = flow.Now() + tryAgain // it may be writable all the same
		return
	}
	c.port.AwaitWrite(writable)
}

func (c *conn) dropHeld(n int) {
	c.heldLen -= n
	i, cost := 0, 0
	for ; i < len(c.held) && n >= len(c.held[i].data); i++ {
		n -= len(c.held[i].data)
		cost += c.held[i].cost
		c.held[i].run.Release()
	}
	c.credit.Give(&c.env.Held, cost)
	if n > 0 {
		c.held[i].data = c.held[i].data[n:]
	}
	c.held = slices.Delete(c.held, 0, i)
	if len(c.held) == 0 {
		c.held = nil
	}
}

func (c *conn) releaseHeld() {
	cost := 0
	for i := range c.held {
		cost += c.held[i].cost
		c.held[i].run.Release()
	}
	c.held, c.heldLen = nil, 0
	c.credit.Give(&c.env.Held, cost)
}

// sure is how much of a send buffer with free bytes of room takes payload for sure: not all, since
// segments have their cost there.
func sure(free int) int { return max(free, 0) / 4 * 3 }

// promise takes n bytes of credit, and gives back what was taken so before; as far as n is more and
// the budget does not have it, it leaves that as it is.
func (c *conn) promise(n int) {
	if n <= c.promised {
		c.credit.Give(&c.env.Held, c.promised-n)
	} else if !c.credit.Take(&c.env.Held, n-c.promised) {
		return
	}
	c.promised = n
}

// settle gives back what was promised and is not needed any more, for the socket has room for all
// of the window.
func (c *conn) settle() {
	if len(c.held) > 0 {
		return
	}
	free, _ := sendRoom(c.fd)
	c.promise(min(c.promised, max(c.window()-sure(free), 0)))
}

// window returns how much the guest may send now.
func (c *conn) window() int { return max(int(int32(c.rcvEdge-c.rcvNxt)), 0) }

// firstWindow returns the window to advertise with our SYN.
func (c *conn) firstWindow() uint16 {
	free, _ := sendRoom(c.fd)
	w := sure(free)
	if need := 65535 - w; need > 0 {
		c.promise(min(need, c.env.Held.Share()))
	}
	return uint16(min(max(w+c.promised, leastWindow), 65535))
}

// openWindow moves the right edge of the advertised window if little of it is left, or if told to.
// What goes beyond the room in the socket's send buffer is promised out of the budget of all flows,
// so that it can be held. Where the window must wait for the socket, openWindow sees to it that it
// is called again.
func (c *conn) openWindow(force bool) {
	left := c.window()
	if !force && left > int(c.lastWnd)/2 && left >= c.mss {
		return
	}
	free, queued := sendRoom(c.fd)
	if len(c.held) > 0 {
		free = min(free, 0) // none, until the socket says that it takes what is held
	}
	held := c.credit.Used() - c.promised
	share := c.env.Held.Share()
	if share == 0 {
		c.env.Counters.HeldFull.Hit(c.env.Log, "Connections hold too much that their peers do not take, windows are small")
	}
	c.promise(max(min(headroom, held+c.promised+share)-held, left-sure(free), 0))
	room := sure(free)
	if c.promised+held >= headroom {
		room = free // what it takes less than that is promised as well
	}
	if room += c.promised; room > 0 {
		c.moveEdge(room)
	}
	if c.window() < c.mss && 2*free < queued && !c.guestFIN && !c.shut {
		c.port.AwaitWrite(writable)
	}
}

// moveEdge moves the right edge of the advertised window so that it has room bytes, if that is
// worth saying.
func (c *conn) moveEdge(room int) {
	if c.scale == 0 {
		room = min(room, 65535)
	}
	room = min(room, maxWindow)
	edge := c.ackNo() + uint32(room)
	// Silly window avoidance (RFC 9293, section 3.8.6.2.2).
	if seqGT(edge, c.rcvEdge) && edge-c.rcvEdge >= uint32(min(c.mss, room/2)) {
		c.rcvEdge = edge
		c.lastWnd = edge - c.rcvNxt
		c.ackNow = true
	}
}

// shutdown passes the guest's FIN on. Everything before it was taken by the socket.
func (c *conn) shutdown() {
	c.shut = true
	if err := unix.Shutdown(c.fd, unix.SHUT_WR); err != nil {
		c.failed = true
		return
	}
	c.awaitFIN()
}

// awaitFIN acknowledges the guest's FIN if the peer has acknowledged ours, or waits for that.
func (c *conn) awaitFIN() {
	if finAcked(uintptr(c.fd)) {
		c.finDone = true
		c.ackNow = true
		return
	}
	c.port.AwaitWrite(finAcked)
}
