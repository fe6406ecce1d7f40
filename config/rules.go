package config

import (
	"net/netip"
)

// Rule is one range of ports that is listened on, and where it leads.
type Rule struct {
	Protocol Protocol
	Listen   netip.Addr // invalid: all addresses of both families; unspecified: of one family
	IfName   string     // SO_BINDTODEVICE; empty: all
	Ports    PortRange
	To       uint16     // the port Ports.First leads to; the others follow
	Target   netip.Addr // of the guest; invalid: the address it uses
	Weak     bool       // best effort: not all ports need be free
	Scan     bool       // listen only while the same port is bound on the other side
}

// within returns r as it is with the IP versions of env: where there is one only, all addresses are
// those of that one.
func (r Rule) within(env Env) Rule {
	switch {
	case r.Listen.IsValid() || env.IPv4 == env.IPv6:
	case env.IPv4:
		r.Listen = netip.IPv4Unspecified()
	default:
		r.Listen = netip.IPv6Unspecified()
	}
	return r
}

// String is the form that logs and pesto show. Its blanks are part of it.
func (r Rule) String() string {
	listen := "*"
	if r.Listen.IsValid() {
		listen = r.Listen.String()
	}
	text := r.Protocol.String() + " [" + listen + "]"
	if r.IfName != "" {
		text += "%" + r.IfName
	}
	text += ":" + r.Ports.String() + "  =>  "
	switch {
	case r.Target.Is4():
		text += r.Target.String() + ":"
	case r.Target.Is6():
		text += "[" + r.Target.String() + "]:"
	}
	text += portText(int(r.To), int(r.To)+r.Ports.Len()-1) + " "
	if r.Weak {
		text += " (best effort)"
	}
	if r.Scan {
		text += " (auto-scan)"
	}
	return text
}

// Limits of a table, for each direction.
const (
	MaxRules   = 255
	maxSockets = 5 * 65536
)

// DefaultEphemeral are the ephemeral ports where the kernel does not tell (RFC 6335, 6).
var DefaultEphemeral = PortRange{49152, 65535}

// Env is what Rules needs to know about the host and the configuration.
type Env struct {
	IPv4, IPv6   bool      // enabled and supported
	TCP, UDP     bool      // enabled
	BindToDevice bool      // SO_BINDTODEVICE needs no privileges (Linux 5.7)
	Ephemeral    PortRange // ip_local_port_range of ip(7)
}

// Table holds the rules of both directions.
type Table struct {
	Inbound, Outbound []Rule
	Warnings          []string // to be printed, one line each
}

// Rules turns specs into rules, in their order. The error is an *Error whose warnings say why a
// rule was refused.
func Rules(specs []PortSpec, env Env) (*Table, error) {
	t := &Table{}
	for i := range specs {
		if err := t.Apply(&specs[i], env); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// Apply adds to t the rules that s makes, in their order. After an error, an *Error as that of
// Rules, t may have some of them.
func (t *Table) Apply(s *PortSpec, env Env) error {
	if err := t.add(s, env); err != nil {
		err.Warnings = t.Warnings
		return err
	}
	return nil
}

// Add adds rules that come from elsewhere, which have to pass the checks of those that specifiers
// make. A rule for all addresses of both IP versions becomes one for those of the only one that is
// enabled. The error is as that of Apply.
func (t *Table) Add(dir Direction, env Env, rules ...Rule) error {
	list := t.list(dir)
	for _, r := range rules {
		r = r.within(env)
		if r.IfName != "" && !env.BindToDevice {
			t.warn("Device binding unsupported (requires kernel 5.7+)")
			return &Error{Text: "Unable to add rule " + r.String(), Warnings: t.Warnings}
		}
		if !t.accept(r, dir, env) {
			return &Error{Text: "Unable to add rule " + r.String(), Warnings: t.Warnings}
		}
		*list = append(*list, r)
	}
	return nil
}

// list returns the rules of one direction.
func (t *Table) list(dir Direction) *[]Rule {
	if dir == Outbound {
		return &t.Outbound
	}
	return &t.Inbound
}

func (t *Table) warn(line string) { t.Warnings = append(t.Warnings, line) }

func (t *Table) add(s *PortSpec, env Env) *Error {
	if s.None {
		for _, r := range *t.list(s.Direction) {
			if r.Protocol == s.Protocol {
				return errorf("-%s none conflicts with previous options", s.Letter())
			}
		}
		return nil
	}
	if s.IfName != "" && !env.BindToDevice {
		return errorf("Device binding for '-%s %s' unsupported (requires kernel 5.7+)", s.Letter(), s.Text)
	}
	for _, r := range t.listening(s, env) {
		for _, m := range s.maps(env.Ephemeral) {
			r.Ports, r.To, r.Target = m.Ports, m.To, m.Target
			r = r.within(env)
			if !t.accept(r, s.Direction, env) {
				return errorf("Unable to add rule %s", r)
			}
			list := t.list(s.Direction)
			*list = append(*list, r)
		}
	}
	return nil
}

// listening returns what s listens on: rules without ports.
func (t *Table) listening(s *PortSpec, env Env) []Rule {
	r := Rule{Protocol: s.Protocol, Listen: s.Listen, IfName: s.IfName, Weak: len(s.Map) == 0, Scan: s.Auto}
	if s.Direction == Inbound {
		return []Rule{r}
	}
	// In the namespace only what its own processes send over lo is listened for.
	if env.BindToDevice {
		r.IfName = "lo"
		return []Rule{r}
	}
	t.warn("SO_BINDTODEVICE unavailable, forwarding only 127.0.0.1 and ::1 for '-" +
		s.Letter() + " " + s.Text + "'")
	var rules []Rule
	if env.IPv4 {
		r.Listen = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		rules = append(rules, r)
	}
	if env.IPv6 {
		r.Listen = netip.IPv6Loopback()
		rules = append(rules, r)
	}
	return rules
}

// maps returns the ports of s without the excluded ones, each range with its target.
func (s *PortSpec) maps(ephemeral PortRange) []PortMap {
	asked, exclude := s.Map, s.Exclude
	if len(asked) == 0 {
		asked = []PortMap{{Ports: PortRange{1, 65535}, To: 1, Target: s.AllTarget}}
		exclude = append([]PortRange{ephemeral}, exclude...)
	}
	var maps []PortMap
	for _, m := range asked {
		for _, left := range subtract([]PortRange{m.Ports}, exclude) {
			part := m
			part.Ports, part.To = left, m.To+(left.First-m.Ports.First)
			maps = append(maps, part)
		}
	}
	return maps
}

// accept reports whether r can be added, and warns if it cannot.
func (t *Table) accept(r Rule, dir Direction, env Env) bool {
	rules := *t.list(dir)
	refused := func(line string) bool {
		t.warn(line)
		return false
	}
	dual := !r.Listen.IsValid()
	switch {
	case r.Ports.First == 0:
		return refused("Forwarding rule attempts to map from port 0")
	case r.To == 0 || int(r.To)+r.Ports.Len()-1 > 65535:
		return refused("Forwarding rule attempts to map to port 0")
	case r.Listen.Is4() && !env.IPv4:
		return refused("IPv4 forward, but IPv4 not enabled")
	case r.Listen.Is6() && !env.IPv6:
		return refused("IPv6 forward, but IPv6 not enabled")
	case r.Protocol == TCP && !env.TCP:
		return refused("Can't add TCP forwarding rule, TCP not enabled")
	case r.Protocol == UDP && !env.UDP:
		return refused("Can't add UDP forwarding rule, UDP not enabled")
	case r.Target.IsMulticast():
		return refused("Multicast target address " + r.Target.String() + " for forwarding rule")
	case r.Target.IsValid() && dual:
		t.warn("Dual stack forward to " + familyName(r.Target) + " address " + r.Target.String() + " unsupported")
		wildcard := "[::]"
		if r.Target.Is4() {
			wildcard = "0.0.0.0"
		}
		return refused("Did you mean " + wildcard + "/... instead?")
	case r.Target.IsValid() && r.Target.Is4() != r.Listen.Is4():
		return refused("Forward from " + r.Listen.String() + " (" + familyName(r.Listen) + ") to " +
			r.Target.String() + " (" + familyName(r.Target) + ") unsupported")
	}
	sockets := r.Ports.Len()
	for _, old := range rules {
		if r.Conflicts(old) {
			return refused("Forwarding configuration conflict: " + r.String() + " versus " + old.String())
		}
		sockets += old.Ports.Len()
	}
	switch {
	case len(rules) >= MaxRules:
		return refused("Too many rules (maximum 255)")
	case sockets > maxSockets:
		return refused("Rules require too many listening sockets (maximum 327680)")
	}
	return true
}

func familyName(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// Conflicts reports whether r and old could be meant by the same connection. Interfaces make no
// difference.
func (r Rule) Conflicts(old Rule) bool {
	return r.Protocol == old.Protocol &&
		r.Ports.First <= old.Ports.Last && old.Ports.First <= r.Ports.Last &&
		(r.Listen == old.Listen || covers(r.Listen, old.Listen) || covers(old.Listen, r.Listen))
}

// covers reports whether listening on a includes listening on b.
func covers(a, b netip.Addr) bool {
	return !a.IsValid() || a.IsUnspecified() && a.Is4() == b.Is4() && b.IsValid()
}
