package sock

import (
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Ping returns a ping socket (icmp(7)) connected to addr. It sends echo requests without their IP
// header, with an identifier and a checksum put in by the kernel, and receives the replies to that
// identifier. It queues ICMP errors about the requests (IP_RECVERR, ip(7)) and tells the time to
// live of what it receives, where the kernel can. Errors are those of socket(2) and connect(2):
// EACCES means that the caller's groups are not in net.ipv4.ping_group_range.
func (h *Host) Ping(addr netip.Addr) (int, error) {
	v4 := addr.Is4()
	proto := unix.IPPROTO_ICMP
	if !v4 {
		proto = unix.IPPROTO_ICMPV6
	}
	fd, err := unix.Socket(family(v4), unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	level, report, hops := unix.SOL_IP, unix.IP_RECVERR, unix.IP_RECVTTL
	if !v4 {
		level, report, hops = unix.SOL_IPV6, unix.IPV6_RECVERR, unix.IPV6_RECVHOPLIMIT
	}
	rawSetInt(fd, level, report, 1)
	rawSetInt(fd, level, hops, 1)
	out := h.out(v4)
	if name := h.device(v4); name != "" && !out.IsLoopback() && !addr.IsLoopback() {
		if err := unix.BindToDevice(fd, name); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("bind to interface %s: %w", name, err)
		}
	}
	if out.IsValid() {
		// Without it the request would still leave, from another address.
		unix.Bind(fd, h.Sockaddr(netip.AddrPortFrom(out, 0)))
	}
	if err := unix.Connect(fd, h.Sockaddr(netip.AddrPortFrom(addr, 0))); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("connect", err)
	}
	return fd, nil
}
