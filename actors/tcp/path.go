package tcp

import "fusilli/actors/flow"

const (
	leastMTU6 = 1280 // RFC 8200, section 5
	// unsaidMTU is what is taken for the MTU where a router does not say it (RFC 1191, section 5).
	unsaidMTU = 576
)

// tooBig handles what a router behind the guest has said about the segment that begins at seq:
// packets longer than mtu do not get there. It is believed about what is on the way only (RFC 5927,
// section 7.2), and that is sent again in segments that fit. They do not grow again.
func (c *conn) tooBig(seq uint32, mtu int) {
	if c.state != established || seqLT(seq, c.sndUna) || seqGE(seq, c.sndMax) {
		return
	}
	switch {
	case mtu == 0:
		mtu = unsaidMTU
	case c.hdr.v6:
		mtu = max(mtu, leastMTU6)
	}
	mss := max(mtu-(c.hdr.len-ipAt), leastMSS)
	if mss >= c.mss {
		return
	}
	c.mss = mss
	if !c.finSent || c.sndUna+1 != c.sndMax {
		c.rewind()
	}
	if c.rtoAt == 0 {
		c.rtoAt = flow.Now() + c.rto
	}
}
