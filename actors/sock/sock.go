// Package sock opens the host's sockets that flows lead to.
package sock

import (
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Host opens sockets in the network namespace of the calling thread, all of them non-blocking and
// close-on-exec.
type Host struct {
	// Scope is the interface index that link-local IPv6 destinations are reached through.
	Scope uint32
	// Out4 and Out6 are source addresses to bind to; invalid: the kernel chooses.
	Out4, Out6 netip.Addr
}

// Sockaddr returns a as the kernel wants it, with h's scope if a is link-local.
func (h *Host) Sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	sa := &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	if a.Addr().IsLinkLocalUnicast() || a.Addr().IsLinkLocalMulticast() {
		sa.ZoneId = h.Scope
	}
	return sa
}

func (h *Host) out(v4 bool) netip.Addr {
	if v4 {
		return h.Out4
	}
	return h.Out6
}

func family(v4 bool) int {
	if v4 {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// Dial returns a TCP socket that connects or is connected to addr. Errors are those of socket(2)
// and connect(2), but for EINPROGRESS.
func (h *Host) Dial(addr netip.AddrPort) (int, error) {
	v4 := addr.Addr().Is4()
	fd, e := rawSocket(family(v4), unix.SOCK_STREAM)
	if e != 0 {
		return -1, os.NewSyscallError("socket", e)
	}
	rawSetInt(fd, unix.SOL_TCP, unix.TCP_NODELAY, 1)
	if out := h.out(v4); out.IsValid() {
		if err := unix.Bind(fd, h.Sockaddr(netip.AddrPortFrom(out, 0))); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("bind TCP socket to %s: %w", out, err)
		}
	}
	if e := rawConnect(fd, addr, h.Scope); e != 0 && e != unix.EINPROGRESS {
		unix.Close(fd)
		return -1, os.NewSyscallError("connect", e)
	}
	return fd, nil
}

// PeekOffset reports whether TCP sockets of the address family have SO_PEEK_OFF: Linux 6.9.
func PeekOffset(family int) bool {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0) == nil
}
