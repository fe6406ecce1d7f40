package sock

import (
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// UDP returns a UDP socket connected to addr and bound to port, the guest's own source port, and
// what is to be released when it is closed.
//
// A port that is in use on the host, or is not ours to have (privileged), or any if AnyPort is set,
// is replaced by one of the kernel's choice, the same one for all peers (see Ports): the flow works
// then, and only a peer that insists on the port number notices. Only flows of the guest's share a
// port, and what listens for the guest's port of the same number. Port 0 is any that no other
// socket has.
//
// The socket queues ICMP errors (IP_RECVERR, ip(7)) and takes rows of datagrams in one piece
// (UDP_GRO, udp(7), Linux 5.0) where the kernel can, and tells time to live and type of service of
// what it receives. Between bind and connect it may receive datagrams of others: those are the
// first in its queue. Errors are those of socket(2), setsockopt(2), bind(2) and connect(2); a
// broadcast address is refused (EACCES).
func (h *Host) UDP(port uint16, addr netip.AddrPort) (fd int, held Held, err error) {
	v4 := addr.Addr().Is4()
	fd, err = unix.Socket(family(v4), unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, held, os.NewSyscallError("socket", err)
	}
	if held, err = h.udp(fd, v4, port, addr); err != nil {
		unix.Close(fd)
		held.Release()
		return -1, Held{}, err
	}
	return fd, held, nil
}

// prepare sets the options that all UDP sockets have.
func (h *Host) prepare(fd int, v4 bool) error {
	level, opt := unix.SOL_IP, unix.IP_RECVERR
	if !v4 {
		level, opt = unix.SOL_IPV6, unix.IPV6_RECVERR
		// What has the port for IPv4 is another matter.
		if err := unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return os.NewSyscallError("setsockopt IPV6_V6ONLY", err)
		}
	}
	if err := unix.SetsockoptInt(fd, level, opt, 1); err != nil {
		return os.NewSyscallError("setsockopt IP_RECVERR", err)
	}
	unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1) // without it datagrams come one by one
	tellHeader(fd, !v4)
	if h.FreeBind {
		level, opt := unix.SOL_IP, unix.IP_FREEBIND
		if !v4 {
			level, opt = unix.SOL_IPV6, unix.IPV6_FREEBIND
		}
		if err := unix.SetsockoptInt(fd, level, opt, 1); err != nil {
			return os.NewSyscallError("setsockopt IP_FREEBIND", err)
		}
	}
	return nil
}

// reuse has fd share its port with other sockets that do.
func reuse(fd int) error {
	return os.NewSyscallError("setsockopt SO_REUSEADDR", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
}

// source returns the address that sockets are bound to.
func (h *Host) source(v4 bool) netip.Addr {
	switch src := h.out(v4); {
	case src.IsValid():
		return src
	case v4:
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func (h *Host) udp(fd int, v4 bool, port uint16, addr netip.AddrPort) (Held, error) {
	if err := h.prepare(fd, v4); err != nil {
		return Held{}, err
	}
	src, bound := h.source(v4), h.out(v4).IsValid()
	if name := h.device(v4); name != "" && !src.IsLoopback() && !addr.Addr().IsLoopback() {
		if err := unix.BindToDevice(fd, name); err != nil {
			return Held{}, fmt.Errorf("bind to interface %s: %w", name, err)
		}
	}
	held := Held{}
	if ports := h.Ports; port != 0 || bound {
		if ports == nil {
			ports = new(Ports)
		}
		var err error
		held, err = ports.bind(v4, port, h.AnyPort, func(port uint16, ours bool) (uint16, error) {
			// Who binds without SO_REUSEADDR finds out whether anybody has the port; with it set
			// later on it can be shared all the same.
			if ours {
				if err := reuse(fd); err != nil {
					return 0, err
				}
			}
			if err := unix.Bind(fd, h.Sockaddr(netip.AddrPortFrom(src, port))); err != nil {
				return 0, err
			}
			if !ours {
				if err := reuse(fd); err != nil {
					return 0, err
				}
			}
			if port == 0 {
				local, _ := Local(fd)
				port = local.Port()
			}
			return port, nil
		})
		if err != nil {
			return held, os.NewSyscallError("bind", err)
		}
	}
	return held, os.NewSyscallError("connect", unix.Connect(fd, h.Sockaddr(addr)))
}

// PrepareUDP has fd, a datagram socket of either family that somebody else has made, queue errors,
// take rows and tell headers as those of UDP do. What the kernel cannot do is done without.
func PrepareUDP(fd int) {
	rawSetInt(fd, unix.SOL_IP, unix.IP_RECVERR, 1) // also for IPv4 on a socket of IPv6
	rawSetInt(fd, unix.SOL_IPV6, unix.IPV6_RECVERR, 1)
	rawSetInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1)
	tellHeader(fd, false)
	tellHeader(fd, true)
}
