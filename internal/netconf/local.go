package netconf

import (
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// AwaitLocal waits until the kernel delivers packets for addr, an IPv6 address that was just added
// in the network namespace of the calling thread, or until limit is over. The kernel adds the local
// route of an IPv6 address from a work queue, a few milliseconds after the request was answered,
// and until then drops what is sent there. It reports whether the address is in place.
func AwaitLocal(addr netip.Addr, limit time.Duration) bool {
	if !addr.Is6() {
		return true
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return false
	}
	defer h.Close()
	for end := time.Now().Add(limit); ; time.Sleep(time.Millisecond) {
		routes, err := h.RouteGet(addr.AsSlice())
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}
