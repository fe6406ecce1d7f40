package forward

import (
	"net/netip"
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
	maxFirst     = 1 << 20 // bytes a flow begins with
	maxFaults    = 64      // errors in a row, which are off the socket then, before a listener rests
	maxErrors    = 16      // entries taken off an error queue at a time
	spareSockets = 32      // unbound sockets kept for flows in the namespace, of each family
)

// udp receives from the UDP listeners of a side. The side's serve is the only goroutine that uses it.
type udp struct {
	s     *side
	here  bool   // the side's namespace is that of every thread but one
	batch *batch // nil until there is something to receive
	buf   []byte // as long as one datagram, likewise

	// Flows that began since the listener was last found empty.
	pending map[flowKey]*newFlow
	order   []*newFlow
	strays  []datagram // received by sockets of flows they do not belong to; maxDatagrams at most

	spare [2][]int // sockets in the guest's namespace, IPv4 and IPv6
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

func (u *udp) init(s *side) {
	u.s, u.here = s, s.which == Host
	u.pending = make(map[flowKey]*newFlow)
}

// receive takes what l has, and begins the flows it belongs to. failed says that there may be errors.
func (u *udp) receive(l *listener, failed bool) {
	if u.batch == nil {
		u.batch, u.buf = newBatch(), make([]byte, datagramSize)
	}
	if failed {
		u.errors(l)
	}
	faults := 0
	for total := 0; total < maxDatagrams; {
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
		total++ // an error was pending, and is no more
		for i := range n {
			if d, ok := u.batch.datagram(i); ok {
				u.sort(l, d)
			}
		}
		total += n
	}
	// What these have sent before is what the listener had.
	for len(u.strays) > 0 {
		d := u.strays[0]
		u.strays = u.strays[1:]
		u.sort(l, d)
	}
	u.begin(l)
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

// sort adds d to the flow it belongs to.
func (u *udp) sort(l *listener, d datagram) {
	flow := u.pending[d.flowKey]
	if flow == nil {
		if !d.from.unicast() {
			u.s.f.invalid("Invalid endpoint on UDP recvfrom()", d.from.AddrPort)
			return
		}
		flow = &newFlow{fd: -1, route: u.s.f.route(u.s.which, l, d.from.AddrPort, d.at)}
		u.pending[d.flowKey] = flow
		u.order = append(u.order, flow)
		if flow.route.Place != rules.Nowhere {
			u.open(l, flow, d)
		}
	}
	if flow.fd < 0 || flow.bytes+len(d.data) > maxFirst {
		return
	}
	flow.bytes += len(d.data)
	flow.first = append(flow.first, append([]byte{}, d.data...))
}

// open makes the socket of a flow that begins with d.
func (u *udp) open(l *listener, flow *newFlow, d datagram) {
	group := d.at.IsMulticast() || d.at == broadcast
	fd, err := u.connect(l, d, group)
	if !group && (err == unix.EINVAL || err == unix.EADDRNOTAVAIL) {
		fd, err = u.connect(l, d, true) // the broadcast address of some network
	}
	switch {
	case err == nil:
	case exhausted(err):
		u.s.f.Spent.ReachedBy(u.s.f.cfg.Log, "Couldn't connect flow socket", err)
		return
	default:
		u.s.f.Failed.Reached(u.s.f.cfg.Log, "Couldn't connect flow socket: "+reason(err))
		return
	}
	flow.fd = fd
	// Between bind and connect it took what others sent as well.
	b := u.buf
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
		if len(u.strays) < maxDatagrams {
			other.data = append([]byte{}, b[:n]...)
			u.strays = append(u.strays, other)
		}
	}
}

// add adds a datagram the flow's own socket has received.
func (flow *newFlow) add(b []byte) {
	if flow.bytes+len(b) <= maxFirst {
		flow.bytes += len(b)
		flow.late = append(flow.late, append([]byte{}, b...))
	}
}

// connect returns a socket that receives what comes from d's sender to d's destination, or with group
// to whatever address: no answer can come from that of a group.
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

// begin hands over the flows that are pending.
func (u *udp) begin(l *listener) {
	for _, flow := range u.order {
		if flow.fd >= 0 {
			u.s.f.datagrams(u.s.which, flow.fd, flow.route, append(flow.first, flow.late...))
		}
	}
	clear(u.order)
	u.order = u.order[:0]
	clear(u.pending)
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
	_   [4]byte
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

// datagram returns the i-th of those received last, and whether it can be used: where it was sent to
// has to be known.
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
