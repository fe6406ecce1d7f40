package udp

import (
	"net/netip"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
	"fusilli/tapio/frame"
)

const (
	maxBatch   = 32 // datagrams, or rows of them, received in one call
	freshBatch = 4  // the same of a new socket, whose first datagrams are looked at one by one
	maxFaults  = 64 // errors in a row before a socket is given up
	// scarceFaults is the number of those after which the kernel is taken at its word that it has
	// no memory: one is what a datagram has met (IP_RECVERR, ip(7)), and is off the socket then.
	scarceFaults = 4

	// minGuess is the size of the shortest datagrams that are guessed: a shorter one would be
	// padded beyond its place.
	minGuess = 64
)

// incoming is where datagrams from the host are received: maxBatch messages, each with a buffer of
// its own for the longest datagram there is.
//
// When the size of the datagrams is guessed, the first size bytes of each go next to those of the
// one before to area, and only what is longer goes on in the message's buffer. The memory behind
// the buffers is real only where it was used, which for all but the first is never with most flows.
type incoming struct {
	msgs    [maxBatch]sock.Message
	control [maxBatch]sock.Control
	iov     [maxBatch][2]unix.Iovec
	names   [maxBatch]unix.RawSockaddrInet6

	ready bool // the messages are set up, for:
	named bool // with names
	most  int  // messages
	guess int

	area [flow.Headroom + maxRow]byte
	own  [maxBatch]*buffer
}

// buffer has room for headers, a guess and a datagram: a longer one than guessed is completed by
// copying its beginning in front of the rest.
type buffer [flow.Headroom + 65536]byte

var incomings = sync.Pool{New: func() any {
	in := new(incoming)
	own := new([maxBatch]buffer)
	for i := range own {
		in.own[i] = &own[i]
	}
	return in
}}

// setUp has the next receive guess datagrams of size bytes, 0 for no guess, and ask for senders,
// and for at most so many messages.
func (in *incoming) setUp(guess int, named bool, most int) {
	if in.ready && in.guess == guess && in.named == named && in.most == most {
		return
	}
	in.ready, in.guess, in.named, in.most = true, guess, named, most
	for i := range in.batch() {
		h := &in.msgs[i].Hdr
		v := &in.iov[i]
		own := in.own[i][flow.Headroom+guess:]
		if guess > 0 {
			v[0].Base = &in.area[flow.Headroom+i*guess]
			v[0].SetLen(guess)
			v[1].Base = &own[0]
			v[1].SetLen(len(own))
			h.SetIovlen(2)
		} else {
			v[0].Base = &own[0]
			v[0].SetLen(len(own))
			h.SetIovlen(1)
		}
		h.Iov = &v[0]
		h.Control = &in.control[i][0]
		h.SetControllen(len(in.control[i]))
		h.Name, h.Namelen = nil, 0
		if named {
			h.Name, h.Namelen = (*byte)(unsafe.Pointer(&in.names[i])), unix.SizeofSockaddrInet6
		}
	}
}

// batch returns the number of messages to ask for.
func (in *incoming) batch() int {
	if in.guess > 0 {
		return min(in.most, maxRow/in.guess)
	}
	return in.most
}

// receive takes what waits at fd, without waiting, and returns the number of messages.
func (in *incoming) receive(fd int) (int, unix.Errno) {
	return sock.ReceiveBatch(fd, in.msgs[:in.batch()])
}

// take returns message i: a slice whose payload begins at flow.Headroom, whether it lies in area,
// the size of the datagrams in it and what their headers said. It makes the message ready for
// another receive.
func (in *incoming) take(i int) (b []byte, inArea bool, size int, is ipFields) {
	m := &in.msgs[i]
	n := int(m.Len)
	size, is.ttl, is.tos = in.control[i].Parse(int(m.Hdr.Controllen))
	if size <= 0 || size > n {
		size = n
	}
	in.renew(i)
	switch {
	case in.guess == 0:
		return in.own[i][:flow.Headroom+n], false, size, is
	case n <= in.guess:
		at := i * in.guess
		return in.area[at : at+flow.Headroom+n], true, size, is
	default:
		at := flow.Headroom + i*in.guess
		copy(in.own[i][flow.Headroom:], in.area[at:at+in.guess])
		return in.own[i][:flow.Headroom+n], false, size, is
	}
}

// renew makes message i ready for another receive, as take does.
func (in *incoming) renew(i int) {
	h := &in.msgs[i].Hdr
	h.SetControllen(len(in.control[i]))
	if in.named {
		h.Namelen = unix.SizeofSockaddrInet6
	}
}

// from reports whether message i was sent by addr.
func (in *incoming) from(i int, addr netip.AddrPort) bool {
	a, ok := sock.AddrPort(&in.names[i])
	return ok && a.Port() == addr.Port() && a.Addr() == addr.Addr().WithZone("")
}

// deliverFirst sends the guest datagrams that were received before the flow was made.
func (c *conn) deliverFirst(first [][]byte) {
	buf := c.env.Buffer()
	defer c.env.PutBuffer(buf)
	for _, d := range first {
		if n := copy(buf[flow.Headroom:], d); n == len(d) && n <= c.hdr.most() {
			c.writeRow(buf[:flow.Headroom+n], n)
		}
	}
	c.hostSeen = uint8(min(len(first), 2))
}

// fromHost moves what the peer has sent to the guest. It is what the actor does in its wait
// whenever the socket may be readable, and returns true if something else is to be done first.
func (c *conn) fromHost() bool {
	in := incomings.Get().(*incoming)
	defer incomings.Put(in)
	if c.table != nil && c.table.callers != nil {
		c.table.callers.begun = flow.Now()
	}
	faults := 0
	for first := true; ; {
		switch {
		case c.fresh:
			in.setUp(0, true, freshBatch)
		default:
			in.setUp(c.guess, c.table != nil, maxBatch)
		}
		n, e := in.receive(c.fd)
		switch e {
		case 0:
		case unix.EAGAIN:
			c.emptied()
			return false
		default:
			faults++
			if faults == maxFaults || !c.recoverable(e) {
				c.failed = true
				return true
			}
			c.readErrors()
			if faults == scarceFaults && sock.NoMemory(e) {
				return false // what is there waits for what comes next
			}
			continue
		}
		faults = 0
		if first {
			c.batch++
		}
		full := n == in.batch()
		c.env.Message(c.port, flow.FromHost, c.deliver(in, n))
		if c.table != nil && c.table.callers != nil {
			c.metCallers()
		}
		if first {
			first = false
			c.port.SetAlarm(c.expiry()) // the stream's time-out may be the shorter one
		}
		if !full && !c.leftOpen() {
			c.emptied()
			return false // the call has seen the end of the queue
		}
		if full && !c.bigRecv && !c.fresh {
			c.bigRecv = true
			unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, bulkBuffer)
		}
		if c.port.Mail() || c.port.Stopped() {
			return true
		}
	}
}

// emptied notes that all that waited at the socket was received.
func (c *conn) emptied() {
	c.fresh = false
	if c.table != nil && c.table.callers != nil {
		c.table.callers.drained()
	}
}

// leftOpen reports whether what has begun elsewhere waits until there is nothing more: what the
// sender has sent before the new socket was connected is here.
func (c *conn) leftOpen() bool {
	return c.table != nil && c.table.callers != nil && c.table.callers.foreigners > 0
}

// deliver sends the first n messages of in to the guest and returns how many bytes they have.
func (c *conn) deliver(in *incoming, n int) (total int) {
	var w rowWriter
	last, same := -1, 0 // sizes, to guess the next ones
	if !in.named {
		c.seen(&c.hostSeen)
	}
	for i := range n {
		if in.named {
			from := c.sender(in, i)
			if from == nil {
				if c.table != nil && c.table.callers != nil && c.table.callers.foreign {
					c.elsewhere(in, i)
				} else {
					in.renew(i)
				}
				continue
			}
			if from != c.peer || from.loose {
				w.flush(c)
				c.peer = from
			}
			c.seen(&c.hostSeen)
		}
		b, inArea, size, is := in.take(i)
		if is != c.hdr.marks {
			w.flush(c)
			c.hdr.set(is)
		}
		data := len(b) - flow.Headroom
		total += data
		if data != size {
			w.flush(c)
			c.writeRow(b, size)
			last = -1
			continue
		}
		if size == last {
			same = size
		}
		last = size
		w.add(c, in, b, inArea)
	}
	w.flush(c)
	switch {
	case same >= minGuess && same <= maxRow/2:
		c.guess = same
	case last != c.guess:
		c.guess = 0
	}
	return total
}

// rowWriter gathers datagrams of one size in one place until they go to the guest.
type rowWriter struct {
	b      []byte // headroom and the datagrams
	size   int    // of each
	count  int
	inArea bool // b lies in area, with the next message behind it
	closed bool // nothing may follow
}

// add adds a datagram: b from flow.Headroom on.
func (w *rowWriter) add(c *conn, in *incoming, b []byte, inArea bool) {
	n := len(b) - flow.Headroom
	have := len(w.b) - flow.Headroom
	if w.count == 0 || w.closed || n == 0 || n > w.size || w.count == maxSegments || have+n > maxRow || inArea != w.inArea {
		w.flush(c)
		// In area, a datagram shorter than guessed has a gap behind it, which the size of the
		// slices shows.
		*w = rowWriter{b: b, size: n, count: 1, inArea: inArea, closed: n == 0 || inArea && n < in.guess}
		return
	}
	at := len(w.b)
	w.b = w.b[:at+n]
	if !inArea {
		copy(w.b[at:], b[flow.Headroom:])
	}
	w.count++
	w.closed = n < w.size
}

// flush sends what was gathered.
func (w *rowWriter) flush(c *conn) {
	if w.count > 0 {
		c.writeRow(w.b, w.size)
	}
	w.count = 0
}

// writeRow sends the payload in b, which begins at flow.Headroom, to the guest as datagrams of size
// bytes, of which the last may be shorter. What lies before the payload is overwritten.
func (c *conn) writeRow(b []byte, size int) {
	h := &c.hdr
	if !h.found {
		h.found = true
		src := c.env.SourceMAC(&h.remote)
		copy(h.b[frame.VnetLen+6:], src[:])
	}
	mac := c.env.To(c.station)
	most := max(size, min(maxSegments*size, maxRow))
	if c.env.Oversize(h.len - frame.L3Off + size) {
		most = max(size, 1)
	}
	for {
		n := len(b) - flow.Headroom
		if n > most {
			n = most - most%size
		}
		f := b[flow.Headroom-h.len : cap(b)]
		h.put(f, mac, n, size)
		c.write(f, h.len+n)
		if b = b[n:]; len(b) == flow.Headroom {
			return
		}
	}
}
