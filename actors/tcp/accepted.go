package tcp

import (
	"net/netip"

	"go.uber.org/zap"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
	"fusilli/tapio/frame"
)

// ServeAccepted runs the connection of port that a peer on the host's side has asked for, until it
// ends, and leaves the port closed. fd is the accepted socket, non-blocking, which belongs to the
// connection from here on; peer is who it talks to.
//
// The peer has its connection already: a guest that refuses shows as a reset.
func ServeAccepted(env *flow.Env, port *flow.Port, fd int, peer netip.AddrPort) {
	c := &conn{env: env, port: port, host: peer, fd: fd}
	defer c.close()
	if c.call() {
		c.run()
	}
}

// call sends the guest a SYN. It reports whether the flow goes on.
func (c *conn) call() bool {
	c.state = synSent
	c.scale = ourScale
	c.mss = defaultMSS
	c.begin()
	c.hdr.from(c.env.SourceMAC(&c.port.Key().Remote))
	c.first = c.firstWindow()
	// First of all: the guest works on it while we go on.
	c.sendSYN()
	c.sndNxt = c.sndUna + 1
	c.sndMax = c.sndNxt
	c.rtoAt = c.seenAt + c.rto
	if err := c.port.Open(c.fd, c.fromHost); err != nil {
		c.env.NoSocket(c.port, "TCP: Unable to open socket for new connection", err)
		c.abort(true)
		return false
	}
	sock.PrepareStream(c.fd)
	if c.env.PeekOff4 || c.env.PeekOff6 {
		// The socket may be of either family, whatever the addresses: the kernel knows.
		c.peekOff = sock.SetPeekOffset(c.fd, 0) == 0
	}
	return true
}

// answered handles a segment that comes while the guest is asked for the connection (RFC 9293,
// section 3.10.7.3).
func (c *conn) answered(v *flow.View, tcp frame.TCPHeader) {
	fl := tcp.Flags()
	switch {
	case fl&frame.ACK != 0 && tcp.Ack() != c.sndNxt:
		// From an earlier connection with these ports. A reset makes the guest forget it, so that
		// it takes the SYN when that is repeated.
		if fl&frame.RST == 0 {
			c.bareRST(tcp.Ack())
		}
	case fl&frame.RST != 0:
		if fl&frame.ACK != 0 {
			c.env.Log.Debug("guest refuses the connection", zap.Stringer("host", c.host))
			c.abort(false)
		}
	case fl&(frame.SYN|frame.ACK|frame.FIN) == frame.SYN|frame.ACK:
		c.synced(v)
		c.state = established
		c.port.Assured()
		c.sndUna = c.sndNxt
		c.handshake()
		c.sendAck() // before any data
	case Opens(tcp):
		// Both have asked at the same time (RFC 9293, section 3.5, figure 7).
		c.synced(v)
		c.state = synReceived
		c.crossed = true
		c.sendSYN()
	case fl&(frame.SYN|frame.ACK) == frame.SYN|frame.ACK:
		c.abort(true) // it has an end too: the guest knows our SYN, and makes no sense
	default:
		// Dropped. A guest whose SYN,ACK was lost may answer the SYN that we repeat like that (RFC
		// 5961, section 4), until it repeats its own.
	}
}

// bareRST sends a reset without an acknowledgement, for a connection that is not this one.
func (c *conn) bareRST(seq uint32) {
	buf := c.env.Buffer()
	defer c.env.PutBuffer(buf)
	c.hdr.put(buf[:], c.to(), seq, 0, frame.RST, 0, 0, 0, c.mss)
	c.write(buf[:], c.hdr.len)
}
