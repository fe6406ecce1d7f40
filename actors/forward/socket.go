package forward

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"fusilli/config"
)

// backlog is the number of connections that wait to be accepted on one port, as far as
// net.core.somaxconn permits: those of a second at the rate at which connections can be made. Where
// they are more than wait, peers wait a second to ask again, or are reset after SYN cookies
// (tcp(7), listen(2)).
const backlog = 4096

// opening says how listeners of one side are opened.
type opening struct {
	v4, v6   bool   // enabled families
	freeBind bool   // IP_FREEBIND, IPV6_FREEBIND: the address need not exist
	scope    uint32 // interface of link-local addresses
}

// listen opens the listener of rule r for port in the network namespace of the calling thread. If
// device is set the error is that of binding to r's interface.
func (o *opening) listen(r *config.Rule, port uint16) (fd int, device bool, err error) {
	addr := r.Listen
	dual := !addr.IsValid()
	switch {
	case dual && !o.v6:
		addr, dual = netip.IPv4Unspecified(), false
	case dual && !o.v4:
		addr, dual = netip.IPv6Unspecified(), false
	case !dual && (addr.Is4() && !o.v4 || addr.Is6() && !o.v6):
		return -1, false, unix.EAFNOSUPPORT
	case dual:
		addr = netip.IPv6Unspecified()
	}
	kind := unix.SOCK_STREAM
	if r.Protocol == config.UDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err = unix.Socket(familyOf(addr), kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err == unix.EAFNOSUPPORT && dual { // a kernel without IPv6
		addr, dual = netip.IPv4Unspecified(), false
		fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	}
	if err != nil {
		return -1, false, err
	}
	if device, err = o.setUp(fd, r, addr, dual, port); err != nil {
		unix.Close(fd)
		return -1, device, err
	}
	return fd, false, nil
}

func (o *opening) setUp(fd int, r *config.Rule, addr netip.Addr, dual bool, port uint16) (device bool, err error) {
	set := func(level, opt, value int) {
		if err == nil {
			err = unix.SetsockoptInt(fd, level, opt, value)
		}
	}
	set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if addr.Is6() {
		only := 1
		if dual {
			only = 0
		}
		set(unix.SOL_IPV6, unix.IPV6_V6ONLY, only) // whatever net.ipv6.bindv6only says
	}
	if o.freeBind {
		setFreeBind(fd, addr, set)
	}
	if r.Protocol == config.UDP {
		// An IPv6 socket tells the address for packets of both families.
		if addr.Is6() {
			set(unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1)
			set(unix.SOL_IPV6, unix.IPV6_RECVERR, 1)
		} else {
			set(unix.SOL_IP, unix.IP_PKTINFO, 1)
		}
		if addr.Is4() || dual {
			set(unix.SOL_IP, unix.IP_RECVERR, 1)
			set(unix.SOL_IP, unix.IP_MULTICAST_ALL, 1) // the default of IPv4 sockets only
		}
	}
	if err != nil {
		return false, err
	}
	if r.IfName != "" {
		if err := unix.BindToDevice(fd, r.IfName); err != nil {
			return true, err
		}
	}
	if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(addr, port), o.scopeOf(addr, r.IfName))); err != nil {
		return false, err
	}
	if r.Protocol == config.TCP {
		return false, unix.Listen(fd, backlog)
	}
	return false, nil
}

func setFreeBind(fd int, addr netip.Addr, set func(level, opt, value int)) {
	if addr.Is6() {
		set(unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
		return
	}
	set(unix.SOL_IP, unix.IP_FREEBIND, 1)
}

// scopeOf is the interface by which addr is meant, 0 if addr does not need one.
func (o *opening) scopeOf(addr netip.Addr, ifName string) uint32 {
	if !addr.IsLinkLocalUnicast() || addr.Is4() {
		return 0
	}
	if ifName != "" {
		return 0 // the socket is bound to the interface, which is the scope
	}
	return o.scope
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func sockaddr(a netip.AddrPort, scope uint32) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16(), ZoneId: scope}
}

// endpoint is an address and port, and the interface it is reached by if it is link-local.
type endpoint struct {
	netip.AddrPort
	scope uint32
}

// endpointOf reads what the kernel has written. IPv4 in IPv6 becomes IPv4; an address of another
// family is invalid.
func endpointOf(sa *unix.RawSockaddrInet6) endpoint {
	port := (*[2]byte)(unsafe.Pointer(&sa.Port)) // at the same place in both kinds
	p := uint16(port[0])<<8 | uint16(port[1])
	switch sa.Family {
	case unix.AF_INET:
		sa4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return endpoint{netip.AddrPortFrom(netip.AddrFrom4(sa4.Addr), p), 0}
	case unix.AF_INET6:
		return endpoint{netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), p), sa.Scope_id}
	}
	return endpoint{}
}

// unicast reports whether e can be a peer.
func (e endpoint) unicast() bool {
	a := e.Addr()
	return a.IsValid() && e.Port() != 0 && !a.IsUnspecified() && !a.IsMulticast() && a != broadcast
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// accept takes a connection off the listener fd, without waiting.
func accept(fd int) (conn int, peer endpoint, e unix.Errno) {
	var sa unix.RawSockaddrInet6
	n := uint32(unsafe.Sizeof(sa))
	r, _, e := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&n)),
		unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if e != 0 {
		return -1, endpoint{}, e
	}
	return int(r), endpointOf(&sa), 0
}

// localOf is the address of our own end of fd; invalid if there is none.
func localOf(fd int) endpoint {
	var sa unix.RawSockaddrInet6
	n := uint32(unsafe.Sizeof(sa))
	if _, _, e := unix.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&n))); e != 0 {
		return endpoint{}
	}
	return endpointOf(&sa)
}

// reset closes the connection fd so that its peer sees RST.
func reset(fd int) {
	// or the peer sees FIN
	unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	unix.Close(fd)
}
