// Package icmp carries the guest's echo requests, of ICMP and ICMPv6: each flow (two addresses and
// an identifier) is one actor between the guest's link and a ping socket of the host (icmp(7)).
//
// # Theory of operation
//
// A request goes to the socket as the guest made it; the kernel puts in an identifier of its own
// and the checksum, and hands us the replies to that identifier only. A reply gets the guest's
// identifier back and comes from the address the guest has asked, whatever that is on the host. A
// reply with the sequence number of the one before is a duplicate and dropped, unless the guest has
// used that number again since.
//
// A request leaves with the guest's time to live (or hop limit) and type of service, and a reply
// arrives with the time to live it came with. What routers or the peer say about a request lies in
// the socket's error queue and is told to the guest with its own request quoted, so that traceroute
// and mtr in the guest see the hops behind the host.
//
// A flow ends after 60 s without a request. Replies do not count: a peer cannot keep a flow.
//
// Left out: everything but echo, and errors of the host itself. Where the host does not permit ping
// sockets, the flow ends at once and the log says what to do, at most once in a while.
package icmp

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
	"fusilli/tapio/frame"
)

const (
	idle       = flow.Time(60 * time.Second)
	warnPeriod = flow.Time(10 * time.Minute)

	echoReply4 = 0   // RFC 792
	echoReply6 = 129 // RFC 4443, section 4.2

	maxFaults = 64 // errors in a row before a socket is given up
	maxTries  = 3  // that a request is sent again after one

	// defaultHops is what the kernel puts into requests unless told otherwise (ip(7),
	// ip_default_ttl).
	defaultHops = 64
)

// Dialer makes the sockets of flows.
type Dialer interface {
	// Ping returns a non-blocking ping socket connected to addr.
	Ping(addr netip.Addr) (fd int, err error)
}

// conn is one flow. Serve's goroutine is the only one that touches it.
type conn struct {
	env  *flow.Env
	port *flow.Port
	host netip.Addr // whom the socket is connected to
	fd   int
	v6   bool

	station flow.Station // where the guest's end is

	hops, tos uint8 // of requests

	from   frame.MAC // where replies come from, once there was one
	failed bool
	warned bool // that a request was not sent
	last   int  // sequence number of the last reply; -1: none, or requested again
	lastAt flow.Time
	pseudo uint32 // sum of the pseudo-header without the length, 0 for IPv4
}

// Serve runs the flow of port, whose mailbox holds the guest's first request, until it ends, and
// leaves the port closed. dst is where the requests go on the host.
func Serve(env *flow.Env, port *flow.Port, dialer Dialer, dst netip.Addr) {
	defer port.Close()
	c := newConn(env, port, dst)
	if !c.open(dialer) {
		return
	}
	for c.step() {
		port.Wait(true, 0)
	}
}

// newConn returns the flow of port, whose requests go to dst.
func newConn(env *flow.Env, port *flow.Port, dst netip.Addr) *conn {
	k := port.Key()
	c := &conn{env: env, port: port, host: dst, v6: k.V6(), hops: defaultHops, last: -1, lastAt: flow.Now()}
	if c.v6 {
		c.pseudo = frame.PseudoSum(&k.Remote, &k.Guest, frame.ProtoICMPv6, 0)
	}
	return c
}

// open makes the socket. It reports whether the flow goes on.
func (c *conn) open(dialer Dialer) bool {
	fd, err := dialer.Ping(c.host)
	c.port.Opened()
	if err != nil {
		c.env.NoSocket(c.port, "No socket for echo requests", err)
		refused(c.env.Log, c.host, err)
		return false
	}
	c.fd = fd
	if err := c.port.Open(fd, c.fromHost); err != nil {
		c.env.NoSocket(c.port, "No socket for echo requests", err)
		return false
	}
	return true
}

// lastWarning is when refused has warned, in flow.Time, for the whole process: what it warns of is
// the host's configuration.
var lastWarning atomic.Int64

// refused logs that there is no socket for requests to dst. The texts of the warnings are matched
// by other programs.
func refused(log *zap.Logger, dst netip.Addr, err error) {
	if !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) {
		log.Debug("no socket for echo requests", zap.Stringer("host", dst), zap.Error(err))
		return
	}
	now := int64(flow.Now()) + 1
	then := lastWarning.Load()
	if then != 0 && now-then < int64(warnPeriod) || !lastWarning.CompareAndSwap(then, now) {
		return
	}
	log.Warn(`Cannot open "ping" socket. You might need to:`)
	log.Warn(`  sysctl -w net.ipv4.ping_group_range="0 2147483647"`)
	log.Warn(`...echo requests/replies will fail.`)
}

// step does all there is to do before the actor sleeps. It reports whether the flow goes on.
func (c *conn) step() bool {
	// As much as a full mailbox has, so that replies get their turn.
	for range 32 {
		r, ok := c.port.Recv()
		if !ok {
			break
		}
		c.fromGuest(&r)
		r.Release()
	}
	if c.port.Mail() {
		c.fromHost()
	}
	if c.port.Stopped() || c.failed {
		return false
	}
	if c.port.Alarmed() {
		c.port.AlarmDone()
		if flow.Now() >= c.lastAt+idle {
			return false
		}
	}
	c.port.SetAlarm(c.lastAt + idle)
	return true
}

// fromGuest sends a run of requests. A copy of r is used up, r itself stays as it is.
func (c *conn) fromGuest(r *flow.Run) {
	c.lastAt = flow.Now()
	frames := *r
	var v flow.View
	for frames.Next(&v) {
		c.env.See(&c.station, v.Frame)
		c.setHeader(v.Frame[v.L3:])
		msg := v.Frame[v.L4:v.End]
		if int(binary.BigEndian.Uint16(msg[6:])) == c.last {
			c.last = -1
		}
		e := sock.Send(c.fd, msg)
		for tries := 0; e != 0 && e != unix.EAGAIN && tries < maxTries; tries++ {
			// Perhaps what an earlier request has met, reported once; and meanwhile another one.
			c.readErrors()
			e = sock.Send(c.fd, msg)
		}
		if e != 0 && !c.warned {
			c.warned = true
			c.env.Log.Debug("failed to relay request to socket", zap.Error(e))
		}
	}
}

// fromHost moves replies to the guest. It is what the actor does in its wait whenever the socket
// may be readable, and returns true if something else is to be done first.
func (c *conn) fromHost() bool {
	buf := c.env.Buffer()
	defer c.env.PutBuffer(buf)
	for faults := 0; ; {
		n, hops, e := sock.RecvHops(c.fd, buf[flow.Headroom:])
		switch {
		case e == unix.EAGAIN:
			return false
		case e != 0:
			// What a request has met.
			c.readErrors()
			if faults++; faults == maxFaults {
				c.failed = true
				return true
			}
			continue
		}
		faults = 0
		c.reply(buf, n, hops)
		if c.port.Mail() || c.port.Stopped() {
			return true
		}
	}
}

// reply sends the message of n bytes in buf at flow.Headroom to the guest, if it is a reply. It has
// come with the time to live hops.
func (c *conn) reply(buf *[flow.BufferSize]byte, n int, hops uint8) {
	msg := buf[flow.Headroom : flow.Headroom+n]
	want := uint8(echoReply4)
	if c.v6 {
		want = echoReply6
	}
	if n < frame.ICMPLen || msg[0] != want || msg[1] != 0 {
		c.env.Log.Debug("Unexpected packet on ping socket")
		return
	}
	seq := int(binary.BigEndian.Uint16(msg[6:]))
	if seq == c.last {
		return
	}
	c.last = seq
	c.port.SeenReply()

	k := c.port.Key()
	binary.BigEndian.PutUint16(msg[4:], k.GuestPort)
	msg[2], msg[3] = 0, 0
	ip := frame.IP{Src: k.Remote, Dst: k.Guest, Proto: frame.ProtoICMP, TTL: hops, DF: true, Len: n}
	hlen, etherType, pseudo := frame.IPv4Len, uint16(frame.EtherIPv4), uint32(0)
	if c.v6 {
		ip.Proto = frame.ProtoICMPv6
		hlen, etherType, pseudo = frame.IPv6Len, frame.EtherIPv6, c.pseudo+uint32(n)
	}
	binary.BigEndian.PutUint16(msg[2:], frame.Checksum(msg, pseudo))
	b := buf[flow.Headroom-hlen-frame.L3Off:]
	frame.PutVnet(b, frame.Vnet{})
	if c.from == (frame.MAC{}) {
		c.from = c.env.SourceMAC(&k.Remote)
	}
	frame.PutEth(b, c.env.To(c.station), c.from, etherType)
	frame.PutIP(b[frame.L3Off:], &ip)
	c.write(b[:frame.Pad(b, frame.L3Off+hlen+n)])
}

// write hands a frame to the link.
func (c *conn) write(b []byte) {
	if err := c.env.Write(b); err != nil {
		// Either that frame is lost, or the link is: then its reader ends everything.
		c.env.Counters.LinkDropped.Add(1)
	}
}
