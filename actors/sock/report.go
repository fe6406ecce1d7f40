package sock

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Report is what somebody has said about a datagram that was sent: an entry of a socket's error
// queue (IP_RECVERR, ip(7)).
type Report struct {
	Err unix.Errno
	// SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6, SO_EE_ORIGIN_LOCAL; 0: nothing was said
	Origin     uint8
	Type, Code uint8          // of the ICMP message
	Info       uint32         // next-hop MTU, where the type has one
	From       netip.Addr     // who says so, without its scope; invalid if that is not known
	To         netip.AddrPort // where the datagram was sent to; invalid if that is not known
	Scope      uint32         // interface of To, if that is link-local
}

// ReadReport takes the next entry off fd's error queue, without waiting, and copies as much of the
// datagram as was quoted, from behind the header that the socket does not show, to b, which is not
// empty. It returns the length of that. EAGAIN is the end of the queue.
func ReadReport(fd int, b []byte) (r Report, n int, e unix.Errno) {
	var control [256]byte
	var to unix.RawSockaddrInet6
	n, m, e := receive(fd, b, control[:], &to, unix.MSG_ERRQUEUE)
	if e != 0 {
		return r, 0, e
	}
	each(control[:m], func(level, typ int32, data []byte) bool {
		if level == unix.SOL_IP && typ == unix.IP_RECVERR || level == unix.SOL_IPV6 && typ == unix.IPV6_RECVERR {
			r = parseReport(data)
			return false
		}
		return true
	})
	r.To, _ = AddrPort(&to)
	r.Scope = Scope(&to)
	return r, n, 0
}

// parseReport reads a struct sock_extended_err with the address behind it.
func parseReport(b []byte) (r Report) {
	const size = 16
	if len(b) < size {
		return r
	}
	r = Report{
		Err: unix.Errno(binary.NativeEndian.Uint32(b)), Origin: b[4], Type: b[5], Code: b[6],
		Info: binary.NativeEndian.Uint32(b[8:]),
	}
	switch a := b[size:]; {
	case len(a) >= unix.SizeofSockaddrInet4 && binary.NativeEndian.Uint16(a) == unix.AF_INET:
		r.From = netip.AddrFrom4([4]byte(a[4:8]))
	case len(a) >= unix.SizeofSockaddrInet6 && binary.NativeEndian.Uint16(a) == unix.AF_INET6:
		r.From = netip.AddrFrom16([16]byte(a[8:24])).Unmap() // of IPv4 too, on a socket for both
	}
	return r
}

// RecvHops is Recv that also returns the time to live or hop limit that the datagram came with, if
// the socket tells (IP_RECVTTL, ip(7)), and else 255.
func RecvHops(fd int, b []byte) (n int, hops uint8, e unix.Errno) {
	var control [64]byte
	n, m, e := receive(fd, b, control[:], nil, 0)
	hops = 255
	if e != 0 {
		return 0, hops, e
	}
	each(control[:m], func(level, typ int32, data []byte) bool {
		if (level == unix.SOL_IP && typ == unix.IP_TTL || level == unix.SOL_IPV6 && typ == unix.IPV6_HOPLIMIT) && len(data) >= 4 {
			hops = uint8(binary.NativeEndian.Uint32(data))
		}
		return true
	})
	return n, hops, 0
}

// receive receives one datagram to b, control messages to control and, unless name is nil, an
// address to that, without waiting, and returns the lengths of the first two.
func receive(fd int, b, control []byte, name *unix.RawSockaddrInet6, flags uintptr) (n, m int, e unix.Errno) {
	iov := unix.Iovec{Base: &b[0]}
	iov.SetLen(len(b))
	for {
		msg := unix.Msghdr{Iov: &iov, Control: &control[0]}
		msg.SetIovlen(1)
		msg.SetControllen(len(control))
		if name != nil {
			msg.Name, msg.Namelen = (*byte)(unsafe.Pointer(name)), unix.SizeofSockaddrInet6
		}
		n, _, e := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), flags|unix.MSG_DONTWAIT)
		switch e {
		case 0:
			return int(n), int(msg.Controllen), 0
		case unix.EINTR:
		default:
			return 0, 0, e
		}
	}
}

// each calls f with the control messages in b until it returns false or what follows is none.
func each(b []byte, f func(level, typ int32, data []byte) bool) {
	const size = unix.SizeofCmsghdr
	for len(b) >= size {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		n := int(h.Len)
		if n < size || n > len(b) {
			return
		}
		data := b[unix.CmsgLen(0):max(n, unix.CmsgLen(0))]
		if !f(h.Level, h.Type, data) {
			return
		}
		b = b[min(unix.CmsgSpace(len(data)), len(b)):]
	}
}

// Control is room for what the kernel says about datagrams it has received: the size of those in a
// row (UDP_GRO), time to live and type of service (IP_RECVTTL, IP_RECVTOS, ip(7)), and where they
// were sent to (IP_PKTINFO).
type Control [160]byte

// Parse reads the first n bytes of c: the size is 0 if there is no row; a time to live that is not
// told is 255.
func (c *Control) Parse(n int) (size int, hops, tos uint8) {
	hops = 255
	for b := c[:min(n, len(c))]; len(b) > unix.SizeofCmsghdr; {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		end := int(h.Len)
		if end <= unix.SizeofCmsghdr || end > len(b) {
			break
		}
		switch v := b[unix.SizeofCmsghdr:end]; {
		case len(v) == 1: // IP_TOS is a byte, everything else an int
			if h.Level == unix.SOL_IP && h.Type == unix.IP_TOS {
				tos = v[0]
			}
		case len(v) < 4:
		case h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO:
			size = int(int32(binary.NativeEndian.Uint32(v)))
		case h.Level == unix.SOL_IP && h.Type == unix.IP_TTL, h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_HOPLIMIT:
			hops = uint8(binary.NativeEndian.Uint32(v))
		case h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_TCLASS:
			tos = uint8(binary.NativeEndian.Uint32(v))
		}
		b = b[min(unix.CmsgSpace(end-unix.SizeofCmsghdr), len(b)):]
	}
	return size, hops, tos
}

// tellHeader has fd, which carries datagrams, tell time to live and type of service of those it
// receives, where the kernel can.
func tellHeader(fd int, v6 bool) {
	if v6 {
		rawSetInt(fd, unix.SOL_IPV6, unix.IPV6_RECVHOPLIMIT, 1)
		rawSetInt(fd, unix.SOL_IPV6, unix.IPV6_RECVTCLASS, 1)
	} else {
		rawSetInt(fd, unix.SOL_IP, unix.IP_RECVTTL, 1)
		rawSetInt(fd, unix.SOL_IP, unix.IP_RECVTOS, 1)
	}
}

// SetHops has what fd sends to one host carry the time to live or hop limit hops.
func SetHops(fd int, v6 bool, hops uint8) {
	if v6 {
		rawSetInt(fd, unix.SOL_IPV6, unix.IPV6_UNICAST_HOPS, int32(hops))
	} else {
		rawSetInt(fd, unix.SOL_IP, unix.IP_TTL, int32(hops))
	}
}

// SetTOS has what fd sends carry the type of service or traffic class tos: DSCP and ECN.
func SetTOS(fd int, v6 bool, tos uint8) {
	if v6 {
		rawSetInt(fd, unix.SOL_IPV6, unix.IPV6_TCLASS, int32(tos))
	} else {
		rawSetInt(fd, unix.SOL_IP, unix.IP_TOS, int32(tos))
	}
}
