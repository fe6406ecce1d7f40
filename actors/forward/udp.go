package forward

import (
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"fusilli/actors/rules"
)

const (
	batchLen     = 32       // datagrams received by one call
	datagramSize = 64 << 10 // more than the largest
	controlSize  = 128      // the messages of IP_PKTINFO and IPV6_PKTINFO
	// maxDatagrams bounds what is received from one listener at a time. It is more than its queue
	// holds at the usual size (net.core.rmem_default): a flow normally finds all of its datagrams.
	maxDatagrams = 1024
	visit        = time.Millisecond // after which other listeners have their turn
	maxFirst     = 1 << 20          // bytes a flow begins with
	// errors in a row, which are off the socket then, before a listener rests
	maxFaults = 64
	maxErrors = 16 // entries taken off an error queue at a time
	// unbound sockets kept for flows in the namespace, of each family
	spareSockets = 32
)

// udp receives from the UDP listeners of a side that lead from socket to socket. The side's serve
// is the only goroutine that uses it, but for what mu guards.
type udp struct {
	s     *side
	here  bool   // the side's namespace is that of every thread but one
	batch *batch // nil until there is something to receive

	unfinished []*listener // whose queue had more than a visit takes

	mu     sync.Mutex
	spare  [2][]int // sockets in the side's namespace, IPv4 and IPv6
	closed bool
}

// gathering is the flows that began at one listener since it was last found empty.
type gathering struct {
	pending map[flowKey]*newFlow
	order   []*newFlow
	// received by sockets of flows they do not belong to; maxDatagrams at most
	misdelivered []datagram
	total        int // datagrams
}

// gathering is what begins at l.
func (s *socket) gathering() *gathering {
	if s.begins == nil {
		s.begins = new(gathering)
	}
	return s.begins
}

// flowKey is what tells flows of one listener apart.
type flowKey struct {
	from endpoint
	at   netip.Addr
}

// newFlow is a flow that is about to begin.
type newFlow struct {
	fd    int // -1: it leads nowhere
	route rules.Route
	first [][]byte // in order
	late  [][]byte // received by fd, thus after those the listener has
	bytes int
}

// datagram is one that was received. data is lent until the next receive.
type datagram struct {
	flowKey
	ifIndex uint32 // of the interface it came in by
	data    []byte
}

func (u *udp) init(s *side) { u.s, u.here = s, s.which == Host }

// receive takes what l has, for as long as a visit is, and begins the flows it belongs to when that
// was all. failed says that there may be errors.
func (u *udp) receive(l *listener, failed bool) {
	if u.batch == nil {
		u.batch = newBatch()
	}
	if failed {
		u.errors(l)
	}
	g := l.gathering()
	faults := 0
	for end := time.Now().Add(visit); g.total < maxDatagrams; {
		n, e := u.read(l)
		if e == unix.EAGAIN || e == unix.EBADF {
			break
		}
		if e != 0 {
			if faults++; faults == maxFaults {
				u.s.mu.Lock()
				if u.s.has(l) {
					u.s.rest(l, e)
				}
				u.s.mu.Unlock()
				break
			}
		}
		g.total++ // an error was pending, and is no more
		for i := range n {
			if d, ok := u.batch.datagram(i); ok {
				u.sort(g, l, d, u.s.f.route)
			}
		}
		g.total += n
		if n == batchLen && time.Now().After(end) {
			u.unfinished = append(u.unfinished, l)
			return // others have something as well, and there is more here
		}
	}
	u.begin(g, l)
}

// finish begins the flows of listeners whose queue is not looked at any more: those that are
// closed, or all of them.
func (u *udp) finish(all bool) {
	if len(u.unfinished) == 0 {
		return
	}
	left := u.unfinished[:0]
	for _, l := range u.unfinished {
		u.s.mu.Lock()
		has := u.s.has(l)
		u.s.mu.Unlock()
		if all || !has {
			u.begin(l.gathering(), l)
		} else if len(l.gathering().order) > 0 && !slices.Contains(left, l) {
			left = append(left, l)
		}
	}
	clear(u.unfinished[len(left):])
	u.unfinished = left
}

// read receives a batch from l.
func (u *udp) read(l *listener) (int, unix.Errno) {
	u.s.mu.Lock()
	defer u.s.mu.Unlock()
	if !u.s.has(l) {
		return 0, unix.EBADF
	}
	return u.batch.receive(l.fd)
}

// sort adds d to the flow it belongs to, which leads where route says.
func (u *udp) sort(g *gathering, l *listener, d datagram, route func(Side, *listener, netip.AddrPort, netip.Addr) rules.Route) {
	flow := g.pending[d.flowKey]
	if flow == nil {
		if !d.from.unicast() {
			u.s.f.invalid("Invalid endpoint on UDP recvfrom()", d.from.AddrPort)
			return
		}
		flow = &newFlow{fd: -1, route: route(u.s.which, l, d.from.AddrPort, d.at)}
		if g.pending == nil {
			g.pending = make(map[flowKey]*newFlow)
		}
		g.pending[d.flowKey] = flow
		g.order = append(g.order, flow)
		if flow.route.Place == rules.Namespace || flow.route.Place == rules.Host {
			u.open(g, l, flow, d)
		}
	}
	if flow.fd < 0 || flow.bytes+len(d.data) > maxFirst {
		return
	}
	flow.bytes += len(d.data)
	flow.first = append(flow.first, append([]byte{}, d.data...))
}

// open makes the socket of a flow that begins with d.
func (u *udp) open(g *gathering, l *listener, flow *newFlow, d datagram) {
	fd, err := u.connected(l, d)
	switch {
	case err == nil:
	case exhausted(err):
		u.s.f.Spent.HitBy(u.s.f.cfg.Log, "Couldn't connect flow socket", err)
		return
	default:
		u.s.f.Failed.Hit(u.s.f.cfg.Log, "Couldn't connect flow socket: "+reason(err))
		return
	}
	flow.fd = fd
	// Between bind and connect it took what others sent as well.
	room := buffers.Get().(*[datagramSize]byte)
	defer buffers.Put(room)
	b := room[:]
	for range maxDatagrams {
		var sa unix.RawSockaddrInet6
		size := uint32(unsafe.Sizeof(sa))
		n, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)),
			unix.MSG_DONTWAIT, uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)))
		if e != 0 {
			return
		}
		other := d
		other.from, other.data = endpointOf(&sa), b[:n]
		if other.from == d.from {
			flow.add(b[:n])
			continue
		}
		if len(g.misdelivered) < maxDatagrams {
			other.data = append([]byte{}, b[:n]...)
			g.misdelivered = append(g.misdelivered, other)
		}
	}
}

// buffers are room for a datagram each.
var buffers = sync.Pool{New: func() any { return new([datagramSize]byte) }}

// add adds a datagram the flow's own socket has received.
func (flow *newFlow) add(b []byte) {
	if flow.bytes+len(b) <= maxFirst {
		flow.bytes += len(b)
		flow.late = append(flow.late, append([]byte{}, b...))
	}
}

// connected returns a socket that receives what comes from d's sender to d's destination.
func (u *udp) connected(l *listener, d datagram) (int, error) {
	group := d.at.IsMulticast() || d.at == broadcast
	fd, err := u.connect(l, d, group)
	if !group && (err == unix.EINVAL || err == unix.EADDRNOTAVAIL) {
		fd, err = u.connect(l, d, true) // the broadcast address of some network
	}
	return fd, err
}

// connect returns a socket that receives what comes from d's sender to d's destination, or with
// group to whatever address: no answer can come from that of a group.
func (u *udp) connect(l *listener, d datagram, group bool) (int, error) {
	at, scope := d.at, uint32(0)
	switch {
	case group && at.Is4():
		at = netip.IPv4Unspecified()
	case group:
		at = netip.IPv6Unspecified()
	case at.IsLinkLocalUnicast():
		scope = d.ifIndex
	}
	fd, err := u.socket(at)
	if err != nil {
		return -1, err
	}
	set := func(level, opt, value int) {
		if err == nil {
			err = unix.SetsockoptInt(fd, level, opt, value)
		}
	}
	set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if at.Is6() {
		set(unix.SOL_IPV6, unix.IPV6_V6ONLY, 1)
		set(unix.SOL_IPV6, unix.IPV6_RECVERR, 1)
	} else {
		set(unix.SOL_IP, unix.IP_RECVERR, 1)
	}
	if u.s.open.freeBind {
		setFreeBind(fd, at, set)
	}
	if err == nil {
		err = unix.Bind(fd, sockaddr(netip.AddrPortFrom(at, l.port), scope))
	}
	if err == nil {
		err = unix.Connect(fd, sockaddr(d.from.AddrPort, d.from.scope))
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// socket returns a UDP socket of at's family in the side's namespace.
func (u *udp) socket(at netip.Addr) (int, error) {
	open := func() (int, error) {
		return unix.Socket(familyOf(at), unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	}
	if u.here {
		return open()
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return -1, os.ErrClosed
	}
	spare := &u.spare[0]
	if at.Is6() {
		spare = &u.spare[1]
	}
	if len(*spare) == 0 {
		err := u.s.do(func() (err error) {
			for len(*spare) < spareSockets && err == nil {
				var fd int
				if fd, err = open(); err == nil {
					*spare = append(*spare, fd)
				}
			}
			return err
		})
		if len(*spare) == 0 {
			return -1, err
		}
	}
	fd := (*spare)[len(*spare)-1]
	*spare = (*spare)[:len(*spare)-1]
	return fd, nil
}

// begin hands over the flows that g has gathered at l.
func (u *udp) begin(g *gathering, l *listener) {
	// What these have sent before is what the listener had.
	for len(g.misdelivered) > 0 {
		d := g.misdelivered[0]
		g.misdelivered = g.misdelivered[1:]
		u.sort(g, l, d, u.s.f.route)
	}
	for _, flow := range g.order {
		if flow.fd >= 0 {
			u.s.f.datagrams(u.s.which, flow.fd, flow.route, append(flow.first, flow.late...))
		}
	}
	clear(g.order)
	g.order, g.total = g.order[:0], 0
	clear(g.pending)
}

// errors takes errors off l: ICMP messages about what flows that have ended had sent.
func (u *udp) errors(l *listener) {
	u.s.mu.Lock()
	defer u.s.mu.Unlock()
	if !u.s.has(l) {
		return
	}
	found := false
	var b [1]byte
	for range maxErrors {
		if _, _, _, _, err := unix.Recvmsg(l.fd, b[:], nil, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT); err != nil {
			break
		}
		found = true
		u.s.f.debug("Ignoring UDP error without flow")
	}
	if e, err := unix.GetsockoptInt(l.fd, unix.SOL_SOCKET, unix.SO_ERROR); err == nil && e != 0 {
		found = true
		u.s.f.debug("Unqueued error on UDP socket: " + reason(unix.Errno(e)))
	}
	if !found {
		u.s.f.warn("UDP: Unrecoverable error on listening socket: (" + u.s.which.String() + " port " + portText(l.port) + ")")
	}
}

// close gives the sockets back.
func (u *udp) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.closed = true
	for i := range u.spare {
		for _, fd := range u.spare[i] {
			unix.Close(fd)
		}
		u.spare[i] = nil
	}
}

// batch is room for datagrams received together.
type batch struct {
	msgs  [batchLen]mmsghdr
	iovs  [batchLen]unix.Iovec
	names [batchLen]unix.RawSockaddrInet6
	ctl   [batchLen][controlSize]byte
	data  []byte // batchLen times datagramSize
}

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

func newBatch() *batch {
	b := &batch{data: make([]byte, batchLen*datagramSize)}
	for i := range b.msgs {
		b.iovs[i].Base = &b.data[i*datagramSize]
		b.iovs[i].SetLen(datagramSize)
		h := &b.msgs[i].hdr
		h.Iov = &b.iovs[i]
		h.SetIovlen(1)
		h.Name = (*byte)(unsafe.Pointer(&b.names[i]))
		h.Control = &b.ctl[i][0]
	}
	return b
}

// receive receives up to a batch from fd, without waiting.
func (b *batch) receive(fd int) (int, unix.Errno) {
	for i := range b.msgs {
		b.msgs[i].hdr.Namelen = uint32(unsafe.Sizeof(b.names[i]))
		b.msgs[i].hdr.SetControllen(controlSize)
	}
	n, _, e := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.msgs)), batchLen, unix.MSG_DONTWAIT, 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(n), 0
}

// datagram returns the i-th of those received last, and whether it can be used: where it was sent
// to has to be known.
func (b *batch) datagram(i int) (datagram, bool) {
	m := &b.msgs[i]
	d := datagram{data: b.data[i*datagramSize:][:m.n]}
	d.from = endpointOf(&b.names[i])
	ctl := b.ctl[i][:min(int(m.hdr.Controllen), controlSize)]
	d.at, d.ifIndex = destination(ctl)
	return d, d.at.IsValid() && m.hdr.Flags&unix.MSG_TRUNC == 0
}

// destination finds IP_PKTINFO or IPV6_PKTINFO among the control messages in b: the address a
// datagram was sent to, invalid if it is not there, and the interface.
func destination(b []byte) (netip.Addr, uint32) {
	for len(b) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		n := int(h.Len)
		if n < unix.SizeofCmsghdr || n > len(b) {
			break
		}
		body := b[unix.CmsgLen(0):n]
		switch {
		case h.Level == unix.SOL_IP && h.Type == unix.IP_PKTINFO && len(body) >= unix.SizeofInet4Pktinfo:
			info := (*unix.Inet4Pktinfo)(unsafe.Pointer(&body[0]))
			return netip.AddrFrom4(info.Addr), uint32(info.Ifindex)
		case h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_PKTINFO && len(body) >= unix.SizeofInet6Pktinfo:
			info := (*unix.Inet6Pktinfo)(unsafe.Pointer(&body[0]))
			return netip.AddrFrom16(info.Addr).Unmap(), info.Ifindex
		}
		b = b[min(unix.CmsgSpace(n-unix.CmsgLen(0)), len(b)):]
	}
	return netip.Addr{}, 0
}
