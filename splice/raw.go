package splice

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// These calls never block, and go past the scheduler's book-keeping; see package sock.

func ignoringEINTR(trap, a, b, c, d, e, f uintptr) (int, unix.Errno) {
	for {
		n, _, err := unix.RawSyscall6(trap, a, b, c, d, e, f)
		if err != unix.EINTR {
			return int(n), err
		}
	}
}

// recv receives from the stream fd to b.
func recv(fd int, b []byte) (int, unix.Errno) {
	return ignoringEINTR(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_DONTWAIT, 0, 0)
}

// send sends as much of b as the stream fd takes.
func send(fd int, b []byte) (int, unix.Errno) {
	return ignoringEINTR(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)),
		unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
}

// move moves up to n bytes from in to out, one of which is a pipe (splice(2)). Both are
// non-blocking. more may be SPLICE_F_MORE.
func move(in, out, n int, more uintptr) (int, unix.Errno) {
	return ignoringEINTR(unix.SYS_SPLICE, uintptr(in), 0, uintptr(out), 0, uintptr(n), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK|more)
}

// events asks without waiting what has happened in the epoll instance ep.
func events(ep int, ev []unix.EpollEvent) (int, unix.Errno) {
	return ignoringEINTR(unix.SYS_EPOLL_PWAIT, uintptr(ep), uintptr(unsafe.Pointer(&ev[0])), uintptr(len(ev)), 0, 0, 0)
}

func shutdownWrite(fd int) unix.Errno {
	_, _, e := unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
	return e
}

func closeFD(fd int) { unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }
