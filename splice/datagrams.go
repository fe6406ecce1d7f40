package splice

import (
	"net/netip"
	"os"
	"runtime"
	"sync/atomic"
	"unsafe"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/actors/sock"
	"fusilli/tapio/frame"
)

const (
	turnBatches = 8  // batches a direction moves before others have theirs
	maxFaults   = 64 // errors in a row before a flow is given up
	// scarceFaults is the number of those after which the kernel is taken at its word that it has
	// no memory.
	scarceFaults = 4
)

// peer is one of the two sockets of a datagram flow.
type peer struct {
	fd       int
	readable bool
	failed   bool // there are errors to be read
	bigRecv  bool // the receive buffer was enlarged
	limit    int  // datagrams of this size and above are not sent in rows
	seen     int  // datagrams received, up to 2
}

// datagrams is one flow of datagrams. The goroutine in serveUDP is the only one that touches it.
type datagrams struct {
	s   *Splicer
	w   *watch
	dst netip.AddrPort

	side   [2]peer // the one that began, and the other
	lastAt flow.Time

	used atomic.Int64 // lastAt, for others
	over atomic.Bool  // others need the room
}

// UDP takes over fd, a non-blocking UDP socket connected to whoever began the flow, and carries its
// datagrams to dst on side to, from src if that can be bound there. first is datagrams that have
// arrived already; they are sent first, in order. UDP does not wait.
func (s *Splicer) UDP(fd int, to Side, src, dst netip.AddrPort, first [][]byte) {
	src = netip.AddrPortFrom(src.Addr().Unmap(), src.Port())
	dst = netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
	s.start(&s.counters.UDP, func() { closeFD(fd) }, func(w *watch) {
		defer s.announce(frame.ProtoUDP, fd, to, dst).End()
		s.serveUDP(w, fd, to, src, dst, first)
	})
}

func (s *Splicer) serveUDP(w *watch, fd int, to Side, src, dst netip.AddrPort, first [][]byte) {
	f := &datagrams{s: s, w: w, dst: dst, lastAt: flow.Now()}
	f.side[0] = peer{fd: fd, limit: sock.MaxRow, seen: min(len(first), 2)}
	f.side[1] = peer{fd: -1, limit: sock.MaxRow}
	defer f.close()
	if err := f.open(to, src); err != nil {
		s.troubled("Couldn't open flow socket", err)
		return
	}
	for _, b := range first {
		f.send(&f.side[1], b)
	}
	s.spinner.Extend()
	f.used.Store(int64(f.lastAt))
	s.mayGiveWay(f)
	defer s.keep(f)
	f.run()
}

// open makes the socket on side to, and has both watched.
func (f *datagrams) open(to Side, src netip.AddrPort) (err error) {
	other := &f.side[1]
	if other.fd, err = f.s.udp(to, f.dst.Addr().Is4()); err != nil {
		return err
	}
	// A port that is taken, or privileged, is replaced by one of the kernel's choice: only a peer
	// that insists on the number notices.
	var host sock.Host
	err = unix.Bind(other.fd, host.Sockaddr(src))
	if err == unix.EADDRINUSE || err == unix.EACCES {
		err = unix.Bind(other.fd, host.Sockaddr(netip.AddrPortFrom(src.Addr(), 0)))
	}
	if err != nil {
		return os.NewSyscallError("bind", err)
	}
	if e := sock.Connect(other.fd, f.dst); e != 0 {
		return os.NewSyscallError("connect", e)
	}
	// Until it was connected anybody could send to it, and nobody had a reason to.
	var b [1]byte
	for e := unix.Errno(0); e == 0; {
		_, e = sock.Recv(other.fd, b[:])
	}
	// without it datagrams come one by one
	unix.SetsockoptInt(f.side[0].fd, unix.SOL_UDP, unix.UDP_GRO, 1)
	for i := range f.side {
		if err := f.w.add(i, f.side[i].fd); err != nil {
			return err
		}
	}
	return nil
}

// run moves datagrams until nothing has come for long enough, a socket is broken, or the splicer
// ends.
func (f *datagrams) run() {
	for f.w.look(); ; {
		f.note()
		more := false
		for i := range f.side {
			again, ok := f.move(&f.side[i], &f.side[1-i], i)
			if !ok {
				return
			}
			more = more || again
		}
		switch {
		case f.stopping():
			return
		case more:
			runtime.Gosched() // others have something to move as well
			f.w.look()
		case f.s.spin(f.w):
		case !f.w.waitUntil(f.expiry(), f.stopping) && flow.Now() >= f.expiry():
			return
		}
	}
}

func (f *datagrams) stopping() bool { return f.over.Load() || f.s.stopping() }

// note notes what the watch has seen.
func (f *datagrams) note() {
	for _, ev := range f.w.take() {
		p := &f.side[ev.Fd]
		p.readable = p.readable || ev.Events&^unix.EPOLLOUT != 0
		p.failed = p.failed || ev.Events&unix.EPOLLERR != 0
	}
}

// expiry returns when the flow ends if nothing more happens.
func (f *datagrams) expiry() flow.Time {
	if f.side[1].seen > 0 && (f.side[1].seen > 1 || f.side[0].seen > 1) {
		return f.lastAt + flow.Time(f.s.cfg.UDPStreamTimeout)
	}
	return f.lastAt + flow.Time(f.s.cfg.UDPTimeout)
}

// move moves what src, number i, has received to dst. It returns whether there is more, and whether
// the flow can go on.
func (f *datagrams) move(src, dst *peer, i int) (more, ok bool) {
	if src.failed {
		src.failed = false
		src.readable = true
		readErrors(src.fd)
	}
	if !src.readable {
		return false, true
	}
	b := batches.Get().(*batch)
	defer batches.Put(b)
	faults := 0
	for range turnBatches {
		n, e := b.receive(src.fd)
		switch {
		case e == unix.EAGAIN:
			src.readable = false
			return false, true
		case e != 0:
			faults++
			if faults == maxFaults || broken(e) {
				f.s.cfg.Log.Debug("Unrecoverable error on flow socket", zap.Stringer("host", f.dst), zap.Error(e))
				return false, false
			}
			if faults == scarceFaults && sock.NoMemory(e) {
				return false, true // what is there waits for what comes next
			}
			continue // it is off the socket now, and there is nobody to tell
		}
		faults = 0
		src.seen = min(src.seen+n, 2)
		f.lastAt = flow.Now()
		f.used.Store(int64(f.lastAt))
		total := f.forward(b, n, dst)
		f.s.spinner.Message(f.w, flow.Side(i+1), total)
		if n < maxBatch {
			src.readable = false // the watch will say when there is more
			return false, true
		}
		if !src.bigRecv {
			src.bigRecv = true
			unix.SetsockoptInt(src.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, bulkDatagrams)
		}
	}
	return true, true
}

// broken reports whether e means that the socket cannot go on.
func broken(e unix.Errno) bool {
	return e == unix.EBADF || e == unix.ENOTSOCK || e == unix.EINVAL || e == unix.EFAULT || e == unix.ENOTCONN || e == unix.ENODEV
}

// forward sends the first n messages of b to dst, and returns how many bytes that is.
func (f *datagrams) forward(b *batch, n int, dst *peer) int {
	rows, total := b.rows(n, dst.limit)
	retried := false
	for i := 0; i < rows; {
		sent, e := b.send(dst.fd, i, rows)
		switch {
		case e == 0:
			i += sent
			retried = false
		case !retried && e != unix.EAGAIN:
			retried = true // most likely an error that some earlier datagram has met, reported once
		case b.size[i] > 0 && sock.RefusesRows(e):
			if e == unix.EINVAL || e == unix.EMSGSIZE {
				dst.limit = min(dst.limit, b.size[i])
			} else {
				dst.limit = 0
			}
			b.split(i, func(data []byte) { f.send(dst, data) })
			fallthrough
		default:
			if b.size[i] == 0 {
				f.s.counters.Lost.Add(1)
			}
			i++
			retried = false
		}
	}
	return total
}

// send sends one datagram.
func (f *datagrams) send(dst *peer, data []byte) {
	e := sock.Send(dst.fd, data)
	if e != 0 && e != unix.EAGAIN {
		e = sock.Send(dst.fd, data) // that was what an earlier one has met
	}
	if e != 0 {
		f.s.counters.Lost.Add(1)
	}
}

// readErrors empties fd's error queue (IP_RECVERR, ip(7)), if it has one.
func readErrors(fd int) {
	var b [1]byte
	iov := unix.Iovec{Base: &b[0], Len: 1}
	msg := unix.Msghdr{Iov: &iov, Iovlen: 1}
	for range 1024 { // far more than a queue holds
		_, e := ignoringEINTR(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT, 0, 0, 0)
		if e != 0 {
			break
		}
	}
	sock.Error(fd)
}

func (f *datagrams) close() {
	for _, p := range f.side {
		if p.fd >= 0 {
			closeFD(p.fd)
		}
	}
}
