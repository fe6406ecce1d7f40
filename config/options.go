package config

import (
	"flag"

	"github.com/urfave/cli/v2"
)

// option is one row of the table everything about options is derived from: what normalise
// recognises, the flags of urfave/cli and the help text.
type option struct {
	long  string
	short string // one letter, or empty
	arg   string // name of the value in the help text; empty: the option takes none
	same  string // long name of the option that this is another spelling of
	only  scope  // where it is valid; zero: everywhere
	shown scope  // whose help shows it, if not by only
	label string // how messages about the scope call it; empty: by its long name
	// the reference does not have it: it has no abbreviations, so that theirs stay valid
	own   bool
	group group
	// help is the description: the first line stands beside the option, the others below.
	// An option without help is not shown.
	help string
	// set acts on value. Rows of other spellings have none.
	set func(p *parser, value string) error
}

// name is the name of the option itself, whatever its spelling.
func (o *option) name() string {
	if o.same != "" {
		return o.same
	}
	return o.long
}

// scope is where an option is valid.
type scope uint8

const (
	everywhere scope = iota
	onlyPasta
	onlyPasst // with or without vhost-user
	onlySocket
	onlyVhostUser
)

// String is how messages call the scope.
func (s scope) String() string {
	return [...]string{"every", "pasta", "passt", "passt / vhost-user", "vhost-user"}[s]
}

func (s scope) includes(mode Mode, vhostUser bool) bool {
	switch s {
	case onlyPasta:
		return mode == Pasta
	case onlyPasst, onlySocket:
		return mode == Passt
	case onlyVhostUser:
		return vhostUser
	}
	return true
}

// flags derives the flags of the library from table. Their values act on p.
func flags(table []option, p *parser) []cli.Flag {
	list := make([]cli.Flag, 0, len(table))
	for i := range table {
		if o := &table[i]; o.same == "" {
			list = append(list, setter{o, p})
		}
	}
	return list
}

// setter is one option as the library sees it: a cli.Flag that is its own flag.Value. (Those of
// the library cost a millisecond at each start, for names that might have blanks.)
type setter struct {
	o *option
	p *parser
}

// Apply, Names, IsSet and String make it a cli.Flag. Nobody asks whether it is set.
func (s setter) Apply(set *flag.FlagSet) error { set.Var(s, s.o.long, ""); return nil }
func (s setter) Names() []string               { return []string{s.o.long} }
func (s setter) IsSet() bool                   { return false }
func (s setter) String() string                { return "" }

// Set is called in the order of the command line. It leaves its error in the parser too, since
// the library passes on no more than a text.
func (s setter) Set(value string) error {
	s.p.err = s.p.apply(s.o, value)
	if s.p.err == nil && s.p.cfg.Action != Run {
		return errActed
	}
	return s.p.err
}

// The rows are in the order of the help text, which is also that of the possibilities an
// ambiguous option lists.
var options = []option{
	{
		long: "help", short: "h", group: general, set: act(PrintHelp),
		help: "show this text and exit",
	},
	{
		long: "version", group: general, set: act(PrintVersion),
		help: "show the version and exit",
	},
	{
		long: "foreground", short: "f", group: general, set: yes(func(c *Config) *bool { return &c.Foreground }),
		help: "stay in the foreground\ndefault: go to the background once everything is ready",
	},
	{
		long: "pid", short: "P", arg: "FILE", group: general,
		set:  text(func(c *Config) *string { return &c.PIDFile }, maxPath, "Invalid PID file: %s"),
		help: "write the process ID there once ready",
	},
	{
		long: "runas", arg: "UID[:GID]", group: general, set: setRunAs,
		help: "become that user (and group), given as numbers or names\n" +
			"default: if started as root, become nobody",
	},
	{
		long: "conf-path", short: "c", arg: "PATH", group: general,
		set:  setControl,
		help: "socket by which pesto changes the forwarding, or none",
	},
	{
		long: "fd", short: "F", arg: "FD", group: general, set: setFD,
		help: "use that inherited descriptor, and end with it",
	},
	{
		long: "chroot-fallback", group: general, set: yes(func(c *Config) *bool { return &c.ChrootFallback }),
		help: "where pivot_root() fails, use chroot()",
	},

	{
		long: "quiet", short: "q", group: logging, set: setLevel(LevelWarning),
		help: "only warnings and errors",
	},
	{
		long: "debug", short: "d", group: logging, set: setLevel(LevelDebug),
		help: "debug messages too, all of it on standard error",
	},
	{
		long: "trace", group: logging, set: setLevel(LevelTrace),
		help: "a line for each packet as well, implies --debug",
	},
	{
		long: "log-file", short: "l", arg: "FILE", group: logging,
		set:  text(func(c *Config) *string { return &c.Log.File }, maxPath, "Invalid log file: %s"),
		help: "log there, not to the system's log",
	},
	{
		long: "log-size", arg: "BYTES", group: logging, set: setLogSize,
		help: "limit of the log file's size, at least 40960\ndefault: 1048576 (1 MiB)",
	},
	{
		long: "stats", arg: "SECONDS", group: logging, set: setStats,
		help: "show event counters that often, after --foreground",
	},
	{
		long: "pcap", short: "p", arg: "FILE", group: logging,
		set:  text(func(c *Config) *string { return &c.Capture }, maxPath, "Invalid pcap path: %s"),
		help: "capture the guest's frames there",
	},
	{
		long: "pcap-size", own: true, arg: "BYTES", group: logging, set: setCaptureSize,
		help: "size at which that capture ends\ndefault: 0, no limit",
	},
	{
		long: "stderr", short: "e", group: logging, set: deprecated("--stderr", nil),
		help: "ignored, will go",
	},

	{
		long: "netns", arg: "PATH|NAME", only: onlyPasta, group: namespace, set: setNetNS,
		help: "connect that one; a name is in /run/netns",
	},
	{
		long: "userns", arg: "PATH", only: onlyPasta, group: namespace, set: setUserNS,
		help: "join that user namespace first",
	},
	{
		long: "netns-only", only: onlyPasta, group: namespace, set: setNetNSOnly,
		help: "neither join nor create a user namespace\ndefault: so with --netns and without --userns",
	},
	{
		long: "config-net", only: onlyPasta, group: namespace,
		set:  yes(func(c *Config) *bool { return &c.ConfigNet }),
		help: "set up addresses, routes, MTU in the namespace",
	},
	{
		long: "no-copy-routes", only: onlyPasta, group: namespace,
		set:  deprecated("--no-copy-routes", func(p *parser) { p.noCopyRoutes = true }),
		help: "with --config-net, only a default route; will go",
	},
	{
		long: "no-copy-addrs", only: onlyPasta, group: namespace,
		set:  deprecated("--no-copy-addrs", func(p *parser) { p.noCopyAddrs = true }),
		help: "with --config-net, only one address; will go",
	},
	{
		long: "ns-ifname", short: "I", arg: "NAME", only: onlyPasta, label: "-I", group: namespace,
		set:  text(func(c *Config) *string { return &c.TapName }, maxIfName, "Invalid interface name: %s"),
		help: "interface in the namespace\ndefault: named as the template interface, or tap0",
	},
	{
		long: "ns-mac-addr", arg: "MAC", only: onlyPasta, group: namespace,
		set:  setMAC(func(c *Config) *macAddr { return &c.GuestMAC }),
		help: "hardware address of that interface\ndefault: chosen by the kernel",
	},
	{
		long: "splice-only", only: onlyPasta, group: namespace,
		set:  yes(func(c *Config) *bool { return &c.SpliceOnly }),
		help: "no interface at all, only local traffic is forwarded",
	},
	{
		long: "no-netns-quit", only: onlyPasta, group: namespace,
		set:  yes(func(c *Config) *bool { return &c.Target.NoQuit }),
		help: "keep running when the namespace is gone",
	},

	{
		long: "socket", short: "s", arg: "PATH", only: onlySocket, label: "-s", group: machine, set: setSocket,
		help: "UNIX socket for the hypervisor, also --socket-path\n" +
			"default: the first that is free from /tmp/passt_1.socket on",
	},
	{long: "socket-path", arg: "PATH", same: "socket", group: machine},
	{
		long: "one-off", short: "1", only: onlyPasst, group: machine,
		set:  yes(func(c *Config) *bool { return &c.VM.OneOff }),
		help: "end after the first client",
	},
	{
		// see vhostUser
		long: "vhost-user", shown: onlyPasst, group: machine, set: func(*parser, string) error { return nil },
		help: "be the back-end of a vhost-user device",
	},
	{
		long: "vhost-compat", own: true, only: onlyVhostUser, group: machine,
		set: yes(func(c *Config) *bool { return &c.VM.Compat }),
		help: "with --vhost-user, only the features that upstream has,\n" +
			"so that the guest can migrate there",
	},
	{
		long: "print-capabilities", shown: onlyPasst, group: machine, set: act(PrintCapabilities),
		help: "show those of --vhost-user and exit",
	},
	{
		long: "repair-path", arg: "PATH", shown: onlyPasst, group: machine, set: setRepairPath,
		help: "with --vhost-user, for passt-repair, or none\n" +
			"default: that of --socket with .repair appended",
	},
	{
		long: "migrate-exit", only: onlyVhostUser, group: machine,
		set:  yes(func(c *Config) *bool { return &c.VM.MigrateExit }),
		help: "end once the guest has migrated; will go",
	},
	{
		long: "migrate-no-linger", only: onlyVhostUser, group: machine,
		set:  yes(func(c *Config) *bool { return &c.VM.MigrateNoLinger }),
		help: "close what has migrated at once; will go",
	},

	{
		long: "ipv4-only", short: "4", group: link, set: setFamilies(true, false),
		help: "no IPv6",
	},
	{
		long: "ipv6-only", short: "6", group: link, set: setFamilies(false, true),
		help: "no IPv4",
	},
	{
		long: "interface", short: "i", arg: "NAME", group: link, set: setInterface,
		help: "template for the guest's addresses and routes\n" +
			"default: by --outbound-if4 and --outbound-if6, or the one with\nthe default route",
	},
	{
		long: "address", short: "a", arg: "ADDR[/LEN]", group: link, set: setAddress,
		help: "the guest's address, once for each IP version\ndefault: from the template",
	},
	{
		long: "netmask", short: "n", arg: "MASK", group: link, set: setNetmask,
		help: "IPv4 prefix length, as a number or a mask\ndefault: from the template, or by the address's class",
	},
	{
		long: "gateway", short: "g", arg: "ADDR", group: link,
		set: address(func(f *Family) *netAddr { return &f.Gateway },
			unspecified|loopback|broadcast, "Invalid gateway address: %s"),
		help: "the guest's gateway, once for each IP version\ndefault: from the template",
	},
	{
		long: "mtu", short: "m", arg: "BYTES", group: link, set: setMTU,
		help: "MTU of the guest's link, 0 to leave it alone\ndefault: 65520",
	},
	{
		long: "mac-addr", short: "M", arg: "MAC", group: link,
		set:  setMAC(func(c *Config) *macAddr { return &c.MAC }),
		help: "our own hardware address on the link\ndefault: 9a:55:9a:55:9a:55",
	},

	{
		long: "dns", short: "D", arg: "ADDR", group: naming, set: setDNS,
		help: "resolver to announce, or none\nup to three for each IP version\ndefault: from /etc/resolv.conf",
	},
	{
		long: "dns-forward", arg: "ADDR", group: naming,
		set: address(func(f *Family) *netAddr { return &f.DNSForward },
			unspecified|loopback|broadcast, "Invalid DNS forwarding address: %s"),
		help: "DNS to that address goes to the host's resolver",
	},
	{
		long: "dns-host", arg: "ADDR", group: naming,
		set: address(func(f *Family) *netAddr { return &f.DNSHost },
			unspecified|broadcast, "Invalid host nameserver address: %s"),
		help: "the resolver that --dns-forward means\ndefault: the first of /etc/resolv.conf",
	},
	{
		long: "search", short: "S", arg: "DOMAIN", group: naming, set: setSearch,
		help: "search domain to announce, up to six, or none\ndefault: from /etc/resolv.conf",
	},
	{
		long: "dhcp-dns", only: onlyPasta, group: naming,
		set:  yes(func(c *Config) *bool { return &c.DNS.Announce }),
		help: "announce resolvers by DHCP, DHCPv6 and NDP",
	},
	{
		long: "dhcp-search", only: onlyPasta, group: naming,
		set:  yes(func(c *Config) *bool { return &c.DNS.AnnounceList }),
		help: "announce the search list, likewise",
	},
	{
		long: "no-dhcp-dns", only: onlyPasst, group: naming,
		set:  no(func(c *Config) *bool { return &c.DNS.Announce }),
		help: "do not announce resolvers",
	},
	{
		long: "no-dhcp-search", only: onlyPasst, group: naming,
		set:  no(func(c *Config) *bool { return &c.DNS.AnnounceList }),
		help: "do not announce the search list",
	},
	{
		long: "hostname", short: "H", arg: "NAME", group: naming,
		set:  name(func(c *Config) *string { return &c.Hostname }, "Invalid hostname: %s"),
		help: "the guest's host name",
	},
	{
		long: "fqdn", arg: "NAME", group: naming,
		set:  name(func(c *Config) *string { return &c.FQDN }, "Invalid FQDN: %s"),
		help: "the guest's name with its domain",
	},

	{
		long: "no-tcp", group: services, set: no(func(c *Config) *bool { return &c.TCP }),
		help: "no TCP",
	},
	{
		long: "no-udp", group: services, set: no(func(c *Config) *bool { return &c.UDP }),
		help: "no UDP",
	},
	{
		long: "no-icmp", group: services, set: no(func(c *Config) *bool { return &c.ICMP }),
		help: "no ICMP and ICMPv6, implies --no-ndp",
	},
	{
		long: "no-dhcp", group: services, set: no(func(c *Config) *bool { return &c.DHCP }),
		help: "no DHCP server",
	},
	{
		long: "no-dhcpv6", group: services, set: no(func(c *Config) *bool { return &c.DHCPv6 }),
		help: "no DHCPv6 server",
	},
	{
		long: "no-ndp", group: services, set: no(func(c *Config) *bool { return &c.NDP }),
		help: "no answers to neighbour discovery",
	},
	{
		long: "no-ra", group: services, set: no(func(c *Config) *bool { return &c.RA }),
		help: "no router advertisements",
	},

	{
		long: "tcp-ports", short: "t", arg: "SPEC", group: forwarding, set: setPorts(TCP, Inbound),
		help: portsHelp,
	},
	{
		long: "udp-ports", short: "u", arg: "SPEC", group: forwarding, set: setPorts(UDP, Inbound),
		help: "forward these UDP ports to the guest, likewise",
	},
	{
		long: "tcp-ns", short: "T", arg: "SPEC", only: onlyPasta, label: "-T", group: forwarding,
		set: setPorts(TCP, Outbound),
		help: "forward TCP ports of the namespace's lo to the host\n" +
			"likewise, but without ADDR%IF/\ndefault: auto",
	},
	{
		long: "udp-ns", short: "U", arg: "SPEC", only: onlyPasta, label: "-U", group: forwarding,
		set:  setPorts(UDP, Outbound),
		help: "forward UDP ports of the namespace's lo to the host\ndefault: auto",
	},

	{
		long: "outbound", short: "o", arg: "ADDR", group: mapping, set: setOutbound,
		help: "address to send from, once for each IP version\ndefault: by the host's routes",
	},
	{
		long: "outbound-if4", arg: "NAME", group: mapping,
		set:  text(func(c *Config) *string { return &c.IPv4.OutboundIf }, maxIfName, "Invalid interface name: %s"),
		help: "the host's interface to send IPv4 from",
	},
	{
		long: "outbound-if6", arg: "NAME", group: mapping,
		set:  text(func(c *Config) *string { return &c.IPv6.OutboundIf }, maxIfName, "Invalid interface name: %s"),
		help: "the host's interface to send IPv6 from",
	},
	{
		long: "map-host-loopback", arg: "ADDR", group: mapping,
		set: mapped(func(f *Family) *netAddr { return &f.HostLoopback },
			func(p *parser) { p.cfg.NoMapGateway = true }),
		help: "by which the guest reaches the host's lo\nADDR or none; default: the guest's gateway, for each IP version",
	},
	{
		long: "no-map-gw", group: mapping, set: yes(func(c *Config) *bool { return &c.NoMapGateway }),
		help: "the gateway is not mapped to the host",
	},
	{
		long: "map-guest-addr", arg: "ADDR", group: mapping,
		set:  mapped(func(f *Family) *netAddr { return &f.HostGuestAddr }, nil),
		help: "by which the guest reaches the host\nunder the address both have; ADDR or none; default: none",
	},
	{
		long: "host-lo-to-ns-lo", only: onlyPasta, group: mapping,
		set:  yes(func(c *Config) *bool { return &c.HostLoToNSLo }),
		help: "from the host's loopback to the namespace's",
	},
	{
		long: "no-splice", shown: onlyPasta, group: mapping, set: yes(func(c *Config) *bool { return &c.NoSplice }),
		help: "no short cut for local traffic",
	},
	{
		long: "any-udp-port", own: true, group: mapping, set: yes(func(c *Config) *bool { return &c.AnyUDPPort }),
		help: "send the guest's UDP from ports of the kernel's choice\ndefault: from the guest's own where the host has them free",
	},
	{
		long: "freebind", group: mapping, set: yes(func(c *Config) *bool { return &c.FreeBind }),
		help: "listen on addresses the host does not have yet",
	},

	{
		long: "max-flows", own: true, arg: "N", group: limits, set: setMaxFlows,
		help: "connections and other flows at a time, at most\ndefault: 131072",
	},
	{
		long: "memory", own: true, arg: "SIZE", group: limits, set: setMemory,
		help: "for data of all flows, in bytes, or with K, M or G\ndefault: 96M; at least 8M",
	},
}
