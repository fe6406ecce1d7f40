package udp

import (
	"net/netip"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
	"fusilli/tapio/frame"
)

// Types and codes of ICMP (RFC 792) and ICMPv6 (RFC 4443) that carry an MTU.
const (
	unreachable4, fragNeeded4 = 3, 4
	tooBig6                   = 2
)

const (
	// quoteAt is where the datagram an error is about is received in a flow.Buffer, behind the room
	// for the message to the guest.
	quoteAt = 4096
	// maxErrors is the number of messages read in one go, far more than a queue holds.
	maxErrors = 1024
)

// recoverable reports whether the socket may go on after a call has returned e.
func (c *conn) recoverable(e unix.Errno) bool {
	switch e {
	case unix.EBADF, unix.ENOTSOCK, unix.EINVAL, unix.EFAULT, unix.ENOTCONN, unix.ENODEV:
		c.env.Log.Debug("Unrecoverable error on flow socket", zap.Stringer("host", c.host), zap.Error(e))
		return false
	}
	return true
}

// readErrors empties the socket's error queue (IP_RECVERR, ip(7)) and tells the guest.
func (c *conn) readErrors() {
	c.sendError = false
	buf := c.env.Buffer()
	defer c.env.PutBuffer(buf)
	for range maxErrors {
		r, n, e := sock.ReadReport(c.fd, buf[quoteAt:])
		if e != 0 {
			return
		}
		if c.about(&r) {
			c.tell(buf, &r, buf[quoteAt:quoteAt+n])
		} else {
			c.env.Log.Debug("Ignoring UDP error without flow", zap.Stringer("host", r.To))
		}
	}
}

// tell sends the guest the report r about a datagram that began with payload, if it came off the
// network and the guest can make something of its sender. The frame is built at buf's beginning.
func (c *conn) tell(buf *[flow.BufferSize]byte, r *sock.Report, payload []byte) {
	k := c.key
	want := uint8(unix.SO_EE_ORIGIN_ICMP)
	if k.V6() {
		want = unix.SO_EE_ORIGIN_ICMP6
	}
	src, ok := c.present(r.From)
	if r.Origin != want || !ok {
		c.env.Log.Debug("Can't propagate error", zap.Stringer("host", c.host), zap.Stringer("from", r.From),
			zap.Uint8("origin", r.Origin), zap.Error(r.Err))
		return
	}
	e := frame.ICMPError{
		SrcMAC: c.env.SourceMAC(&src), DstMAC: c.env.To(c.station), Src: src, Type: r.Type, Code: r.Code,
		Guest: k.Guest, Remote: k.Remote, GuestPort: k.GuestPort, RemotePort: k.RemotePort,
		Payload: payload,
	}
	if k.V6() && r.Type == tooBig6 || !k.V6() && r.Type == unreachable4 && r.Code == fragNeeded4 {
		e.Info = r.Info
	}
	c.write(buf[:], frame.PutICMPError(buf[:], &e))
}

// present returns the address by which the guest knows a, the sender of an error, if it can know
// it.
func (c *conn) present(a netip.Addr) (frame.Addr, bool) {
	return c.env.ICMPSource(c.key, c.host.Addr(), a)
}
