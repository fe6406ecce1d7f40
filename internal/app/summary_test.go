package app

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fusilli/autodetect"
	"fusilli/config"
)

// example is a host with both families, and nothing asked for.
func example() *summary {
	addr := netip.MustParseAddr
	cfg := &config.Config{
		Mode: config.Pasta,
		MAC:  net.HardwareAddr{0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55},
		DHCP: true, DHCPv6: true, NDP: true,
	}
	return &summary{
		cfg: cfg,
		tap: "eth0",
		host: &autodetect.Host{
			V4: autodetect.Family{Index: 2, Name: "eth0", Address: addr("192.0.2.2"), PrefixLen: 24, Gateway: addr("192.0.2.1")},
			V6: autodetect.Family{Index: 2, Name: "eth0", Address: addr("2001:db8::2"), PrefixLen: 64, Gateway: addr("fe80::1"), LinkLocal: addr("fe80::1")},
		},
		dns: &autodetect.DNS{
			V4:     autodetect.DNSFamily{Resolvers: []netip.Addr{addr("192.0.2.53")}},
			V6:     autodetect.DNSFamily{Resolvers: []netip.Addr{addr("2001:db8::53")}},
			Search: []string{"example.org"},
		},
	}
}

func TestSummary(t *testing.T) {
	tests := []struct {
		name   string
		change func(*summary)
		want   string
	}{
		{"all", func(s *summary) {
			s.cfg.ControlPath = "/run/control"
			s.cfg.IPv4.OutboundIf, s.cfg.IPv6.OutboundIf = "eth1", "eth1"
			s.cfg.IPv4.Outbound, s.cfg.IPv6.Outbound = netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("2001:db8::9")
			s.inbound = []config.Rule{{Protocol: config.TCP, Ports: config.PortRange{First: 22, Last: 22}, To: 22}}
			s.outbound = []config.Rule{{Protocol: config.TCP, IfName: "lo", Ports: config.PortRange{First: 1, Last: 32767}, To: 1, Weak: true, Scan: true}}
		}, `Configuration socket: /run/control
Template interface: eth0 (IPv4), eth0 (IPv6)
Outbound interface: eth1 (IPv4), eth1 (IPv6)
Outbound IPv4 address: 192.0.2.9
Outbound IPv6 address: 2001:db8::9
Namespace interface: eth0
MAC:
    host: 9a:55:9a:55:9a:55
    NAT to host 127.0.0.1: 192.0.2.1
DHCP:
    assign: 192.0.2.2
    mask: 255.255.255.0
    router: 192.0.2.1
DNS:
    192.0.2.53
DNS search list:
    example.org
    NAT to host ::1: fe80::1
NDP/DHCPv6:
    assign: 2001:db8::2
    router: fe80::1
    our link-local: fe80::1
DNS:
    2001:db8::53
DNS search list:
    example.org
Inbound forwarding rules (HOST):
    TCP [*]:22  =>  22 
Outbound forwarding rules (SPLICE):
    TCP [*]%lo:1-32767  =>  1-32767  (best effort) (auto-scan)`},
		{"passt, IPv4 only, no names, no alias", func(s *summary) {
			s.cfg.Mode, s.tap, s.cfg.NoMapGateway = config.Passt, "", true
			s.host.V6, s.dns = autodetect.Family{}, &autodetect.DNS{}
		}, `Template interface: eth0 (IPv4)
MAC:
    host: 9a:55:9a:55:9a:55
DHCP:
    assign: 192.0.2.2
    mask: 255.255.255.0
    router: 192.0.2.1`},
		{"no services", func(s *summary) {
			s.cfg.DHCP, s.cfg.DHCPv6, s.cfg.NDP = false, false, false
			s.dns.Search = nil
		}, `Template interface: eth0 (IPv4), eth0 (IPv6)
Namespace interface: eth0
MAC:
    host: 9a:55:9a:55:9a:55
    NAT to host 127.0.0.1: 192.0.2.1
DNS:
    192.0.2.53
    NAT to host ::1: fe80::1
DNS:
    2001:db8::53`},
		{"IPv6 only, DHCPv6 only", func(s *summary) {
			s.cfg.NDP, s.host.V4, s.dns = false, autodetect.Family{}, &autodetect.DNS{}
			s.cfg.IPv6.HostLoopback = netip.MustParseAddr("2001:db8::77")
		}, `Template interface: eth0 (IPv6)
Namespace interface: eth0
MAC:
    host: 9a:55:9a:55:9a:55
    NAT to host ::1: 2001:db8::77
DHCPv6:
    assign: 2001:db8::2
    router: fe80::1
    our link-local: fe80::1`},
		{"local mode", func(s *summary) {
			local6 := netip.MustParseAddr("fe80::1")
			s.host.V4 = autodetect.Family{Index: autodetect.Local, Address: netip.MustParseAddr("169.254.2.1"), PrefixLen: 16, Gateway: netip.MustParseAddr("169.254.2.2")}
			s.host.V6 = autodetect.Family{Index: autodetect.Local, PrefixLen: 64, Gateway: local6, LinkLocal: local6}
			s.tap, s.dns = "tap0", &autodetect.DNS{}
		}, `Namespace interface: tap0
MAC:
    host: 9a:55:9a:55:9a:55
    NAT to host 127.0.0.1: 169.254.2.2
DHCP:
    assign: 169.254.2.1
    mask: 255.255.0.0
    router: 169.254.2.2
    NAT to host ::1: fe80::1
NDP:
    router: fe80::1
    our link-local: fe80::1`},
		{"splice only", func(s *summary) {
			s.cfg.SpliceOnly = true
			s.inbound = []config.Rule{{Protocol: config.UDP, Ports: config.PortRange{First: 5, Last: 6}, To: 15}}
		}, `Inbound forwarding rules (HOST):
    UDP [*]:5-6  =>  15-16 `},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := example()
			tt.change(s)
			if d := cmp.Diff(strings.Split(tt.want, "\n"), s.lines()); d != "" {
				t.Error(d)
			}
		})
	}
}
