package app

import (
	"net"
	"net/netip"

	"fusilli/autodetect"
	"fusilli/config"
)

// summary is what the lines at the start tell the user: what was asked for, and what came of it on
// this host.
type summary struct {
	cfg *config.Config
	tap string // name of the guest's interface; empty: none, or not in a namespace

	host *autodetect.Host
	dns  *autodetect.DNS

	inbound, outbound []config.Rule
}

// lines lays the summary out. Programs and people know these texts, their order and their
// indentation.
func (s *summary) lines() []string {
	var w lister
	if s.cfg.ControlPath != "" {
		w.add("Configuration socket: " + s.cfg.ControlPath)
	}
	c4, c6, h4, h6 := &s.cfg.IPv4, &s.cfg.IPv6, &s.host.V4, &s.host.V6
	if !s.cfg.SpliceOnly {
		w.perFamily("Template interface: ", h4.Name, h6.Name)
		w.perFamily("Outbound interface: ", c4.OutboundIf, c6.OutboundIf)
		w.address("Outbound IPv4 address: ", c4.Outbound)
		w.address("Outbound IPv6 address: ", c6.Outbound)
		s.guest(&w)
	}
	w.rules("Inbound forwarding rules (HOST):", s.inbound)
	w.rules("Outbound forwarding rules (SPLICE):", s.outbound)
	return w
}

// guest lists what the guest's link is to have.
func (s *summary) guest(w *lister) {
	if s.tap != "" {
		w.add("Namespace interface: " + s.tap)
	}
	w.add("MAC:")
	w.add("    host: " + s.cfg.MAC.String())
	if h := &s.host.V4; h.Enabled() {
		w.address("    NAT to host 127.0.0.1: ", hostAlias(s.cfg, &s.cfg.IPv4, h))
		if dhcp4(s.cfg, s.host) {
			w.add("DHCP:")
			w.address("    assign: ", h.Address)
			w.add("    mask: " + net.IP(net.CIDRMask(h.PrefixLen, 32)).String())
			w.address("    router: ", h.Gateway)
		}
		s.names(w, s.dns.V4.Resolvers)
	}
	if h := &s.host.V6; h.Enabled() {
		w.address("    NAT to host ::1: ", hostAlias(s.cfg, &s.cfg.IPv6, h))
		header := ""
		switch ndp, dhcp := s.cfg.NDP, dhcp6(s.cfg, s.host); {
		case ndp && dhcp:
			header = "NDP/DHCPv6:"
		case dhcp:
			header = "DHCPv6:"
		case ndp:
			header = "NDP:"
		}
		if header != "" {
			w.add(header)
			w.address("    assign: ", h.Address)
			w.address("    router: ", h.Gateway)
			w.address("    our link-local: ", h.LinkLocal)
		}
		s.names(w, s.dns.V6.Resolvers)
	}
}

// names lists the resolvers of one family and the search list, which is said with each.
func (s *summary) names(w *lister, resolvers []netip.Addr) {
	for i, a := range resolvers {
		if i == 0 {
			w.add("DNS:")
		}
		w.address("    ", a)
	}
	for i, domain := range s.dns.Search {
		if i == 0 {
			w.add("DNS search list:")
		}
		w.add("    " + domain)
	}
}

// lister collects lines.
type lister []string

func (w *lister) add(line string) { *w = append(*w, line) }

// address adds a line for an address, if there is one.
func (w *lister) address(text string, a netip.Addr) {
	if a.IsValid() {
		w.add(text + a.String())
	}
}

// perFamily adds a line with a name for IPv4, one for IPv6 or both, if there are any.
func (w *lister) perFamily(text, v4, v6 string) {
	switch {
	case v4 != "" && v6 != "":
		w.add(text + v4 + " (IPv4), " + v6 + " (IPv6)")
	case v4 != "":
		w.add(text + v4 + " (IPv4)")
	case v6 != "":
		w.add(text + v6 + " (IPv6)")
	}
}

func (w *lister) rules(header string, rules []config.Rule) {
	for i, r := range rules {
		if i == 0 {
			w.add(header)
		}
		w.add("    " + r.String())
	}
}
