package udp

import (
	"sync"
	"unsafe"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
	"fusilli/tapio/frame"
)

const (
	maxRows   = 32  // messages in one sendmmsg
	maxPieces = 256 // pieces of payload in all of them
	maxRuns   = 32  // runs that wait for it
)

// outgoing gathers datagrams from the guest until they are sent: rows, each a message of its own,
// in pieces that lie in the frames they came in. It belongs to one actor from fromGuest's beginning
// to its end.
type outgoing struct {
	msgs    [maxRows]sock.Message
	control [maxRows]sock.SendControl
	rows    [maxRows]superSegment
	n       int // rows

	iov    [maxPieces]unix.Iovec
	pieces int

	runs [maxRuns]flow.Run // what the pieces lie in
	held int
}

// superSegment is datagrams of one size, but for the last one, which may be shorter.
type superSegment struct {
	size   int // of each
	to     *peer
	count  int
	bytes  int
	first  int  // piece
	closed bool // the last one is shorter
}

var outgoings = sync.Pool{New: func() any { return new(outgoing) }}

// fromGuest sends what lies in the mailbox, or as much of it as fits one batch.
func (c *conn) fromGuest() {
	r, ok := c.port.Recv()
	if !ok {
		return
	}
	c.batch++
	c.met = 0
	var begin flow.Time
	if c.shares { // no other socket meets new peers
		begin = flow.Now()
	}
	o := outgoings.Get().(*outgoing)
	n := 0
	for ok {
		n += r.Len()
		frames := r
		var v flow.View
		for at := frames; frames.Next(&v); at = frames {
			if c.shares {
				if ok, elsewhere := c.selectPeer(o, &v); !ok {
					if elsewhere {
						c.env.Sharing.Elsewhere(at.Until(&frames))
					}
					continue
				}
			}
			c.seen(&c.guestBatch)
			c.datagrams(o, &v)
		}
		o.runs[o.held] = r
		o.held++
		if o.held == maxRuns {
			break
		}
		r, ok = c.port.Recv()
	}
	c.flush(o)
	if c.met > 0 {
		c.env.Peers.Charge(c.met, begin, flow.Now())
	}
	c.env.Message(c.port, flow.FromGuest, n)
	for i := range o.runs[:o.held] {
		o.runs[i].Release()
	}
	o.held = 0
	outgoings.Put(o)
}

// datagrams adds the datagrams of one frame to o.
func (c *conn) datagrams(o *outgoing, v *flow.View) {
	c.env.See(&c.station, v.Frame)
	ip := v.Frame[v.L3 : v.L3+9]
	ttl, tos := ip[8], ip[1]
	if c.hdr.v6 {
		ttl, tos = ip[7], ip[0]<<4|ip[1]>>4
	}
	if m := (ipFields{ttl, tos}); m != *c.marks() {
		c.flush(o)
		c.setMarks(m)
	}
	data := v.Data()
	size := len(data)
	if v.Frame[1] == frame.GSOUDP {
		size = min(size, int(frame.GetVnet(v.Frame).GSOSize))
	}
	for {
		room := o.room(c.peer, size)
		if room < 0 {
			if !o.begin(c.peer, size) {
				c.flush(o)
				o.begin(c.peer, size)
			}
			room = o.room(c.peer, size)
		}
		n := len(data)
		if n > room {
			n = room - room%size
		}
		o.add(data[:n], size)
		if data = data[n:]; len(data) == 0 {
			return
		}
	}
}

// begin starts a row of datagrams of size bytes to a peer, if there is room for one.
func (o *outgoing) begin(to *peer, size int) bool {
	if o.n == maxRows || o.pieces == maxPieces {
		return false
	}
	o.rows[o.n] = superSegment{size: size, to: to, first: o.pieces}
	o.n++
	return true
}

// room returns how many bytes of datagrams of size bytes to a peer may be added to the last row as
// one piece, at least size; -1 for none at all.
func (o *outgoing) room(to *peer, size int) int {
	if o.n == 0 {
		return -1
	}
	r, limit := &o.rows[o.n-1], to.segLimit
	if r.to != to {
		return -1
	}
	if r.count == 0 {
		if size == 0 || size >= limit {
			return size
		}
		return max(size, min(maxSegments*size, maxRow))
	}
	if o.pieces == maxPieces || r.closed || size == 0 || size > r.size || r.size >= limit || r.count == maxSegments || r.bytes+size > maxRow {
		return -1
	}
	if size < r.size {
		return size
	}
	return min((maxSegments-r.count)*size, maxRow-r.bytes)
}

// add adds data, no more than room says, to the last row.
func (o *outgoing) add(data []byte, size int) {
	r := &o.rows[o.n-1]
	v := &o.iov[o.pieces]
	v.Base = unsafe.SliceData(data)
	v.SetLen(len(data))
	o.pieces++
	r.bytes += len(data)
	if size == 0 {
		r.count, r.closed = 1, true
		return
	}
	r.count += (len(data) + size - 1) / size
	r.closed = size < r.size || len(data)%size != 0
}

// flush sends what o has gathered. It leaves the runs to the caller, since the last one may still
// be in use.
func (c *conn) flush(o *outgoing) {
	for i := range o.n {
		o.prepare(i)
	}
	retried := 0
	for i := 0; i < o.n; {
		n, e := o.send(c.fd, i)
		switch {
		case e == 0:
			if i += n; i < o.n {
				// the call has stopped at an error, perhaps, and kept that to itself
				c.sendError = true
			}
			retried = 0
		case e == unix.EAGAIN && !c.bigSend:
			c.bigSend = true
			unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, bulkBuffer)
		case e == unix.EAGAIN:
			i = o.n // lost
		case retried < c.retries():
			// Most likely an error that some earlier datagram has met, reported once.
			retried++
			c.sendError = true
		default:
			retried = 0
			if r := &o.rows[i]; r.count == 1 && badSource(r.to, e) {
				o.prepare(i)
				continue
			}
			if o.rows[i].count > 1 && sock.RefusesRows(e) {
				c.oneByOne(o, i, e)
			} else {
				c.env.Log.Debug("send", zap.Stringer("host", o.rows[i].to.host), zap.Int("bytes", o.rows[i].bytes), zap.Error(e))
			}
			i++
		}
	}
	for i := range o.n {
		o.rows[i].to = nil
	}
	o.n, o.pieces = 0, 0
}

// badSource reports whether e may say that there is no sending from the address that to has spoken
// to, which is left to the kernel from now on.
func badSource(to *peer, e unix.Errno) bool {
	if !to.source.Chosen() || e != unix.EINVAL && e != unix.EADDRNOTAVAIL {
		return false
	}
	to.source = sock.Source{}
	return true
}

// prepare makes row i a message.
func (o *outgoing) prepare(i int) {
	r := &o.rows[i]
	end := o.pieces
	if i+1 < o.n {
		end = o.rows[i+1].first
	}
	h := &o.msgs[i].Hdr
	h.Iov = &o.iov[r.first]
	h.SetIovlen(end - r.first)
	h.Name, h.Namelen = nil, 0
	if r.to.named > 0 {
		h.Name, h.Namelen = (*byte)(unsafe.Pointer(&r.to.addr)), r.to.named
	}
	size := 0
	if r.count > 1 {
		size = r.size
	}
	o.control[i].Attach(h, size, &r.to.source)
}

// send sends rows from i on with as little ado as possible and returns how many of them.
func (o *outgoing) send(fd, i int) (int, unix.Errno) {
	m := &o.msgs[i]
	switch {
	case i+1 < o.n:
		return sock.SendBatch(fd, o.msgs[i:o.n])
	case m.Hdr.Control == nil && m.Hdr.Iovlen == 1 && m.Hdr.Name == nil:
		v := m.Hdr.Iov
		return 1, sock.Send(fd, unsafe.Slice(v.Base, v.Len))
	default:
		return 1, sock.SendMessage(fd, &m.Hdr)
	}
}

// oneByOne sends row i, which the kernel refused with e to segment, as single datagrams.
func (c *conn) oneByOne(o *outgoing, i int, e unix.Errno) {
	r := &o.rows[i]
	to := r.to
	to.segLimit = min(to.segLimit, r.size)
	if e != unix.EINVAL && e != unix.EMSGSIZE {
		to.segLimit = 0
	}
	end := o.pieces
	if i+1 < o.n {
		end = o.rows[i+1].first
	}
	for _, v := range o.iov[r.first:end] {
		data := unsafe.Slice(v.Base, v.Len)
		for len(data) > 0 {
			n := min(r.size, len(data))
			switch e := sock.SendFrom(c.fd, data[:n], &to.addr, to.named, &to.source); e {
			case 0:
			case unix.EAGAIN:
				return
			default:
				c.sendError = !badSource(to, e)
				sock.SendFrom(c.fd, data[:n], &to.addr, to.named, &to.source)
			}
			data = data[n:]
		}
	}
}
