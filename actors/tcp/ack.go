package tcp

import (
	"time"

	"fusilli/actors/flow"
)

const (
	// ackEvery is the number of bytes in order that are acknowledged together on a link where each
	// frame is one segment; on others a frame is about as long.
	ackEvery = 8 << 10
	// ackDelay is how long they wait for that number. Senders with a full window lose nothing by it,
	// and all others have more to wait for.
	ackDelay = flow.Time(time.Millisecond)
	// promptAcks is the number of bytes at the beginning of a connection that are acknowledged at
	// once: a sender that starts slowly waits for acknowledgements.
	promptAcks = 256 << 10
)

// ackLater reports whether the acknowledgement of data in order can wait, and sees to it that it does
// not wait for long. That is so in bulk transfers over a link without offloads, where data comes in
// single segments and each acknowledgement would cost the guest an interrupt (RFC 9293, section
// 3.8.6.3, wants one for every second segment, of a receiver that gets them one by one).
func (c *conn) ackLater() bool {
	n := int(c.rcvNxt - c.ackSent)
	if c.env.Gate == nil || n < c.mss || n >= ackEvery {
		return false
	}
	if c.prompt > 0 {
		c.prompt -= n
		return false
	}
	if c.rcvEdge-c.rcvNxt < ackEvery {
		return false // the window closes
	}
	if c.ackBy == 0 {
		c.ackBy = flow.Now() + ackDelay
		c.port.SetAlarm(c.ackBy)
	}
	return true
}
