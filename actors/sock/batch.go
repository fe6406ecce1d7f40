package sock

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// MaxSegments is how many datagrams the kernel makes of one row at most: UDP_MAX_SEGMENTS,
	// before Linux 6.9.
	MaxSegments = 64
	// MaxRow is the number of bytes of payload in a row: what fits a packet of 65535 bytes of
	// either family.
	MaxRow = 65535 - 40 - 8
)

// Message is struct mmsghdr of recvmmsg(2) and sendmmsg(2).
type Message struct {
	Hdr unix.Msghdr
	Len uint32
}

// ReceiveBatch receives datagrams to m, without waiting, and returns the number of messages. Each
// is one datagram or, with UDP_GRO (udp(7)), a row of them.
func ReceiveBatch(fd int, m []Message) (int, unix.Errno) { return batch(unix.SYS_RECVMMSG, fd, m, 0) }

// SendBatch sends m without waiting and returns how many of the messages. There is an error only if
// it is none.
func SendBatch(fd int, m []Message) (int, unix.Errno) {
	return batch(unix.SYS_SENDMMSG, fd, m, unix.MSG_NOSIGNAL)
}

func batch(trap uintptr, fd int, m []Message, flags uintptr) (int, unix.Errno) {
	for {
		n, _, e := unix.RawSyscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), flags|unix.MSG_DONTWAIT, 0, 0)
		if e != unix.EINTR {
			return int(n), e
		}
	}
}

// RowControl is room for the control message with the size of a row's datagrams, in either
// direction: UDP_GRO, an int, or UDP_SEGMENT, 16 bits.
type RowControl [24]byte

// Size returns what the kernel has said in the first n bytes, 0 if it has not made a row.
func (c *RowControl) Size(n int) int {
	h := (*unix.Cmsghdr)(unsafe.Pointer(c))
	if n < unix.CmsgLen(4) || h.Level != unix.SOL_UDP || h.Type != unix.UDP_GRO {
		return 0
	}
	return int(int32(binary.NativeEndian.Uint32(c[unix.CmsgLen(0):])))
}

// Attach has h, whose payload is a row, sent as datagrams of size bytes. c is h's until then.
func (c *RowControl) Attach(h *unix.Msghdr, size int) {
	m := (*unix.Cmsghdr)(unsafe.Pointer(c))
	m.Level, m.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	m.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(c[unix.CmsgLen(0):], uint16(size))
	h.Control = &c[0]
	h.SetControllen(unix.CmsgSpace(2))
}

// RefusesRows reports whether e may mean that the kernel does not segment a row: datagrams above
// the path's MTU (EINVAL, EMSGSIZE), no checksum offload (EIO), a kernel before 4.18 or IPsec.
func RefusesRows(e unix.Errno) bool {
	return e == unix.EINVAL || e == unix.EMSGSIZE || e == unix.EIO || e == unix.EOPNOTSUPP
}
