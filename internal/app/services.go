package app

import (
	"fmt"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"fusilli/actors/dhcp"
	"fusilli/actors/dhcpv6"
	"fusilli/actors/neigh"
	"fusilli/autodetect"
	"fusilli/config"
	"fusilli/internal/dnsname"
	"fusilli/tapio/frame"
)

// names finds out what the guest can be told about names and where its queries go, and what the
// user should hear about that.
func names(cfg *config.Config, host *autodetect.Host) (autodetect.DNS, []string) {
	family := func(c *config.Family, h *autodetect.Family) autodetect.DNSFamilyOptions {
		return autodetect.DNSFamilyOptions{
			Disabled: !h.Enabled(), Resolvers: c.DNS, Forward: c.DNSForward, Host: c.DNSHost, Loopback: hostAlias(cfg, c, h),
		}
	}
	o := autodetect.DNSOptions{
		NoResolvers: cfg.DNS.None, Search: cfg.DNS.Search, NoSearch: cfg.DNS.NoSearch,
		V4: family(&cfg.IPv4, &host.V4), V6: family(&cfg.IPv6, &host.V6),
	}
	var (
		rc       autodetect.Resolv
		warnings []string
	)
	if o.NeedResolv() {
		var err error
		if rc, err = autodetect.ReadResolvers(autodetect.ResolvConf); err != nil {
			warnings = append(warnings, fmt.Sprintf("Couldn't read %s: %v", autodetect.ResolvConf, err))
		}
	}
	dns := o.Resolve(&rc)
	if dns.NoneFound {
		warnings = append(warnings, "Couldn't get any nameserver address")
	}
	if cfg.DNS.Announce && !cfg.DNS.None {
		if dhcp4(cfg, host) && len(dns.V4.Resolvers) == 0 {
			warnings = append(warnings, "No IPv4 nameserver available for DHCP")
		}
		if (cfg.NDP || dhcp6(cfg, host)) && len(dns.V6.Resolvers) == 0 {
			warnings = append(warnings, "No IPv6 nameserver available for NDP/DHCPv6")
		}
	}
	return dns, warnings
}

// hostAlias returns the guest's alias of the host's loopback address of a family.
func hostAlias(cfg *config.Config, c *config.Family, h *autodetect.Family) netip.Addr {
	if c.HostLoopback.IsValid() || cfg.NoMapGateway {
		return c.HostLoopback
	}
	return h.Gateway
}

// dhcp4 reports whether the guest has a DHCP server: without a gateway there is nobody to be it.
func dhcp4(cfg *config.Config, host *autodetect.Host) bool {
	return cfg.DHCP && host.V4.Enabled() && host.V4.Address.IsValid() && host.V4.Gateway.IsValid()
}

// dhcp6 reports whether the guest has a DHCPv6 server: without an address there is nothing to
// assign.
func dhcp6(cfg *config.Config, host *autodetect.Host) bool {
	return cfg.DHCPv6 && host.V6.Enabled() && host.V6.Address.IsValid() && host.V6.LinkLocal.IsValid()
}

// announced returns what of dns the guest is told: nothing unless it is to be announced.
func announced(cfg *config.Config, dns *autodetect.DNS) (v4, v6 []netip.Addr, search []string) {
	if cfg.DNS.Announce {
		v4, v6 = dns.V4.Resolvers, dns.V6.Resolvers
	}
	if cfg.DNS.AnnounceList {
		search = dns.Search
	}
	return v4, v6, search
}

// searchList is the search list as a router advertisement has it, as far as there is room.
func searchList(search []string) []byte {
	var list []byte
	for _, name := range search {
		if b, err := dnsname.Append(list, name); err == nil && len(b) <= neigh.MaxSearch {
			list = b
		}
	}
	return list
}

// dhcpServers returns the guest's DHCP servers, nil for one that it does not have. log is not
// limited.
func dhcpServers(cfg *config.Config, host *autodetect.Host, dns *autodetect.DNS, log *zap.Logger) (*dhcp.Server, *dhcpv6.Server) {
	v4, v6, search := announced(cfg, dns)
	var (
		s4 *dhcp.Server
		s6 *dhcpv6.Server
	)
	if dhcp4(cfg, host) {
		leased := host.V4.Address
		if cfg.IPv4.Leased.IsValid() {
			leased = cfg.IPv4.Leased
		}
		s4 = dhcp.New(&dhcp.Config{
			MAC: frame.MAC(cfg.MAC), Guest: leased, PrefixLen: host.V4.PrefixLen, Gateway: host.V4.Gateway,
			MTU: cfg.MTU, Resolvers: v4, Search: search, Hostname: cfg.Hostname, FQDN: cfg.FQDN, Log: log,
		})
	}
	if dhcp6(cfg, host) {
		s6 = dhcpv6.New(&dhcpv6.Config{
			MAC: frame.MAC(cfg.MAC), LinkLocal: host.V6.LinkLocal, Guest: host.V6.Address,
			Resolvers: v6, Search: search, FQDN: cfg.FQDN, Start: time.Now(), Log: log,
		})
	}
	return s4, s6
}
