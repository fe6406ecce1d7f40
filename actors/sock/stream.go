package sock

import (
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Stream returns a TCP socket of the address family that sends small segments at once (TCP_NODELAY)
// and has urgent data in its place (see PrepareStream), bound to nothing and connected to nobody.
// Errors are those of socket(2).
func Stream(v4 bool) (int, error) {
	fd, e := rawSocket(family(v4), unix.SOCK_STREAM)
	if e != 0 {
		return -1, os.NewSyscallError("socket", e)
	}
	PrepareStream(fd)
	return fd, nil
}

// Connect begins to connect fd to addr: EINPROGRESS is the usual answer of a non-blocking socket,
// even if the peer is local and has accepted by the time it is seen.
func Connect(fd int, addr netip.AddrPort) unix.Errno { return rawConnect(fd, addr, 0) }

// Packet returns a UDP socket of the address family that can share its port with others
// (SO_REUSEADDR, socket(7)) and takes rows of datagrams in one piece (UDP_GRO, udp(7)) where the
// kernel can, bound to nothing and connected to nobody. Errors are those of socket(2) and
// setsockopt(2).
func Packet(v4 bool) (int, error) {
	fd, e := rawSocket(family(v4), unix.SOCK_DGRAM)
	if e != 0 {
		return -1, os.NewSyscallError("socket", e)
	}
	if e := rawSetInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); e != 0 {
		unix.Close(fd)
		return -1, os.NewSyscallError("setsockopt SO_REUSEADDR", e)
	}
	rawSetInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1) // without it datagrams come one by one
	return fd, nil
}
