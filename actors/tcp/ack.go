package tcp

import (
	"time"

	"fusilli/actors/flow"
)

const (
	// ackLeast is the number of bytes in order that are acknowledged together, on a link where each
	// frame is one segment, if two segments are less.
	ackLeast = 8 << 10
	// ackDelay is how long they wait for that number. Senders with a full window lose nothing by
	// it, and all others have more to wait for.
	ackDelay = flow.Time(time.Millisecond)
	// promptAcks is the number of bytes that are acknowledged at once at the beginning of a
	// connection, after a gap, and after an acknowledgement that has waited in vain: a sender that
	// starts slowly, or has little room, waits for acknowledgements.
	promptAcks = 256 << 10
)

// ackEvery is the number of bytes in order that are acknowledged together.
func (c *conn) ackEvery() int { return max(ackLeast, 2*c.mss) }

// ackLater reports whether the acknowledgement of data in order can wait, and sees to it that it
// does not wait for long. That is so in bulk transfers over a link without offloads, where data
// comes in single segments and each acknowledgement would cost the guest an interrupt. RFC 9293,
// section 3.8.6.3, wants one for every second full-sized segment; of short ones a few more are let
// gather.
func (c *conn) ackLater() bool {
	n := int(c.rcvNxt - c.ackSent)
	every := c.ackEvery()
	if c.env.Backpressure == nil || n < c.mss || n >= every {
		return false
	}
	if c.prompt > 0 {
		c.prompt -= n
		return false
	}
	if c.rcvEdge-c.rcvNxt < uint32(every) {
		return false // the window closes
	}
	if c.ackBy == 0 {
		c.ackBy = flow.Now() + ackDelay
		c.port.SetAlarm(c.ackBy)
	}
	return true
}
