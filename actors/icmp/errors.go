package icmp

import (
	"encoding/binary"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
	"fusilli/tapio/frame"
)

const (
	// quoteAt is where the request an error is about is received in a flow.Buffer, behind the room
	// for the message to the guest.
	quoteAt = 4096
	// maxErrors is the number of messages read in one go, far more than a queue holds.
	maxErrors = 1024
)

// Types and codes of ICMP (RFC 792) and ICMPv6 (RFC 4443) that carry an MTU.
const (
	unreachable4, fragNeeded4 = 3, 4
	tooBig6                   = 2
)

// setHeader has requests from now on carry the time to live and type of service of ip, a header of
// the guest's.
func (c *conn) setHeader(ip []byte) {
	hops, tos := ip[8], ip[1]
	if c.v6 {
		hops, tos = ip[7], ip[0]<<4|ip[1]>>4
	}
	if hops != c.hops {
		c.hops = hops
		sock.SetHops(c.fd, c.v6, hops)
	}
	if tos != c.tos {
		c.tos = tos
		sock.SetTOS(c.fd, c.v6, tos)
	}
}

// readErrors empties the socket's error queue (IP_RECVERR, ip(7)) and tells the guest.
func (c *conn) readErrors() {
	buf := c.env.Buffer()
	defer c.env.PutBuffer(buf)
	for range maxErrors {
		r, n, e := sock.ReadReport(c.fd, buf[quoteAt:])
		if e != 0 {
			return
		}
		c.tell(buf, &r, buf[quoteAt:quoteAt+n])
	}
}

// tell sends the guest the report r about the request that began with msg, as the kernel sent it,
// if it came off the network and the guest can make something of its sender. msg is changed, and
// the frame is built at buf's beginning.
func (c *conn) tell(buf *[flow.BufferSize]byte, r *sock.Report, msg []byte) {
	k := c.port.Key()
	want := uint8(unix.SO_EE_ORIGIN_ICMP)
	if c.v6 {
		want = unix.SO_EE_ORIGIN_ICMP6
	}
	src, ok := c.env.ICMPSource(k, c.host, r.From)
	if r.Origin != want || !ok || len(msg) < frame.ICMPLen {
		c.env.Log.Debug("Can't propagate error", zap.Stringer("host", c.host), zap.Stringer("from", r.From),
			zap.Uint8("origin", r.Origin), zap.Error(r.Err))
		return
	}
	c.restore(msg)
	e := frame.ICMPError{
		SrcMAC: c.env.SourceMAC(&src), DstMAC: c.env.To(c.station), Src: src, Type: r.Type, Code: r.Code,
		Guest: k.Guest, Remote: k.Remote, Payload: msg, Echo: true,
	}
	if c.v6 && r.Type == tooBig6 || !c.v6 && r.Type == unreachable4 && r.Code == fragNeeded4 {
		e.Info = r.Info
	}
	c.write(buf[:frame.PutICMPError(buf[:], &e)])
}

// restore puts the guest's identifier into msg, the beginning of a request that was sent, and its
// checksum: over IPv6 that includes the addresses, which were others.
func (c *conn) restore(msg []byte) {
	k := c.port.Key()
	id, sum := binary.BigEndian.Uint16(msg[4:]), binary.BigEndian.Uint16(msg[2:])
	binary.BigEndian.PutUint16(msg[4:], k.GuestPort)
	sum = frame.UpdateChecksum(sum, id, k.GuestPort)
	if local, ok := sock.Local(c.fd); ok && c.v6 {
		src, dst := frame.AddrOf(local.Addr()), frame.AddrOf(c.host)
		sum = frame.UpdateChecksum(sum, frame.Fold(frame.PseudoSum(&src, &dst, frame.ProtoICMPv6, 0)),
			frame.Fold(frame.PseudoSum(&k.Guest, &k.Remote, frame.ProtoICMPv6, 0)))
	}
	binary.BigEndian.PutUint16(msg[2:], sum)
}
