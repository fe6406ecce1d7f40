package config

import (
	"errors"
	"math"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Short names for the columns of the option table.
type (
	macAddr = net.HardwareAddr
	netAddr = netip.Addr
	setFunc = func(p *parser, value string) error
)

// errActed ends the reading where --help and its like stand.
var errActed = errors.New("acted")

// apply acts on one option of the command line.
func (p *parser) apply(o *option, value string) error {
	if !o.only.includes(p.cfg.Mode, p.cfg.VhostUser) {
		label := o.label
		if label == "" {
			label = "--" + o.long
		}
		return errorf("%s is for %s mode only", label, o.only)
	}
	return o.set(p, value)
}

func (p *parser) warn(line string) { p.cfg.Warnings = append(p.cfg.Warnings, line) }

// family returns the part of the configuration for the IP version of a.
func (p *parser) family(a netip.Addr) *Family {
	if a.Is4() {
		return &p.cfg.IPv4
	}
	return &p.cfg.IPv6
}

// What many options have in common.

func act(a Action) setFunc {
	return func(p *parser, _ string) error { p.cfg.Action = a; return nil }
}

func yes(field func(*Config) *bool) setFunc {
	return func(p *parser, _ string) error { *field(p.cfg) = true; return nil }
}

func no(field func(*Config) *bool) setFunc {
	return func(p *parser, _ string) error { *field(p.cfg) = false; return nil }
}

// deprecated warns, then does what the option does, if anything.
func deprecated(name string, do func(*parser)) setFunc {
	return func(p *parser, _ string) error {
		p.warn(name + " will be dropped soon")
		if do != nil {
			do(p)
		}
		return nil
	}
}

// text takes 1 to limit bytes.
func text(field func(*Config) *string, limit int, invalid string) setFunc {
	return func(p *parser, value string) error {
		if value == "" || len(value) > limit {
			return errorf(invalid, value)
		}
		*field(p.cfg) = value
		return nil
	}
}

// name takes a name of DNS, or the empty one to have none.
func name(field func(*Config) *string, invalid string) setFunc {
	return func(p *parser, value string) error {
		if len(value) > maxName {
			return errorf(invalid, value)
		}
		*field(p.cfg) = value
		return nil
	}
}

// address takes an address for its family.
func address(field func(*Family) *netAddr, not refuse, invalid string) setFunc {
	return func(p *parser, value string) error {
		a, ok := parseAddr(value, not)
		if !ok {
			return errorf(invalid, value)
		}
		*field(p.family(a)) = a
		return nil
	}
}

// mapped takes an address for its family, or "none" for both families.
func mapped(field func(*Family) *netAddr, none func(*parser)) setFunc {
	set := address(field, notUnicast, "Invalid address to remap to host: %s")
	return func(p *parser, value string) error {
		if value != "none" {
			return set(p, value)
		}
		*field(&p.cfg.IPv4), *field(&p.cfg.IPv6) = netip.Addr{}, netip.Addr{}
		if none != nil {
			none(p)
		}
		return nil
	}
}

func setMAC(field func(*Config) *macAddr) setFunc {
	return func(p *parser, value string) error {
		mac, ok := parseMAC(value)
		if !ok {
			return errorf("Invalid MAC address: %s", value)
		}
		*field(p.cfg) = mac
		return nil
	}
}

// Single options.

// setLevel makes --quiet cancel all the others, and them cancel it. --debug leaves --trace on.
func setLevel(level Level) setFunc {
	return func(p *parser, _ string) error {
		if level == LevelWarning || level > p.cfg.Log.Level {
			p.cfg.Log.Level = level
		}
		return nil
	}
}

func setLogSize(p *parser, value string) error {
	n, ok := strtoul(value, 0)
	if !ok || n < minLogSize || n > math.MaxInt64 {
		return errorf("Invalid --log-size: %s", value)
	}
	p.cfg.Log.Size = int64(n)
	return nil
}

func setCaptureSize(p *parser, value string) error {
	n, ok := strtoul(value, 0)
	if !ok || n > math.MaxInt64 {
		return errorf("Invalid --pcap-size: %s, should be a number of bytes, or 0 for no limit", value)
	}
	p.cfg.CaptureSize = int64(n)
	return nil
}

func setStats(p *parser, value string) error {
	n, ok := strtoul(value, 0)
	if !ok || n > math.MaxInt32 {
		return errorf("Invalid --stats: %s", value)
	}
	if !p.cfg.Foreground {
		return errorf("Can't display statistics if not running in foreground")
	}
	p.cfg.Log.Stats = time.Duration(n) * time.Second
	return nil
}

func setMaxFlows(p *parser, value string) error {
	n, ok := decimal(value, mostFlows)
	if !ok || n < leastFlows {
		return errorf("Invalid number of flows: %s, use %d to %d", value, leastFlows, mostFlows)
	}
	p.cfg.MaxFlows = n
	return nil
}

func setMemory(p *parser, value string) error {
	n, ok := size(value)
	if !ok || n < leastMemory || n > mostMemory {
		return errorf("Invalid memory size: %s, use %dM to %dG", value, leastMemory>>20, mostMemory>>30)
	}
	p.cfg.Memory = n
	return nil
}

func setRunAs(p *parser, value string) error {
	r := RunAs{Text: value}
	user, group, both := strings.Cut(value, ":")
	var ok bool
	if r.User, ok = parseAccount(user); ok && both {
		var g Account
		g, ok = parseAccount(group)
		r.Group = &g
	}
	if !ok {
		return errorf("Invalid --runas option: %s", value)
	}
	p.cfg.RunAs = &r
	return nil
}

func setNetNS(p *parser, value string) error {
	if value == "" {
		return errorf("Invalid netns: %s", value)
	}
	path := value
	if !strings.Contains(path, "/") {
		path = "/run/netns/" + path
	}
	if len(path) > maxPath {
		return errorf("Network namespace name/path %s too long", value)
	}
	p.cfg.Target.NetNSPath = path
	return nil
}

// setUserNS and setNetNSOnly cancel each other: the last one is meant.
func setUserNS(p *parser, value string) error {
	if value == "" || len(value) > maxPath {
		return errorf("Invalid userns: %s", value)
	}
	p.cfg.Target.UserNS, p.cfg.Target.UserNSPath = JoinUserNS, value
	return nil
}

func setNetNSOnly(p *parser, _ string) error {
	p.cfg.Target.UserNS, p.cfg.Target.UserNSPath = KeepUserNS, ""
	return nil
}

// setSocket and setFD cancel each other: the last one is meant.
func setSocket(p *parser, value string) error {
	if value == "" || len(value) > maxSockPath {
		return errorf("Invalid socket path: %s", value)
	}
	p.cfg.VM.Socket, p.cfg.FD = value, -1
	return nil
}

func setFD(p *parser, value string) error {
	n, ok := strtoul(value, 0)
	if !ok || n > math.MaxInt32 {
		return errorf("Invalid --fd: %s", value)
	}
	p.cfg.VM.Socket, p.cfg.FD = "", int(n)
	return nil
}

func setControl(p *parser, value string) error {
	if value == "none" {
		p.cfg.ControlPath = ""
		return nil
	}
	return text(func(c *Config) *string { return &c.ControlPath }, maxSockPath, "Invalid configuration path: %s")(p, value)
}

func setRepairPath(p *parser, value string) error {
	if value == "none" {
		p.cfg.VM.NoRepair, p.cfg.VM.RepairPath = true, ""
		return nil
	}
	if !p.cfg.VhostUser {
		return errorf("--repair-path is for vhost-user mode only")
	}
	if value == "" || len(value) > maxSockPath {
		return errorf("Invalid passt-repair path: %s", value)
	}
	p.cfg.VM.NoRepair, p.cfg.VM.RepairPath = false, value
	return nil
}

func setFamilies(v4, v6 bool) setFunc {
	return func(p *parser, _ string) error {
		p.cfg.IPv4.Enabled, p.cfg.IPv6.Enabled = v4, v6
		return nil
	}
}

// setInterface refuses only what can be the name of no interface.
func setInterface(p *parser, value string) error {
	if value == "" || len(value) > maxIfName {
		return errorf("Invalid interface name %s: No such device", value)
	}
	p.cfg.Interface = value
	return nil
}

func setAddress(p *parser, value string) error {
	s, length, hasLength := strings.Cut(value, "/")
	a, ok := parseAddr(s, 0)
	n := uint64(0)
	if ok && hasLength {
		if n, ok = strtoul(length, 10); ok && n > uint64(a.BitLen()) {
			return errorf("Invalid prefix length: %s", value)
		}
	}
	if ok {
		_, ok = parseAddr(s, notUnicast)
	}
	if !ok {
		return errorf("Invalid guest address: %s", value)
	}
	if n != 0 {
		p.addrHasLength = true
		if p.hasNetmask {
			return errRedundant()
		}
	}
	f := p.family(a)
	f.Address = a
	if a.Is4() && !p.hasNetmask {
		f.PrefixLen = int(n)
	}
	return nil
}

func setNetmask(p *parser, value string) error {
	n, ok := parseMask(value)
	if !ok {
		return errorf("Invalid prefix length: %s", value)
	}
	if p.addrHasLength {
		return errRedundant()
	}
	p.hasNetmask = true
	p.cfg.IPv4.PrefixLen = n
	return nil
}

func errRedundant() error { return errorf("Redundant prefix length specification") }

func setMTU(p *parser, value string) error {
	n, ok := strtoul(value, 0)
	if !ok {
		return errorf("Invalid MTU: %s", value)
	}
	if n > maxMTU {
		return errorf("MTU %d too large (max %d)", n, maxMTU)
	}
	p.cfg.MTU = int(n)
	return nil
}

// compatible is where the IPv4-compatible addresses were (RFC 4291, 2.5.5.1), :: and ::1 among
// them.
var compatible = netip.MustParsePrefix("::/96")

func setOutbound(p *parser, value string) error {
	a, ok := parseAddr(value, unspecified|multicast|broadcast)
	if !ok || compatible.Contains(a) {
		return errorf("Invalid or redundant outbound address: %s", value)
	}
	p.family(a).Outbound = a
	return nil
}

// setDNS drops what is too many: resolv.conf(5) has no more than three either.
func setDNS(p *parser, value string) error {
	if value == "none" {
		p.cfg.DNS.None = true
		for _, f := range []*Family{&p.cfg.IPv4, &p.cfg.IPv6} {
			f.DNS, f.DNSForward, f.DNSHost = nil, netip.Addr{}, netip.Addr{}
		}
		return nil
	}
	a, ok := parseAddr(value, 0)
	if !ok {
		return errorf("Cannot use DNS address %s", value)
	}
	p.cfg.DNS.None = false
	if f := p.family(a); len(f.DNS) < maxDNS {
		f.DNS = append(f.DNS, a)
	}
	return nil
}

// setSearch takes one domain or several with blanks between them.
func setSearch(p *parser, value string) error {
	if value == "none" {
		p.cfg.DNS.NoSearch, p.cfg.DNS.Search = true, nil
		return nil
	}
	domains := strings.Fields(value)
	list := slices.Concat(p.cfg.DNS.Search, domains)
	if len(domains) == 0 || len(value) > maxDomain || len(list) > maxSearch {
		return errorf("Cannot use DNS search domain %s", value)
	}
	p.cfg.DNS.NoSearch, p.cfg.DNS.Search = false, list
	return nil
}

func setPorts(proto Protocol, dir Direction) setFunc {
	return func(p *parser, value string) error {
		p.ports = append(p.ports, portsOption{proto, dir, value})
		return nil
	}
}
