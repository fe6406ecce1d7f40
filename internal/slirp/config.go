package slirp

import (
	"fmt"
	"net/netip"
	"path"
	"strings"

	"fusilli/config"
)

// Numbers of addresses within the IPv4 network.
const (
	gatewayNumber = 2
	dnsNumber     = 3
	leasedNumber  = 15 // what DHCP assigns
	guestNumber   = 100
)

// The IPv6 network and its addresses.
var (
	network6 = netip.MustParsePrefix("fd00::/64")
	gateway6 = netip.MustParseAddr("fd00::2")
	dns6     = netip.MustParseAddr("fd00::3")
	guest6   = netip.MustParseAddr("fd00::100")
)

// Named reports whether a command line is one of slirp4netns.
func Named(argv []string) bool {
	return len(argv) > 0 && strings.Contains(path.Base(argv[0]), "slirp4netns")
}

// Guest returns the guest's IPv4 address.
func (o *Options) Guest() netip.Addr { return o.Addr(guestNumber) }

// Config returns what the translator is to do. Neither help nor version was asked for.
func (o *Options) Config() *config.Config {
	c := config.Defaults(config.Pasta)
	if o.BESS {
		c = config.Defaults(config.Passt)
		c.VM.Packets = true
	} else {
		c.Target = o.target()
	}
	c.Warnings = o.Warnings
	c.Foreground = true
	c.TapName, c.GuestMAC, c.MTU = o.Tap, o.MAC, o.MTU
	c.ConfigNet, c.Autoconf = o.Configure, true
	c.DNS = config.DNS{NoSearch: true, Announce: !o.NoDNS, None: o.NoDNS}
	c.DHCPv6 = false
	c.NoMapGateway = o.NoLoopback
	c.RA, c.NDP = o.IPv6, o.IPv6

	v4 := &c.IPv4
	v4.Address, v4.PrefixLen, v4.Gateway = o.Guest(), o.CIDR.Bits(), o.Addr(gatewayNumber)
	v4.Link, v4.Leased = o.CIDR, o.Addr(leasedNumber)
	v4.Outbound, v4.OutboundIf = o.OutboundV4, o.OutboundIfV4
	v6 := &c.IPv6
	v6.Enabled = o.IPv6
	v6.Address, v6.Gateway, v6.Link = guest6, gateway6, network6
	v6.Outbound, v6.OutboundIf = o.OutboundV6, o.OutboundIfV6
	for _, f := range []*config.Family{v4, v6} {
		f.CopyAddrs, f.CopyRoutes, f.Echo = false, false, f.Gateway
	}
	if !o.NoDNS {
		v4.DNSForward, v6.DNSForward = o.Addr(dnsNumber), dns6
		v4.DNS, v6.DNS = []netip.Addr{v4.DNSForward}, []netip.Addr{v6.DNSForward}
	}
	return c
}

// target returns which namespaces are joined: that of a process are joined both, and of a path only
// what was named.
func (o *Options) target() config.Target {
	t := config.Target{Kind: config.NetNS, NetNSPath: o.Target, UserNS: config.KeepUserNS}
	if !o.NetNSIsPath {
		proc := fmt.Sprintf("/proc/%d/ns/", o.PID())
		t = config.Target{Kind: config.PID, PID: o.PID(), NetNSPath: proc + "net", UserNS: config.JoinUserNS, UserNSPath: proc + "user"}
	}
	if o.UserNSPath != "" {
		t.UserNS, t.UserNSPath = config.JoinUserNS, o.UserNSPath
	}
	return t
}
