package udp

import (
	"net/netip"

	"go.uber.org/zap"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
	"fusilli/tapio/frame"
)

const (
	// defaultTTL is what the kernel puts into packets unless told otherwise (ip(7), ip_default_ttl).
	defaultTTL = 64
	// bulkBuffer is what the socket's buffers are set to when one of them was full. The kernel takes
	// no more than net.core.rmem_max and wmem_max.
	bulkBuffer = 4 << 20
)

// Dialer makes the sockets of flows.
type Dialer interface {
	// UDP returns a non-blocking datagram socket connected to addr and, if possible, bound to port.
	UDP(port uint16, addr netip.AddrPort) (fd int, err error)
}

// conn is one flow. Serve's goroutine is the only one that touches it.
type conn struct {
	env  *flow.Env
	port *flow.Port
	host netip.AddrPort // whom the socket is connected to
	fd   int

	fresh     bool  // what is in the socket's queue may be from before it was connected
	failed    bool  // the socket cannot go on
	sendError bool  // a call has taken an error off the socket: its error queue is to be read
	bigSend   bool  // the send buffer was enlarged
	bigRecv   bool  // the receive buffer was enlarged
	accepted  bool  // the host has begun
	ttl, tos  uint8 // of what is sent

	segLimit int // datagrams of this size and above are not sent in rows
	guess    int // size of the datagrams that came last from the host, if they came in a row

	lastAt               flow.Time // last datagram in either direction
	guestBatch, hostSeen uint8     // batches of datagrams from either side, up to 2

	hdr header
}

// Serve runs the flow of port, whose mailbox holds the guest's first datagram, until it ends, and
// leaves the port closed. host is where it leads to.
func Serve(env *flow.Env, port *flow.Port, dialer Dialer, host netip.AddrPort) {
	defer port.Close()
	c := &conn{env: env, port: port, host: host, fresh: true, ttl: defaultTTL, segLimit: maxRow}
	ok := c.open(dialer)
	port.Opened()
	if ok {
		c.run()
	}
}

// ServeAccepted runs the flow of port that a peer on the host's side has begun, until it ends, and
// leaves the port closed. fd is a non-blocking socket connected to peer, which belongs to the flow
// from here on; first are the peer's datagrams so far, and those in the socket follow them.
func ServeAccepted(env *flow.Env, port *flow.Port, fd int, peer netip.AddrPort, first [][]byte) {
	defer port.Close()
	c := &conn{env: env, port: port, host: peer, fresh: true, accepted: true, ttl: defaultTTL, segLimit: maxRow}
	sock.PrepareUDP(fd)
	if c.take(fd) {
		c.deliverFirst(first)
		c.run()
	}
}

// Deliver sends the guest datagrams of the flow k that somebody else has received. Any goroutine may
// call it.
func Deliver(env *flow.Env, k *flow.Key, datagrams [][]byte) {
	c := &conn{env: env}
	c.hdr.init(env, k)
	c.deliverFirst(datagrams)
}

func (c *conn) run() {
	for c.step() {
		if !c.port.Spin(&c.env.Rhythm) {
			c.port.Wait(true, 0)
		}
	}
}

// open makes the socket. It reports whether the flow goes on.
func (c *conn) open(dialer Dialer) bool {
	fd, err := dialer.UDP(c.port.Key().GuestPort, c.host)
	if err != nil {
		c.noSocket(err)
		return false
	}
	return c.take(fd)
}

// take makes fd the flow's socket.
func (c *conn) take(fd int) bool {
	c.fd = fd
	if err := c.port.Open(fd, c.fromHost); err != nil {
		c.env.Log.Warn("socket cannot be waited for", zap.Error(err))
		return false
	}
	c.hdr.init(c.env, c.port.Key())
	c.lastAt = flow.Now()
	return true
}

// noSocket logs that there is no socket. Destinations that cannot be reached are none of our
// business, but the lack of descriptors or memory is, and is said once in a while.
func (c *conn) noSocket(err error) {
	const text = "Dropping datagram with no flow"
	c.env.Log.Debug(text, zap.Stringer("host", c.host), zap.Error(err))
	c.env.NoSocket(c.port, text, err)
}

// step does all there is to do before the actor sleeps. It reports whether the flow goes on.
func (c *conn) step() bool {
	c.fromGuest()
	if c.port.Mail() {
		// The guest keeps us busy and Wait will not look at the socket.
		c.fromHost()
	}
	if c.sendError {
		c.readErrors()
	}
	if c.port.Stopped() || c.failed {
		return false
	}
	if c.port.Alarmed() {
		c.port.AlarmDone()
		if flow.Now() >= c.expiry() {
			return false
		}
	}
	c.port.SetAlarm(c.expiry())
	return true
}

// expiry returns when the flow ends if nothing more happens.
func (c *conn) expiry() flow.Time {
	answered := c.hostSeen > 0
	if c.accepted {
		answered = c.guestBatch > 0
	}
	if answered && (c.hostSeen > 1 || c.guestBatch > 1) {
		c.port.Settled()
		return c.lastAt + flow.Time(c.env.UDPStreamTimeout)
	}
	if answered {
		c.port.Answered()
	}
	return c.lastAt + flow.Time(c.env.UDPTimeout)
}

// seen notes that side, one of c's counters, has sent.
func (c *conn) seen(side *uint8) {
	c.lastAt = flow.Now()
	*side = min(*side+1, 2)
}

// setMarks has what is sent from now on carry the guest's time to live or hop limit, and its type of
// service or traffic class.
func (c *conn) setMarks(ttl, tos uint8) {
	v6 := c.host.Addr().Is6()
	if ttl != c.ttl {
		c.ttl = ttl
		sock.SetHops(c.fd, v6, ttl)
	}
	if tos != c.tos {
		c.tos = tos
		sock.SetTOS(c.fd, v6, tos)
	}
}

// write hands the frame of n bytes at the start of b, which has room for frame.MinFrame bytes, to
// the link.
func (c *conn) write(b []byte, n int) {
	if err := c.env.Write(b[:frame.Pad(b, n)]); err != nil {
		// Either that frame is lost, or the link is: then its reader ends everything.
		c.env.Counters.LinkDropped.Add(1)
	}
}
