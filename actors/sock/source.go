package sock

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Destination reads the first n bytes of c: the address a datagram was sent to, an IPv4 one mapped
// to IPv6, and the interface it came in by (IP_PKTINFO, IPV6_PKTINFO; ip(7), ipv6(7)). ours is
// false for the address of a group or a broadcast address. ok is false if the kernel does not say.
func (c *Control) Destination(n int) (at [16]byte, iface uint32, ours, ok bool) {
	for b := c[:min(n, len(c))]; len(b) > unix.SizeofCmsghdr; {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		end := int(h.Len)
		if end <= unix.SizeofCmsghdr || end > len(b) {
			break
		}
		data := b[unix.CmsgLen(0):end]
		switch {
		case h.Level == unix.SOL_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			// It knows broadcast addresses; IPV6_PKTINFO, which a socket for both families has as
			// well, does not.
			at = [16]byte{10: 0xff, 11: 0xff, 12: data[8], 13: data[9], 14: data[10], 15: data[11]}
			ours = [4]byte(data[4:8]) == [4]byte(data[8:12]) // where an answer would come from
			return at, binary.NativeEndian.Uint32(data), ours, true
		case h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			at, ours, ok = [16]byte(data), data[0] != 0xff, true
			iface = binary.NativeEndian.Uint32(data[16:])
		}
		b = b[min(unix.CmsgSpace(len(data)), len(b)):]
	}
	return at, iface, ours, ok
}

// Source is the address of the host that datagrams of an unconnected socket come from; the zero
// value leaves it to the kernel.
type Source struct {
	b [40]byte // a control message
	n uint8
}

// Set makes a the source. iface is the interface of a link-local address, and else 0.
func (s *Source) Set(a netip.Addr, iface uint32) {
	*s = Source{}
	h := (*unix.Cmsghdr)(unsafe.Pointer(&s.b))
	data := s.b[unix.CmsgLen(0):]
	if a.Is4() {
		h.Level, h.Type = unix.SOL_IP, unix.IP_PKTINFO
		h.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
		from := a.As4()
		binary.NativeEndian.PutUint32(data, iface)
		copy(data[4:], from[:])
		s.n = uint8(unix.CmsgSpace(unix.SizeofInet4Pktinfo))
		return
	}
	h.Level, h.Type = unix.SOL_IPV6, unix.IPV6_PKTINFO
	h.SetLen(unix.CmsgLen(unix.SizeofInet6Pktinfo))
	from := a.As16()
	copy(data, from[:])
	binary.NativeEndian.PutUint32(data[16:], iface)
	s.n = uint8(unix.CmsgSpace(unix.SizeofInet6Pktinfo))
}

// Chosen reports whether the kernel does not choose the source.
func (s *Source) Chosen() bool { return s.n > 0 }

// SendControl is room for the control messages of a row that is sent from a Source.
type SendControl [64]byte

// Attach has h, whose payload is a row of datagrams of size bytes, or one datagram if size is 0,
// sent from s. c and s are h's until then.
func (c *SendControl) Attach(h *unix.Msghdr, size int, s *Source) {
	switch {
	case size == 0 && s.n == 0:
		h.Control = nil
		h.SetControllen(0)
	case size == 0:
		h.Control = &s.b[0]
		h.SetControllen(int(s.n))
	default:
		n := copy(c[:], s.b[:s.n])
		(*RowControl)(c[n:]).Attach(h, size)
		h.Control = &c[0]
		h.SetControllen(n + unix.CmsgSpace(2))
	}
}

// SendFrom sends b, which may be empty, from s to the address of n bytes at sa, without waiting.
func SendFrom(fd int, b []byte, sa *unix.RawSockaddrInet6, n uint32, s *Source) unix.Errno {
	if s.n == 0 {
		return SendTo(fd, b, sa, n)
	}
	iov := unix.Iovec{Base: unsafe.SliceData(b)}
	iov.SetLen(len(b))
	msg := unix.Msghdr{Name: (*byte)(unsafe.Pointer(sa)), Namelen: n, Iov: &iov, Control: &s.b[0]}
	msg.SetIovlen(1)
	msg.SetControllen(int(s.n))
	return SendMessage(fd, &msg)
}

// SendMessage sends h without waiting.
func SendMessage(fd int, h *unix.Msghdr) unix.Errno {
	for {
		_, _, e := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(h)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if e != unix.EINTR {
			return e
		}
	}
}
