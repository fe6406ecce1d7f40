package tcp

import (
	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
	"fusilli/tapio/frame"
)

// fromHost is what the actor does in its wait, before it sleeps and whenever the socket may be
// readable. It moves what the peer has sent to the guest, and then sends the acknowledgement that
// is due, if it did not go with the data and no data is looked for that it may go with. It returns
// true if something else is to be done first.
func (c *conn) fromHost() bool {
	if c.forward() {
		return true
	}
	if !c.spinning && (c.ackNow || c.ackDue && !c.ackLater()) {
		c.sendAck()
	}
	return false
}

// forward moves what the peer has sent to the guest until there is no more, or no room.
func (c *conn) forward() bool {
	if c.state != established {
		// What the peer sends meanwhile stays in the socket; but it may be gone.
		c.failed = c.state != connecting && sock.Poll(c.fd, 0) != 0
		return c.failed
	}
	if c.finSent {
		// Nothing more to read; but the connection may still be reset.
		if e := c.socketError(); e != 0 {
			c.sockErr, c.failed = e, true
			return true
		}
		return false
	}
	if c.env.AwaitRoom(c.port) {
		return false
	}
	buf := c.env.Buffer()
	defer c.env.PutBuffer(buf)
	for {
		room := c.room()
		if room == 0 {
			// An acknowledgement or window update comes by mail; a reset shows as an error only.
			if e := c.socketError(); e != 0 {
				c.sockErr, c.failed = e, true
				return true
			}
			return false
		}
		flight := int(c.sndNxt - c.sndUna)
		n, err := c.peek(buf[flow.Headroom:flow.Headroom+room], flight)
		switch {
		case err == unix.EAGAIN:
			return false
		case sock.NoMemory(err):
			c.port.SetAlarm(flow.Now() + tryAgain)
			return false
		case err != 0:
			c.sockErr, c.failed = err, true
			return true
		case n == 0:
			c.eof = true
			return true
		}
		fl := uint8(0)
		if n < room || flight == 0 && !c.holdsMore(n) {
			// Nothing follows it: some guests keep data back until they see that. To ask costs a
			// call, and who has more in flight is likely to have more to come.
			fl = frame.PSH
		}
		now := c.arm()
		sent := c.send(buf, c.sndNxt, fl, n)
		// Of a row that was lost on a link without offloads, the guest may have got a part.
		if end := c.sndNxt + uint32(n); seqGT(end, c.sndMax) {
			c.sndMax = end
			c.rtt.begin(end, now)
		}
		if !sent {
			// The same again in a moment.
			c.setPeek(flight)
			c.again = true
			if c.env.AwaitRoom(c.port) {
				return false
			}
			c.port.SetAlarm(flow.Now() + linkRetry)
			return false
		}
		c.sndNxt += uint32(n)
		c.env.Message(c.port, flow.FromHost, n)
		if c.port.Mail() {
			return true
		}
		if c.env.AwaitRoom(c.port) {
			return false
		}
	}
}

// arm starts the retransmission timer for data about to be sent, unless it runs. It returns the
// time.
func (c *conn) arm() flow.Time {
	now := flow.Now()
	c.liveAt = now
	if c.rtoAt == 0 {
		c.rtoAt = now + c.rto
		c.port.SetAlarm(c.rtoAt)
	}
	return now
}

// room returns how much payload may go to the guest in the next segment: a multiple of its MSS
// where more than one fits.
func (c *conn) room() int {
	flight := c.sndNxt - c.sndUna
	if flight >= c.guestWnd {
		return 0
	}
	room := int(c.guestWnd - flight)
	if room < c.mss && flight > 0 {
		return 0 // silly window avoidance, sender's side (RFC 9293, section 3.8.6.2.1)
	}
	room = min(room, c.maxPayload)
	if room > c.mss {
		room -= room % c.mss
	}
	return room
}

// sendFIN tells the guest that the peer has sent everything. All data before it was sent, if
// perhaps not acknowledged.
func (c *conn) sendFIN() {
	c.finSent, c.finOnce = true, true
	c.arm()
	c.flags(c.sndNxt, frame.FIN)
	c.sndNxt++
	if seqGT(c.sndNxt, c.sndMax) {
		c.sndMax = c.sndNxt
	}
}

// rewind goes back to the first byte that is not acknowledged; sending starts again from there.
func (c *conn) rewind() {
	c.sndNxt = c.sndUna
	c.recovering = false
	c.dupAcks = 0
	c.rtt.again()
	c.finSent, c.eof = false, false // they follow the data again
	c.setPeek(0)
}

// resendFirst sends the first segment that is not acknowledged once more and leaves everything
// else as it is.
func (c *conn) resendFirst() {
	c.rtt.again()
	out := int(c.sndMax - c.sndUna)
	if c.finSent && !c.finAcked {
		out--
	}
	if out <= 0 {
		if c.finSent {
			c.flags(c.sndUna, frame.FIN)
		}
		return
	}
	buf := c.env.Buffer()
	defer c.env.PutBuffer(buf)
	flight := int(c.sndNxt - c.sndUna)
	if c.finSent {
		flight = out
	}
	c.setPeek(0)
	n, err := c.peek(buf[flow.Headroom:flow.Headroom+min(out, c.mss)], 0)
	c.setPeek(flight)
	if err == 0 && n > 0 {
		c.send(buf, c.sndUna, 0, n)
	}
}
