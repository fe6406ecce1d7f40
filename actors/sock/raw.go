package sock

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls here go past the scheduler's book-keeping (RawSyscall), as calls that never block may.
// Through the ordinary wrappers, one that takes the kernel longer than 20 µs (a connect or a reset
// over a local link carries the peer's answer within the call) costs the thread its place, and the
// flow two switches of threads.

func rawSocket(family, kind int) (int, unix.Errno) {
	fd, _, e := unix.RawSyscall(unix.SYS_SOCKET, uintptr(family), uintptr(kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC), 0)
	return int(fd), e
}

func rawSetInt(fd, level, opt int, v int32) unix.Errno {
	_, _, e := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(opt),
		uintptr(unsafe.Pointer(&v)), unsafe.Sizeof(v), 0)
	return e
}

// rawConnect connects to addr, whose scope, if it is link-local, is scope.
func rawConnect(fd int, addr netip.AddrPort, scope uint32) unix.Errno {
	var sa unix.RawSockaddrInet6
	n := uintptr(unix.SizeofSockaddrInet6)
	port := (*[2]byte)(unsafe.Pointer(&sa.Port)) // at the same place in both kinds
	binary.BigEndian.PutUint16(port[:], addr.Port())
	if a := addr.Addr(); a.Is4() {
		sa4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(&sa))
		sa4.Family, sa4.Addr = unix.AF_INET, a.As4()
		n = unix.SizeofSockaddrInet4
	} else {
		sa.Family, sa.Addr = unix.AF_INET6, a.As16()
		if a.IsLinkLocalUnicast() {
			sa.Scope_id = scope
		}
	}
	_, _, e := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), n)
	return e
}

// Reset ends fd's connection with RST: what the peer has sent and what it has not acknowledged is
// thrown away. The descriptor stays open.
func Reset(fd int) {
	sa := unix.RawSockaddrInet4{Family: unix.AF_UNSPEC} // connect(2): dissolves the association
	unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unix.SizeofSockaddrInet4)
}

// Peer returns who fd is connected to, an IPv4 address in its own form also where the socket is one
// of IPv6. ok is false if it is not connected.
func Peer(fd int) (addr netip.AddrPort, ok bool) {
	var sa unix.RawSockaddrInet6
	n := uint32(unix.SizeofSockaddrInet6)
	_, _, e := unix.RawSyscall(unix.SYS_GETPEERNAME, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&n)))
	if e != 0 {
		return addr, false
	}
	return AddrPort(&sa)
}

// Local returns what fd is bound to, like Peer.
func Local(fd int) (addr netip.AddrPort, ok bool) {
	var sa unix.RawSockaddrInet6
	n := uint32(unix.SizeofSockaddrInet6)
	_, _, e := unix.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&n)))
	if e != 0 {
		return addr, false
	}
	return AddrPort(&sa)
}

// AddrPort returns the address in sa, which is of either family, without its scope.
func AddrPort(sa *unix.RawSockaddrInet6) (addr netip.AddrPort, ok bool) {
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:])
	switch sa.Family {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(sa)).Addr), port), true
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), port), true
	}
	return addr, false
}

// Scope returns the interface of the address in sa, 0 if it needs none.
func Scope(sa *unix.RawSockaddrInet6) uint32 {
	if sa.Family == unix.AF_INET6 {
		return sa.Scope_id
	}
	return 0
}

// NoDelay has fd's data sent at once (TCP_NODELAY, tcp(7)).
func NoDelay(fd int) { rawSetInt(fd, unix.SOL_TCP, unix.TCP_NODELAY, 1) }

// PrepareStream has fd's data sent at once, and leaves what the peer sends as urgent in its place
// in the stream (SO_OOBINLINE, socket(7)): elsewhere the byte is lost to who only reads, and peeked
// data and what is taken off the queue do not match any more.
func PrepareStream(fd int) {
	NoDelay(fd)
	rawSetInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
}

// Error takes the pending error off fd (SO_ERROR, socket(7)); 0 if there is none.
func Error(fd int) unix.Errno {
	var v int32
	n := uint32(unsafe.Sizeof(v))
	_, _, e := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_ERROR,
		uintptr(unsafe.Pointer(&v)), uintptr(unsafe.Pointer(&n)), 0)
	if e != 0 {
		return e
	}
	return unix.Errno(v)
}

// Poll asks without waiting which of events (poll(2)) hold for fd; errors and hang-ups are always
// among the answers.
func Poll(fd int, events int16) int16 {
	p := unix.PollFd{Fd: int32(fd), Events: events}
	var zero unix.Timespec
	for {
		n, _, e := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&zero)), 0, 0, 0)
		switch {
		case e == unix.EINTR:
			continue
		case e != 0:
			return unix.POLLERR
		case n == 0:
			return 0
		}
		return p.Revents
	}
}

// Send sends b to the peer fd is connected to, without waiting. b may be empty.
func Send(fd int, b []byte) unix.Errno {
	for {
		_, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))),
			uintptr(len(b)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		if e != unix.EINTR {
			return e
		}
	}
}

// Recv receives one datagram to b, which is not empty, without waiting.
func Recv(fd int, b []byte) (int, unix.Errno) {
	for {
		n, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b[0])),
			uintptr(len(b)), unix.MSG_DONTWAIT, 0, 0)
		if e != unix.EINTR {
			return int(n), e
		}
	}
}

// NoMemory reports whether e says that the kernel has no memory for a call at the moment. That is
// not the flow's fault, and no event says when there is some again.
func NoMemory(e unix.Errno) bool { return e == unix.ENOBUFS || e == unix.ENOMEM }

// SetPeekOffset has what fd peeks begin after the first n bytes of its queue (SO_PEEK_OFF,
// socket(7)).
func SetPeekOffset(fd int, n int32) unix.Errno {
	return rawSetInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, n)
}
