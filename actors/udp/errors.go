package udp

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"fusilli/actors/flow"
	"fusilli/tapio/frame"
)

// Types and codes of ICMP (RFC 792) and ICMPv6 (RFC 4443) that carry an MTU.
const (
	unreachable4, fragNeeded4 = 3, 4
	tooBig6                   = 2
)

const (
	// quoteAt is where the datagram an error is about is received in a flow.Buffer, behind the room
	// for the message to the guest.
	quoteAt = 4096
	// maxErrors is the number of messages read in one go, far more than a queue holds.
	maxErrors = 1024
)

// recoverable reports whether the socket may go on after a call has returned e.
func (c *conn) recoverable(e unix.Errno) bool {
	switch e {
	case unix.EBADF, unix.ENOTSOCK, unix.EINVAL, unix.EFAULT, unix.ENOTCONN, unix.ENODEV:
		c.env.Log.Debug("Unrecoverable error on flow socket", zap.Stringer("host", c.host), zap.Error(e))
		return false
	}
	return true
}

// readErrors empties the socket's error queue (IP_RECVERR, ip(7)) and tells the guest.
func (c *conn) readErrors() {
	c.sendError = false
	buf := c.env.Buffer()
	defer c.env.PutBuffer(buf)
	var (
		control [256]byte
		iov     unix.Iovec
		msg     unix.Msghdr
	)
	for range maxErrors {
		iov.Base = &buf[quoteAt]
		iov.SetLen(len(buf) - quoteAt)
		msg = unix.Msghdr{Iov: &iov, Control: &control[0]}
		msg.SetIovlen(1)
		msg.SetControllen(len(control))
		n, _, e := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(c.fd), uintptr(unsafe.Pointer(&msg)),
			unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		switch {
		case e == unix.EINTR:
		case e != 0:
			return
		default:
			if ee, from, ok := parseError(control[:msg.Controllen]); ok {
				c.tell(buf, &ee, from, buf[quoteAt:quoteAt+int(n)])
			}
		}
	}
}

// parseError finds the extended error in the control messages b, and who reported it.
func parseError(b []byte) (ee unix.SockExtendedErr, from netip.Addr, ok bool) {
	const size = unix.SizeofCmsghdr
	for len(b) >= size {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		n := int(h.Len)
		if n < size || n > len(b) {
			return ee, from, false
		}
		level, typ := h.Level, h.Type
		data := b[unix.CmsgLen(0):max(n, unix.CmsgLen(0))]
		if level == unix.SOL_IP && typ == unix.IP_RECVERR || level == unix.SOL_IPV6 && typ == unix.IPV6_RECVERR {
			return parseExtended(data)
		}
		b = b[min(unix.CmsgSpace(n-unix.CmsgLen(0)), len(b)):]
	}
	return ee, from, false
}

// parseExtended reads a struct sock_extended_err with the address behind it.
func parseExtended(b []byte) (ee unix.SockExtendedErr, from netip.Addr, ok bool) {
	const size = 16
	if len(b) < size {
		return ee, from, false
	}
	ee = unix.SockExtendedErr{
		Errno: binary.NativeEndian.Uint32(b), Origin: b[4], Type: b[5], Code: b[6],
		Info: binary.NativeEndian.Uint32(b[8:]), Data: binary.NativeEndian.Uint32(b[12:]),
	}
	switch a := b[size:]; {
	case len(a) >= unix.SizeofSockaddrInet4 && binary.NativeEndian.Uint16(a) == unix.AF_INET:
		from = netip.AddrFrom4([4]byte(a[4:8]))
	case len(a) >= unix.SizeofSockaddrInet6 && binary.NativeEndian.Uint16(a) == unix.AF_INET6:
		from = netip.AddrFrom16([16]byte(a[8:24])).Unmap() // of IPv4 too, on a socket for both
	}
	return ee, from, true
}

// tell sends the guest the error ee, reported by from, about a datagram that began with payload, if
// it came off the network and the guest can make something of its sender. The frame is built at
// buf's beginning.
func (c *conn) tell(buf *[flow.BufferSize]byte, ee *unix.SockExtendedErr, from netip.Addr, payload []byte) {
	k := c.port.Key()
	want := uint8(unix.SO_EE_ORIGIN_ICMP)
	if k.V6() {
		want = unix.SO_EE_ORIGIN_ICMP6
	}
	src, ok := c.present(from)
	if ee.Origin != want || !ok {
		c.env.Log.Debug("Can't propagate error", zap.Stringer("host", c.host), zap.Stringer("from", from),
			zap.Uint8("origin", ee.Origin), zap.Error(unix.Errno(ee.Errno)))
		return
	}
	e := frame.ICMPError{
		SrcMAC: c.env.OurMAC, DstMAC: c.env.GuestMAC(), Src: src, Type: ee.Type, Code: ee.Code,
		Guest: k.Guest, Remote: k.Remote, GuestPort: k.GuestPort, RemotePort: k.RemotePort,
		Payload: payload,
	}
	if k.V6() && ee.Type == tooBig6 || !k.V6() && ee.Type == unreachable4 && ee.Code == fragNeeded4 {
		e.Info = ee.Info
	}
	c.write(buf[:], frame.PutICMPError(buf[:], &e))
}

// present returns the address by which the guest knows a, the sender of an error, if it can know it.
func (c *conn) present(a netip.Addr) (frame.Addr, bool) {
	k := c.port.Key()
	if a == c.host.Addr().WithZone("") {
		return k.Remote, true
	}
	if a.IsValid() && c.env.Present != nil {
		var ok bool
		if a, ok = c.env.Present(a); !ok {
			return frame.Addr{}, false
		}
	}
	f := frame.AddrOf(a)
	if !a.IsValid() || a.Is4() == k.V6() || a.IsLoopback() || a.IsUnspecified() || f == k.Guest {
		return f, false
	}
	return f, true
}
