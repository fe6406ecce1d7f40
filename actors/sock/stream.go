package sock

import (
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Stream returns a TCP socket of the address family that sends small segments at once
// (TCP_NODELAY), bound to nothing and connected to nobody. Errors are those of socket(2).
func Stream(v4 bool) (int, error) {
	fd, e := rawSocket(family(v4), unix.SOCK_STREAM)
	if e != 0 {
		return -1, os.NewSyscallError("socket", e)
	}
	NoDelay(fd)
	return fd, nil
}

// Connect begins to connect fd to addr: EINPROGRESS is the usual answer of a non-blocking socket,
// even if the peer is local and has accepted by the time it is seen.
func Connect(fd int, addr netip.AddrPort) unix.Errno { return rawConnect(fd, addr, 0) }
