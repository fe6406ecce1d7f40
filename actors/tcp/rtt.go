package tcp

import (
	"time"

	"fusilli/actors/flow"
)

// rtoAfterSYN is the time-out of a guest whose handshake took a repetition, until it is measured
// (RFC 6298, section 5.7).
const rtoAfterSYN = flow.Time(3 * time.Second)

// rtt measures how long the guest takes to acknowledge, one segment at a time, and none that was
// sent more than once (RFC 6298).
type rtt struct {
	smooth, vary flow.Time
	base         flow.Time // the time-out before any doubling
	seq          uint32    // what acknowledges the segment that is measured
	at           flow.Time // when that was sent; 0: none is
}

// begin starts to measure a segment that ends before seq, unless one is measured.
func (r *rtt) begin(seq uint32, now flow.Time) {
	if r.at == 0 {
		r.seq, r.at = seq, now
	}
}

// acked is told of an acknowledgement of new data.
func (r *rtt) acked(ack uint32, now flow.Time) {
	if r.at != 0 && seqGE(ack, r.seq) {
		r.sample(now - r.at)
		r.at = 0
	}
}

// again is told that segments are sent again: what acknowledges them says nothing about time.
func (r *rtt) again() { r.at = 0 }

// sample takes a measurement (RFC 6298, sections 2.2 and 2.3).
func (r *rtt) sample(d flow.Time) {
	d = max(d, 1)
	if r.smooth == 0 {
		r.smooth, r.vary = d, d/2
	} else {
		r.vary += (max(r.smooth-d, d-r.smooth) - r.vary) / 4
		r.smooth += (d - r.smooth) / 8
	}
	r.base = min(max(rtoMin, r.smooth+4*r.vary), rtoMax)
}

// handshake is told that the guest has answered our SYN, or SYN,ACK, which the time-out rto was
// running for until rtoAt and which was repeated so many times.
func (c *conn) handshake() {
	if c.retries == 0 && c.rtoAt != 0 {
		c.rtt.sample(c.seenAt - (c.rtoAt - c.rto))
	} else {
		c.rtt.base = rtoAfterSYN
	}
	c.retries = 0
	c.rto = c.rtt.base
	c.rtoAt = 0
}
