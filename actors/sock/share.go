package sock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrPortShared is why a port cannot be had for all peers.
var ErrPortShared = errors.New("others may use the port")

// Addresses of the loopback network at which it is found out who uses a port. IPv6 has only one.
var (
	probe4 = netip.AddrFrom4([4]byte{127, 255, 255, 254})
	probe6 = netip.IPv6Loopback()
)

// ShareUDP returns a UDP socket like those of UDP, bound to the port of fd, one of them, but
// connected to nobody: it gets what comes to that port and is for no connected socket, and tells to
// which address that was sent.
//
// So it is made only if there is no other socket of the host that has the port at all addresses,
// which might count on getting that: else, or if it cannot be told, the error is ErrPortShared.
// Other errors are those of UDP.
//
// A socket of its own is needed since dissolving the association of fd (connect(2) with AF_UNSPEC)
// leaves one of IPv6 deaf to all but its old peer's address.
func (h *Host) ShareUDP(fd int) (int, error) {
	local, ok := Local(fd)
	if !ok {
		return -1, unix.ENOTCONN
	}
	v4 := local.Addr().Is4()
	if err := h.free(local, false); err != nil {
		return -1, err
	}
	s, err := unix.Socket(family(v4), unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := h.share(s, v4, local.Port()); err != nil {
		unix.Close(s)
		return -1, err
	}
	return s, nil
}

// free returns ErrPortShared unless it is sure that nobody has the port of local, where a connected
// socket is bound, at all addresses: then it could not be had at another address either. With
// sharing, sockets with SO_REUSEPORT are nobody.
func (h *Host) free(local netip.AddrPort, sharing bool) error {
	if h.Ports != nil { // a flow that begins must not take this for somebody who has the port
		h.Ports.mu.Lock()
		defer h.Ports.mu.Unlock()
	}
	probe := probe6
	if local.Addr().Is4() {
		probe = probe4
	}
	if probe == local.Addr() {
		return ErrPortShared // who knows
	}
	fd, err := unix.Socket(family(probe.Is4()), unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if sharing {
		if e := rawSetInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); e != 0 {
			return os.NewSyscallError("setsockopt SO_REUSEPORT", e)
		}
	}
	if probe.Is6() {
		if err := unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return os.NewSyscallError("setsockopt IPV6_V6ONLY", err)
		}
	}
	if err := unix.Bind(fd, (&Host{}).Sockaddr(netip.AddrPortFrom(probe, local.Port()))); err != nil {
		return fmt.Errorf("%w: %w", ErrPortShared, os.NewSyscallError("bind", err))
	}
	return nil
}

func (h *Host) share(fd int, v4 bool, port uint16) error {
	level, info, all := unix.SOL_IP, unix.IP_PKTINFO, unix.IP_MULTICAST_ALL
	if !v4 {
		level, info, all = unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, unix.IPV6_MULTICAST_ALL
	}
	if err := h.prepare(fd, v4); err != nil {
		return err
	}
	if err := reuse(fd); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, level, info, 1); err != nil {
		return os.NewSyscallError("setsockopt IP_PKTINFO", err)
	}
	unix.SetsockoptInt(fd, level, all, 0)
	src := h.source(v4)
	if name := h.device(v4); name != "" && !src.IsLoopback() {
		if err := unix.BindToDevice(fd, name); err != nil {
			return fmt.Errorf("bind to interface %s: %w", name, err)
		}
	}
	return os.NewSyscallError("bind", unix.Bind(fd, h.Sockaddr(netip.AddrPortFrom(src, port))))
}

// Contested reports whether another socket of the host has by now the port of fd, one of ShareUDP,
// at all addresses: it was bound later, with SO_REUSEADDR, and what comes to the port is for one of
// both.
//
// To bind to the port without SO_REUSEADDR finds that out, and fd is no obstacle while both are for
// sharing in the other way, SO_REUSEPORT (socket(7)): the kernel looks at the sockets bound last
// first. Nothing is taken by that, since the address is one that nobody sends to.
func (h *Host) Contested(fd int) bool {
	local, ok := Local(fd)
	if !ok || rawSetInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) != 0 {
		return false
	}
	defer rawSetInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 0)
	return errors.Is(h.free(local, true), ErrPortShared)
}

// Aside has fd, a connected UDP socket, receive nothing any more from peer, whom it is connected
// to: it is connected to a port of that host that nobody sends from. What it has received by then
// stays in its queue; what comes later is for other sockets with its port. Errors are those of
// connect(2).
func Aside(fd int, peer netip.AddrPort) unix.Errno {
	port := uint16(1)
	if peer.Port() == port {
		port++
	}
	return rawConnect(fd, netip.AddrPortFrom(peer.Addr(), port), 0)
}

// SetSockaddr fills sa with addr, which needs no scope, and returns its length.
func SetSockaddr(sa *unix.RawSockaddrInet6, addr netip.AddrPort) uint32 {
	*sa = unix.RawSockaddrInet6{}
	port := (*[2]byte)(unsafe.Pointer(&sa.Port)) // at the same place in both kinds
	if a := addr.Addr(); a.Is4() {
		sa4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		sa4.Family, sa4.Addr = unix.AF_INET, a.As4()
		binary.BigEndian.PutUint16(port[:], addr.Port())
		return unix.SizeofSockaddrInet4
	}
	sa.Family, sa.Addr = unix.AF_INET6, addr.Addr().As16()
	binary.BigEndian.PutUint16(port[:], addr.Port())
	return unix.SizeofSockaddrInet6
}

// SendTo sends b, which may be empty, to the address of n bytes at sa, or to the peer fd is
// connected to if n is 0, without waiting.
func SendTo(fd int, b []byte, sa *unix.RawSockaddrInet6, n uint32) unix.Errno {
	if n == 0 {
		sa = nil
	}
	for {
		_, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))),
			uintptr(len(b)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, uintptr(unsafe.Pointer(sa)), uintptr(n))
		if e != unix.EINTR {
			return e
		}
	}
}

// ToUs reports whether the first n bytes of c say that the datagram was sent to an address of ours
// (IP_PKTINFO, ip(7)), and not to a group or everybody.
func (c *Control) ToUs(n int) (ours bool) {
	each(c[:min(n, len(c))], func(level, typ int32, data []byte) bool {
		switch {
		case level == unix.SOL_IP && typ == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			ours = [4]byte(data[4:8]) == [4]byte(data[8:12]) // where an answer would come from
		case level == unix.SOL_IPV6 && typ == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			ours = data[0] != 0xff
		}
		return true
	})
	return ours
}
