// Package peers tests that the peers of one guest port share one socket of the host: an engine and
// a guest's end of a link in memory, in a network namespace in which all addresses of two networks
// are the host's own, so that there are as many peers as one likes.
package peers

import (
	"errors"
	"fmt"
	"net"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

func TestMain(m *testing.M) {
	inside, status, err := bed.Isolate()
	if err == nil && !inside {
		os.Exit(status)
	}
	if err == nil {
		err = setUp()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// setUp makes addresses of the families' networks addresses of this host. For IPv6 a route alone is
// not enough.
func setUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	err = netlink.LinkSetUp(lo)
	for _, f := range families {
		_, n, _ := net.ParseCIDR(f.network)
		err = errors.Join(err, netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: n,
			Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST}))
	}
	for i := 1; i < 256; i++ {
		a := families[1].host(i)
		err = errors.Join(err, netlink.AddrAdd(lo, &netlink.Addr{Flags: unix.IFA_F_NODAD,
			IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(128, 128)}}))
	}
	return err
}
