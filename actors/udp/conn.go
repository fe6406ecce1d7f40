package udp

import (
	"net/netip"

	"go.uber.org/zap"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
	"fusilli/tapio/frame"
)

const (
	// defaultTTL is what the kernel puts into packets unless told otherwise (ip(7),
	// ip_default_ttl).
	defaultTTL = 64
	// bulkBuffer is what the socket's buffers are set to when one of them was full. The kernel
	// takes no more than net.core.rmem_max and wmem_max.
	bulkBuffer = 4 << 20
)

// Dialer makes the sockets of flows.
type Dialer interface {
	// UDP returns a non-blocking datagram socket connected to addr and, if possible, bound to port.
	// What it holds is released when it is closed.
	UDP(port uint16, addr netip.AddrPort) (fd int, held sock.Held, err error)
	// ShareUDP returns another one bound to the port of fd, which is one of UDP, and connected to
	// nobody. It fails if somebody else might miss what comes to that port.
	ShareUDP(fd int) (int, error)
	// Contested reports whether somebody else has by now the port of fd, which is one of ShareUDP.
	Contested(fd int) bool
}

// conn is one flow, or those that share a socket. Serve's goroutine is the only one that touches
// it.
type conn struct {
	env    *flow.Env
	port   *flow.Port
	dialer Dialer
	fd     int
	held   sock.Held // the port of fd

	station flow.Station // where the guest's end is

	*peer      // whom it is about now
	one   peer // whom the flow was made for
	// all peers of a socket that is connected to nobody; nil: it is connected to one
	table *peerTable
	batch uint32 // number of the last batch of datagrams

	fresh     bool        // what is in the socket's queue may be from before it was connected
	failed    bool        // the socket cannot go on
	met       int         // new peers in this batch
	shares    bool        // the mailbox may have datagrams to other peers
	sendError bool        // a call has taken an error off the socket: its error queue is to be read
	bigSend   bool        // the send buffer was enlarged
	bigRecv   bool        // the receive buffer was enlarged
	accepted  bool        // the host has begun
	out       [2]ipFields // of what is sent, for IPv4 and IPv6

	guess int // size of the datagrams that came last from the host, if they came in a row
}

// peer is one remote end, and what is known of the flow with it.
type peer struct {
	key  *flow.Key
	host netip.AddrPort // whom the socket is connected to, or would be

	segLimit int // datagrams of this size and above are not sent in rows

	lastAt               flow.Time // last datagram in either direction
	guestBatch, hostSeen uint8     // batches of datagrams from either side, up to 2
	batch                uint32    // the last one that was counted

	hdr header

	tableEntry // what only peers in a table need
}

// newConn returns the flow of port, which leads to host.
func newConn(env *flow.Env, port *flow.Port, host netip.AddrPort) *conn {
	c := &conn{env: env, port: port, fresh: true, out: [2]ipFields{{ttl: defaultTTL}, {ttl: defaultTTL}}}
	c.one = peer{key: port.Key(), host: host, segLimit: maxRow}
	c.peer = &c.one
	return c
}

// Serve runs the flow of port, whose mailbox holds the guest's first datagram, until it ends, and
// leaves the port closed. host is where it leads to.
func Serve(env *flow.Env, port *flow.Port, dialer Dialer, host netip.AddrPort) {
	c := newConn(env, port, host)
	defer c.held.Release()
	defer port.Close()
	c.dialer, c.shares = dialer, env.Sharing != nil && port.Shared() != nil
	ok := c.open()
	port.Opened()
	if ok {
		defer c.unshare()
		c.run()
	}
}

// ServeAccepted runs the flow of port that a peer on the host's side has begun, until it ends, and
// leaves the port closed. fd is a non-blocking socket connected to peer, which belongs to the flow
// from here on; first are the peer's datagrams so far, and those in the socket follow them.
func ServeAccepted(env *flow.Env, port *flow.Port, fd int, peer netip.AddrPort, first [][]byte) {
	defer port.Close()
	c := newConn(env, port, peer)
	c.accepted = true
	sock.PrepareUDP(fd)
	if c.take(fd) {
		c.deliverFirst(first)
		c.run()
	}
}

// Deliver sends the guest datagrams of the flow k that somebody else has received. Any goroutine
// may call it.
func Deliver(env *flow.Env, k *flow.Key, datagrams [][]byte) {
	c := &conn{env: env}
	c.peer = &c.one
	c.hdr.init(env, k)
	c.deliverFirst(datagrams)
}

func (c *conn) run() {
	for c.step() {
		if !c.port.Spin(&c.env.Spinner) {
			c.port.Wait(true, 0)
		}
	}
	if c.table != nil && !c.failed {
		c.fromHost() // the port is wanted for others, but this was for us
	}
}

// open makes the socket. It reports whether the flow goes on.
func (c *conn) open() bool {
	fd, held, err := c.dialer.UDP(c.port.Key().GuestPort, c.host)
	if c.held = held; err != nil {
		c.noSocket(err)
		return false
	}
	return c.take(fd)
}

// take makes fd the flow's socket.
func (c *conn) take(fd int) bool {
	c.fd = fd
	if err := c.port.Open(fd, c.fromHost); err != nil {
		c.noSocket(err)
		return false
	}
	c.hdr.init(c.env, c.key)
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
	if c.table != nil {
		c.lookAgain(c.lastAt)
	}
	if c.port.Stopped() || c.failed {
		return false
	}
	if c.port.Alarmed() {
		c.port.AlarmDone()
		if now := flow.Now(); c.table != nil {
			if c.expire(now); c.table.over(c.env, now) {
				return false
			}
		} else if now >= c.expiry() {
			return false
		}
	}
	c.port.SetAlarm(c.expiry())
	return true
}

// expiry returns when the flow, or the next one of several, ends if nothing more happens.
func (c *conn) expiry() flow.Time {
	if c.table != nil {
		return c.table.expiry(c.env)
	}
	return c.end()
}

// end returns when the flow with c's peer ends if nothing more happens.
func (c *conn) end() flow.Time {
	answered := c.hostSeen > 0
	if c.accepted {
		answered = c.guestBatch > 0
	}
	if answered && (c.hostSeen > 1 || c.guestBatch > 1) {
		c.port.Assured()
		return c.lastAt + flow.Time(c.env.UDPStreamTimeout)
	}
	if answered {
		c.port.SeenReply()
	}
	return c.lastAt + flow.Time(c.env.UDPTimeout)
}

// seen notes that side, one of the counters of c's peer, has sent. It counts once in a batch.
func (c *conn) seen(side *uint8) {
	if c.loose {
		return
	}
	if c.peer.batch == c.batch {
		return
	}
	c.peer.batch = c.batch
	c.lastAt = flow.Now()
	c.port.Used(c.lastAt)
	*side = min(*side+1, 2)
	if c.table != nil {
		if c.table.callers != nil {
			c.table.callers.lastAt = c.lastAt
		}
		c.table.touch(c.peer)
		c.end() // what the evictor has to know
	}
}

// setMarks has what is sent from now on carry the guest's time to live or hop limit, and its type
// of service or traffic class.
func (c *conn) setMarks(m ipFields) {
	v6 := c.host.Addr().Is6()
	out := c.marks()
	if m.ttl != out.ttl {
		sock.SetHops(c.fd, v6, m.ttl)
	}
	if m.tos != out.tos {
		sock.SetTOS(c.fd, v6, m.tos)
	}
	*out = m
}

// marks returns what is sent to c's peer carries now.
func (c *conn) marks() *ipFields {
	if c.host.Addr().Is6() {
		return &c.out[1]
	}
	return &c.out[0]
}

// write hands the frame of n bytes at the start of b, which has room for frame.MinFrame bytes, to
// the link.
func (c *conn) write(b []byte, n int) {
	if err := c.env.Write(b[:frame.Pad(b, n)]); err != nil {
		// Either that frame is lost, or the link is: then its reader ends everything.
		c.env.Counters.LinkDropped.Add(1)
	}
}
