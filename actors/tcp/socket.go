package tcp

import (
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"fusilli/actors/sock"
)

// System calls on the socket. None of them blocks, so they go past the scheduler's book-keeping
// (RawSyscall): a thread that enters one keeps its place.

// Indices into the answer of SO_MEMINFO (linux/sock_diag.h).
const (
	memSndbuf      = 3
	memWmemQueued  = 5
	memInfoVars    = 9
	soMemInfo      = 55 // SO_MEMINFO, Linux 4.12
	tcpFinWait2    = 5  // states of tcpi_state (linux/tcp_states.h)
	tcpTimeWait    = 6
	tcpClose       = 7
	discardScratch = 1 << 20
)

// sendIov sends b to fd without waiting and returns how much of it was taken.
func sendIov(fd int, b *batch) (int, unix.Errno) {
	for {
		var n uintptr
		var e unix.Errno
		if b.n == 1 {
			n, _, e = unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(b.iov[0].Base)),
				uintptr(b.iov[0].Len), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		} else {
			b.msg.Iov = &b.iov[0]
			b.msg.SetIovlen(b.n)
			n, _, e = unix.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.msg)),
				unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		}
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			return 0, e
		}
		return int(n), 0
	}
}

// scratch receives data that was peeked before, on kernels without a peek offset. What is in it
// does not matter, so all flows share it.
var scratch = sync.OnceValue(func() *[discardScratch]byte { return new([discardScratch]byte) })

// peek copies what follows the first skip bytes in the socket's queue to b and leaves it queued.
// 0 bytes without an error mean end of file.
func (c *conn) peek(b []byte, skip int) (int, unix.Errno) {
	if c.peekOff || skip == 0 {
		for {
			n, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(c.fd), uintptr(unsafe.Pointer(&b[0])),
				uintptr(len(b)), unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
			if e == unix.EINTR {
				continue
			}
			return int(n), e
		}
	}
	// Linux before 6.9: what was sent already is peeked again and dropped.
	bt := batches.Get().(*batch)
	defer batches.Put(bt)
	bt.n, bt.len = 0, 0
	s := scratch()
	for left := skip; left > 0; left -= len(s) {
		if bt.n == maxPieces-1 {
			return 0, unix.EAGAIN // more in flight than can be skipped: wait for acknowledgements
		}
		bt.add(s[:min(left, len(s))])
	}
	bt.add(b)
	bt.msg.Iov = &bt.iov[0]
	bt.msg.SetIovlen(bt.n)
	for {
		n, _, e := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(c.fd), uintptr(unsafe.Pointer(&bt.msg)),
			unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if e == unix.EINTR {
			continue
		}
		if e == 0 && int(n) <= skip {
			// Nothing new, or end of file: known once everything is acknowledged.
			return 0, unix.EAGAIN
		}
		return int(n) - skip, e
	}
}

// setPeek has the next peek skip the first n bytes of the queue.
func (c *conn) setPeek(n int) {
	if !c.peekOff {
		return
	}
	if err := sock.SetPeekOffset(c.fd, int32(n)); err != 0 {
		c.sockErr, c.failed = err, true // or the guest would get other bytes than it is told
	}
}

// holdsMore reports whether the socket's queue has more than n bytes (SIOCINQ, tcp(7)), whatever
// the peek offset.
func (c *conn) holdsMore(n int) bool {
	var all int32
	_, _, e := unix.RawSyscall(unix.SYS_IOCTL, uintptr(c.fd), unix.SIOCINQ, uintptr(unsafe.Pointer(&all)))
	return e == 0 && int(all) > n
}

// discard takes n bytes, all peeked before, off the socket's queue.
func (c *conn) discard(n int) bool {
	for n > 0 {
		m, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(c.fd), 0, uintptr(n),
			unix.MSG_TRUNC|unix.MSG_DONTWAIT, 0, 0)
		if e == unix.EINTR {
			continue
		}
		if e != 0 || m == 0 {
			c.sockErr, c.failed = e, true
			return false
		}
		n -= int(m)
	}
	return true
}

// sendRoom returns how much the send buffer of fd still takes, in bytes of memory, which is a
// little less in payload, negative if it is over-full; and how much is in it. It takes data again,
// as writable says, when the former is half of the latter.
func sendRoom(fd int) (free, queued int) {
	var v [memInfoVars]uint32
	l := uint32(unsafe.Sizeof(v))
	_, _, e := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, soMemInfo,
		uintptr(unsafe.Pointer(&v)), uintptr(unsafe.Pointer(&l)), 0)
	if e != 0 {
		return 0, 0
	}
	return int(v[memSndbuf]) - int(v[memWmemQueued]), int(v[memWmemQueued])
}

// writable is a check for AwaitWrite: there is room in the socket's send buffer, a connection
// attempt has ended, or the socket has failed.
func writable(fd uintptr) bool { return sock.Poll(int(fd), unix.POLLOUT) != 0 }

// finAcked is a check for AwaitWrite: the peer has acknowledged our FIN, or the socket has failed.
func finAcked(fd uintptr) bool {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO)
	return err != nil || info.State == tcpFinWait2 || info.State == tcpTimeWait || info.State == tcpClose
}
