package tcp

import (
	"bytes"
	"hash/maphash"
	"net/netip"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
	"fusilli/tapio/frame"
)

const (
	leastMSS   = 64      // segments are no shorter, whatever the guest or its routers say
	defaultMSS = 536     // RFC 9293, section 3.7.1: what a SYN without the option means
	ourScale   = 8       // window scale we announce: windows up to 16 MiB
	maxWindow  = 1 << 20 // advertised; what fits a mailbox

	rtoMin     = flow.Time(400 * time.Millisecond)
	rtoSYN     = flow.Time(time.Second)
	rtoMax     = flow.Time(120 * time.Second)
	maxRetries = 7

	keepAlive  = flow.Time(30 * time.Second)
	inactivity = flow.Time(2 * time.Hour)
	linkRetry  = flow.Time(2 * time.Millisecond)   // after the link dropped a frame of ours
	tryAgain   = flow.Time(100 * time.Millisecond) // after the kernel had no memory for a call
	// of the guest's FIN, until it is acknowledged before the peer has
	finRepeats = 3
)

type state uint8

const (
	connecting  state = iota // the host's socket connects
	synReceived              // the guest has asked: SYN,ACK sent
	synSent                  // the peer has asked: SYN sent
	established
)

// conn is one connection. Serve's goroutine is the only one that touches it.
type conn struct {
	env  *flow.Env
	port *flow.Port
	host netip.AddrPort // whom the socket talks to
	fd   int
	v6   bool

	station flow.Station // where the guest's end is

	state    state
	over     bool // nothing is left to do
	reset    bool // the socket is to be closed with RST
	peekOff  bool // the socket has SO_PEEK_OFF
	eof      bool // the peer has sent FIN
	finSent  bool // our FIN went to the guest, at sequence number sndMax-1
	finAcked bool // the guest has acknowledged it
	guestFIN bool // the guest has sent FIN
	shut     bool // it was passed on to the socket
	finDone  bool // and the peer has acknowledged it: ours to the guest may go
	ackNow   bool // an acknowledgement or window is to be sent before sleeping
	ackDue   bool // data in order is to be acknowledged, at the latest at ackBy
	crossed  bool // the guest's SYN has met ours on the way
	replaced bool // by the guest, with a SYN for the same ports
	failed   bool // the socket has failed; sockErr says how
	finOnce  bool // FIN was sent at least once: sndMax includes it
	spinning bool // fromHost is called soon again, before the actor sleeps
	again    bool // the link dropped a frame: try again when the alarm goes off

	finAgain   uint8 // times the guest has repeated its FIN
	guestScale uint8
	scale      uint8
	retries    uint8
	dupAcks    uint8

	mss        int
	maxPayload int

	// From the guest. Everything before rcvNxt was taken by the socket or is held.
	rcvNxt  uint32
	rcvEdge uint32 // first sequence number beyond the window advertised; never moves back
	ackSent uint32
	ackBy   flow.Time // when ackDue becomes ackNow; 0: not set
	prompt  int       // bytes that are acknowledged without delay yet
	lastWnd uint32    // window when rcvEdge was moved last
	pending int       // bytes before rcvNxt that are in a batch, and may yet be refused
	heldLen int
	// when what is held is offered once more to a socket that had no memory for it; 0: not set
	sendAt flow.Time
	held   []chunk
	early  reassembly
	credit flow.Credit // for held, early and promised

	promised int    // bytes of the window that the socket may not have room for
	first    uint16 // window advertised with our SYN, not scaled

	// To the guest. sndUna is where the socket's queue begins.
	sndUna, sndNxt, sndMax uint32
	recover                uint32 // sndMax when a loss was noticed
	recovering             bool
	guestWnd               uint32
	mostWnd                uint32 // the largest there was
	wl1                    uint32 // sequence number of the segment guestWnd came from

	sockErr unix.Errno

	rtoAt  flow.Time // when to retransmit or probe; 0: nothing outstanding
	rto    flow.Time
	rtt    rtt
	seenAt flow.Time // last segment from the guest
	liveAt flow.Time // last segment or data from either side

	hdr header
}

// chunk is payload the socket has not taken yet. run, if any, is released with it.
type chunk struct {
	data []byte
	run  flow.Run
	cost int // what conn.credit is charged with for it
}

// newChunk returns a chunk of data, which lies in run, for a while that may be long: while slabs
// are scarce it is a copy.
func newChunk(data []byte, run *flow.Run) chunk {
	ch := chunk{data: data, cost: len(data) + chunkCost}
	if run.Lendable() {
		ch.run = run.Hold()
	} else {
		ch.data = bytes.Clone(data)
	}
	return ch
}

// Dialer makes the sockets of connections; it is told who shall be reached.
type Dialer interface {
	// Dial returns a non-blocking stream socket that connects or is connected to addr.
	Dial(addr netip.AddrPort) (fd int, err error)
}

// Serve runs the connection of port, whose mailbox holds the guest's SYN, until it ends, and
// leaves the port closed. host is where it leads to.
func Serve(env *flow.Env, port *flow.Port, dialer Dialer, host netip.AddrPort) {
	c := &conn{env: env, port: port, host: host, fd: -1}
	defer c.close()
	ok := c.open(dialer)
	port.Opened()
	if ok {
		c.run()
	}
}

func (c *conn) run() {
	for !c.over {
		c.step()
	}
}

func (c *conn) close() {
	c.releaseHeld()
	c.dropReassembly()
	c.promise(0)
	if c.reset && c.fd >= 0 {
		sock.Reset(c.fd)
	}
	c.port.Close()
}

// step does all there is to do now and then sleeps.
func (c *conn) step() {
	c.work()
	if c.over {
		return
	}
	c.setAlarm()
	c.spinning = true
	found := c.port.Spin(&c.env.Spinner)
	c.spinning = false
	if !found {
		c.port.Wait(true, 0)
	}
}

// work does all there is to do now, but for what the socket has: fromHost does that.
func (c *conn) work() {
	c.fromGuest()
	if c.over {
		return
	}
	if c.port.Stopped() {
		// A guest whose SYN has no answer yet repeats it, when there may be room again.
		c.abort(!c.port.Evicted() || c.state != connecting)
		return
	}
	if c.port.Written() {
		c.written()
	}
	if seq, mtu, ok := c.port.Refused(); ok {
		c.tooBig(seq, mtu)
	}
	if c.port.Alarmed() {
		c.port.AlarmDone()
		c.onTime(flow.Now())
	}
	if c.failed {
		c.fail()
	}
	if c.eof && !c.finSent && !c.over {
		c.sendFIN()
	}
	if c.over {
		return
	}
	if c.finAcked && c.finDone {
		if c.ackNow {
			c.sendAck()
		}
		c.env.Ended.Add(c.port.Key(), c.sndNxt, c.rcvNxt)
		c.over = true
	}
}

var (
	isnSeed = maphash.MakeSeed()
)

// isn chooses an initial sequence number as RFC 6528 says: a keyed hash of the flow plus a clock of
// 32 ns ticks.
func isn(k *flow.Key) uint32 {
	h := maphash.Comparable(isnSeed, *k)
	return uint32(h) ^ uint32(h>>32) + uint32(flow.Now()>>5)
}

// begin sets what a connection begins with, whoever asks for it.
func (c *conn) begin() {
	k := c.port.Key()
	c.maxPayload = maxSegment(k.V6())
	c.sndUna = isn(k)
	c.sndNxt, c.sndMax = c.sndUna, c.sndUna
	c.rto = rtoSYN
	c.seenAt = flow.Now()
	c.liveAt = c.seenAt
	c.prompt = promptAcks
	c.hdr.init(c.env, k)
}

// synced notes what the guest's SYN, or SYN,ACK, says. Its window is not scaled, nor was ours (RFC
// 7323, section 2.2).
func (c *conn) synced(v *flow.View) {
	c.env.See(&c.station, v.Frame)
	tcp := frame.TCPHeader(v.Frame[v.L4:v.End])
	opt := frame.ParseSYNOptions(v.Frame[v.L4+tcpLen : v.Payload])
	c.mss = defaultMSS
	if opt.MSS != 0 {
		c.mss = int(opt.MSS)
	}
	c.mss = min(max(c.mss, leastMSS), c.maxPayload)
	c.guestScale, c.scale = 0, 0
	if opt.HaveScale {
		c.guestScale, c.scale = opt.Scale, ourScale
	}
	c.rcvNxt = tcp.Seq() + 1
	c.ackSent = c.rcvNxt
	c.rcvEdge = c.rcvNxt + uint32(c.first)
	c.lastWnd = uint32(c.first)
	c.setWnd(uint32(tcp.Window()))
	c.wl1 = tcp.Seq()
}

// open handles the SYN the flow begins with and starts to connect. It reports whether the flow
// goes on.
func (c *conn) open(dialer Dialer) bool {
	r := c.port.First()
	defer r.Release()
	var v flow.View
	if !r.Next(&v) {
		return false
	}
	c.v6 = !c.host.Addr().Is4()
	c.begin()
	c.synced(&v)

	fd, err := dialer.Dial(c.host)
	if err != nil {
		c.env.Log.Debug("connect", zap.Stringer("host", c.host), zap.Error(err))
		if !c.env.NoSocket(c.port, "TCP: Unable to open socket for new connection", err) {
			c.sendRST()
		} // or the guest repeats its SYN, when there is room
		return false
	}
	c.fd = fd
	// Over a short path the connection is there already; then the guest hears of it before
	// anything else is done.
	done := sock.Poll(fd, unix.POLLOUT)
	if done == unix.POLLOUT {
		c.accepted()
	}
	if err := c.port.Open(fd, c.fromHost); err != nil {
		c.env.NoSocket(c.port, "TCP: Unable to open socket for new connection", err)
		c.abort(true)
		return false
	}
	if c.env.PeekOff4 && !c.v6 || c.env.PeekOff6 && c.v6 {
		c.peekOff = sock.SetPeekOffset(fd, 0) == 0
	}
	switch done {
	case 0:
		c.port.AwaitWrite(writable)
	case unix.POLLOUT:
	default:
		c.connected()
	}
	return !c.over
}

// connected is called when the connection attempt has ended.
func (c *conn) connected() {
	if e := c.socketError(); e != 0 {
		c.env.Log.Debug("connect", zap.Stringer("host", c.host), zap.Error(e))
		c.sockErr = e
		c.fail()
		return
	}
	c.accepted()
}

// accepted is called when the peer has accepted the connection: now the guest hears so.
func (c *conn) accepted() {
	c.state = synReceived
	c.hdr.from(c.env.SourceMAC(&c.port.Key().Remote))
	c.first = c.firstWindow()
	c.rcvEdge = c.rcvNxt + uint32(c.first)
	c.lastWnd = uint32(c.first)
	c.sendSYN()
	c.env.Spinner.Extend()
	c.sndNxt = c.sndUna + 1
	c.sndMax = c.sndNxt
	c.rtoAt = flow.Now() + c.rto
}

// written is called when a wait for the write side of the socket has ended.
func (c *conn) written() {
	switch {
	case c.state == connecting:
		c.connected()
	case c.shut && !c.finDone:
		c.awaitFIN()
	case c.state == established && !c.shut:
		c.flush()
	}
}

// socketError takes the pending error off the socket.
func (c *conn) socketError() unix.Errno {
	return sock.Error(c.fd)
}

// fail ends the connection since the socket has failed: the guest gets a reset.
func (c *conn) fail() {
	c.sendRST()
	c.over = true
	c.reset = true
}

// abort ends the connection with a reset of the socket, and of the guest's end too if told so.
func (c *conn) abort(tellGuest bool) {
	if tellGuest {
		c.sendRST()
	}
	c.over = true
	c.reset = true
}

// Timers.

func (c *conn) setAlarm() {
	at := c.liveAt + inactivity
	switch {
	case c.rtoAt != 0:
		at = min(at, c.rtoAt)
	case c.state == established:
		at = min(at, c.seenAt+keepAlive)
	}
	if c.sendAt != 0 {
		at = min(at, c.sendAt)
	}
	c.port.SetAlarm(at)
}

func (c *conn) onTime(now flow.Time) {
	c.again = false // the wait tries the link once more
	if c.ackDue && now >= c.ackBy {
		c.ackNow = true
		if c.ackBy != 0 {
			c.prompt = promptAcks
		}
	}
	if c.sendAt != 0 && now >= c.sendAt {
		c.sendAt = 0
		if len(c.held) > 0 {
			c.flush()
		}
	}
	switch {
	case now-c.liveAt >= inactivity:
		c.abort(true)
	case c.rtoAt != 0 && now >= c.rtoAt:
		c.timeout(now)
	case c.rtoAt == 0 && c.state == established && now-c.seenAt >= keepAlive:
		c.sendProbe()
		c.dropReassembly()
		c.settle()
		c.seenAt = now // the next probe in 30 s
	}
}

// timeout is what happens when the guest has not answered for a retransmission time-out.
func (c *conn) timeout(now flow.Time) {
	if c.sndMax == c.sndUna && (c.guestWnd > 0 || c.finSent) {
		c.rtoAt = 0
		return
	}
	retries := uint8(maxRetries)
	if c.state == synSent {
		retries = c.env.SYNRetries
	}
	c.retries++
	if c.retries > retries {
		c.env.Log.Debug("guest does not answer", zap.Stringer("host", c.host))
		c.abort(true)
		return
	}
	if c.state != synSent || c.retries > c.env.SYNLinear {
		most := rtoMax
		if c.env.RTOMax != 0 {
			most = flow.Time(c.env.RTOMax)
		}
		c.rto = min(c.rto*2, most)
	}
	c.rtoAt = now + c.rto
	switch {
	case c.state != established:
		c.sendSYN()
	case c.guestWnd == 0:
		// Closed, with or without data in flight: ask for the window. A guest that answers
		// resets retries.
		c.rewind()
		c.sendProbe()
	default:
		c.rewind()
	}
}
