// Package sock opens the host's sockets that flows lead to.
package sock

import (
	"fmt"
	"net/netip"
	"os"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Host opens sockets in the network namespace of the calling thread, all of them non-blocking and
// close-on-exec.
type Host struct {
	// Scope is the interface index that link-local IPv6 destinations are reached through.
	Scope uint32
	// Out4 and Out6 are source addresses to bind to; invalid: the kernel chooses.
	Out4, Out6 netip.Addr
	// Device4 and Device6 are the interfaces that sockets are bound to (SO_BINDTODEVICE,
	// socket(7)); empty: the routes decide.
	Device4, Device6 string
	// FreeBind lets UDP sockets have a source address that the host does not have (IP_FREEBIND,
	// ip(7)).
	FreeBind bool
	// AnyPort has UDP sockets have ports of the kernel's choice, and never the guest's own.
	AnyPort bool
	// Ports knows the ports of UDP sockets, and what stands for those that they could not have;
	// nil: nothing does.
	Ports *Ports
	// Log is told what a connection does without; nil: nobody is.
	Log *zap.Logger
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

func (h *Host) device(v4 bool) string {
	if v4 {
		return h.Device4
	}
	return h.Device6
}

func (h *Host) warn(message string, fields ...zap.Field) {
	if h.Log != nil {
		h.Log.Warn(message, fields...)
	}
}

func family(v4 bool) int {
	if v4 {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func familyName(v4 bool) string {
	if v4 {
		return "IPv4"
	}
	return "IPv6"
}

// Dial returns a TCP socket that connects or is connected to addr. A source address or interface
// that cannot be had is logged and done without. Errors are those of socket(2) and connect(2), but
// for EINPROGRESS.
func (h *Host) Dial(addr netip.AddrPort) (int, error) {
	v4 := addr.Addr().Is4()
	fd, e := rawSocket(family(v4), unix.SOCK_STREAM)
	if e != 0 {
		return -1, os.NewSyscallError("socket", e)
	}
	PrepareStream(fd)
	if out := h.out(v4); out.IsValid() {
		if err := unix.Bind(fd, h.Sockaddr(netip.AddrPortFrom(out, 0))); err != nil {
			// Other programs match this text and the next one.
			h.warn(fmt.Sprintf("Can't bind TCP outbound socket to %s:%d", out, 0), zap.Error(err))
		}
	}
	if name := h.device(v4); name != "" {
		if err := unix.BindToDevice(fd, name); err != nil {
			h.warn(fmt.Sprintf("Can't bind %s TCP socket to interface %s", familyName(v4), name), zap.Error(err))
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
