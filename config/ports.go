package config

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Protocol is a transport protocol.
type Protocol uint8

// The protocols.
const (
	TCP Protocol = iota
	UDP
)

func (p Protocol) String() string { return [...]string{"TCP", "UDP"}[p] }

// Direction is where connections come from.
type Direction uint8

// The directions.
const (
	Inbound  Direction = iota // from the host to the guest: -t, -u
	Outbound                  // from the namespace to the host: -T, -U
)

// PortRange is First to Last, both included. Last is not less than First.
type PortRange struct{ First, Last uint16 }

// Len returns the number of ports.
func (r PortRange) Len() int { return int(r.Last) - int(r.First) + 1 }

func (r PortRange) String() string { return portText(int(r.First), int(r.Last)) }

func portText(first, last int) string {
	if first == last {
		return strconv.Itoa(first)
	}
	return strconv.Itoa(first) + "-" + strconv.Itoa(last)
}

// PortSpec is the value of one -t, -u, -T or -U: a listening address and a list of ports. Which
// rules it makes is for Rules to say.
type PortSpec struct {
	Protocol  Protocol
	Direction Direction
	Text      string // as given

	None bool // nothing is to be forwarded; no other field below is set

	Listen netip.Addr // invalid: all addresses of both families; unspecified: of one family
	IfName string     // to listen on; empty: all

	// Map are the ports asked for by number. If it is empty, all ports are meant: those that
	// are neither ephemeral nor in Exclude, as far as they are free.
	Map     []PortMap
	Exclude []PortRange // taken out, whatever else asks for them
	Auto    bool        // only while the same port is bound on the other side
	// AllTarget is the target address if Map is empty. Invalid: see PortMap.Target.
	AllTarget netip.Addr
}

// PortMap is a range of ports and where it leads.
type PortMap struct {
	Ports PortRange
	To    uint16 // the port Ports.First leads to; the others follow
	// Target is the guest's address it leads to. Invalid: the one the guest uses.
	Target netip.Addr
}

// Letter returns the letter of the option: t, u, T or U.
func (s *PortSpec) Letter() string {
	return [...][2]string{Inbound: {"t", "u"}, Outbound: {"T", "U"}}[s.Direction][s.Protocol]
}

// ParsePorts reads the value of one -t, -u, -T or -U. mode says whether "auto" is known. The
// error is an *Error.
func ParsePorts(value string, proto Protocol, dir Direction, mode Mode) (PortSpec, error) {
	s := PortSpec{Protocol: proto, Direction: dir, Text: value}
	if value == "none" {
		s.None = true
		return s, nil
	}
	ports := value
	if before, after, ok := strings.Cut(value, "/"); ok {
		// A slash may also belong to a target: 80:192.0.2.1/8080.
		isListen, err := s.parseListen(before)
		if err != nil {
			return PortSpec{}, err
		}
		if isListen {
			if dir == Outbound {
				return PortSpec{}, errorf("Listening address not allowed for -%s %s", s.Letter(), value)
			}
			ports = after
		}
	}
	for chunk := range strings.SplitSeq(ports, ",") {
		if chunk == "auto" && mode != Pasta {
			return PortSpec{}, errorf("'auto' port forwarding is only allowed for pasta")
		}
		if !s.parseChunk(chunk) {
			return PortSpec{}, errorf("Invalid port specifier '%s'", ports)
		}
	}
	if len(s.Map) > 0 {
		s.AllTarget = netip.Addr{}
	}
	return s, nil
}

// parseListen reads [ADDR|*][%IFNAME] and reports whether text is that at all.
func (s *PortSpec) parseListen(text string) (bool, error) {
	addr, ifName, hasIf := strings.Cut(text, "%")
	var listen netip.Addr
	if addr != "" && addr != "*" {
		var ok bool
		if listen, ok = parseBracketed(addr); !ok {
			return false, nil
		}
	}
	if hasIf {
		if ifName == "" || len(ifName) > maxIfName || strings.ContainsAny(ifName, " \t\r\n\f\v") {
			return false, nil
		}
		if ifName == "." || ifName == ".." { // no interface can be called so
			return false, errorf("Invalid interface name: %s", ifName)
		}
	}
	s.Listen, s.IfName = listen, ifName
	return true, nil
}

// parseChunk reads what stands between two commas.
func (s *PortSpec) parseChunk(chunk string) bool {
	if chunk == "auto" {
		s.Auto = true
		return true
	}
	if rest, ok := strings.CutPrefix(chunk, "all"); ok {
		if rest == "" {
			return true // what an empty Map means anyway
		}
		target, ok := strings.CutPrefix(rest, ":")
		if !ok {
			return false
		}
		s.AllTarget, ok = parseTargetAddr(target)
		return ok
	}
	if rest, ok := strings.CutPrefix(chunk, "~"); ok {
		r, ok := parseRange(rest)
		s.Exclude = append(s.Exclude, r)
		return ok
	}
	m, ok := parsePortMap(chunk)
	s.Map = append(s.Map, m)
	return ok
}

// parsePortMap reads RANGE, RANGE:ADDR/RANGE, RANGE:ADDR or RANGE:RANGE.
func parsePortMap(chunk string) (PortMap, bool) {
	from, target, hasTarget := strings.Cut(chunk, ":")
	r, ok := parseRange(from)
	m := PortMap{Ports: r, To: r.First}
	if !ok || !hasTarget {
		return m, ok
	}
	to := target
	if addr, after, ok := strings.Cut(target, "/"); ok {
		if m.Target, ok = parseTargetAddr(addr); !ok {
			return m, false
		}
		to = after
	} else if a, ok := parseTargetAddr(target); ok {
		m.Target = a
		return m, true
	}
	r, ok = parseRange(to)
	m.To = r.First
	return m, ok && r.Len() == m.Ports.Len()
}

// parseTargetAddr reads a target address. An unspecified one is none.
func parseTargetAddr(s string) (netip.Addr, bool) {
	a, ok := parseBracketed(s)
	if ok && a.IsUnspecified() {
		a = netip.Addr{}
	}
	return a, ok
}

// parseBracketed reads an address of either family with or without brackets around it.
func parseBracketed(s string) (netip.Addr, bool) {
	if inner, ok := strings.CutPrefix(s, "["); ok {
		if s, ok = strings.CutSuffix(inner, "]"); !ok {
			return netip.Addr{}, false
		}
	}
	return parseAddr(s, 0)
}

// parseRange reads PORT or PORT-PORT.
func parseRange(s string) (PortRange, bool) {
	first, rest, ok := portPrefix(s)
	last := first
	if second, isRange := strings.CutPrefix(rest, "-"); ok && isRange {
		last, rest, ok = portPrefix(second)
	}
	if !ok || rest != "" || first > last || last > 65535 {
		return PortRange{}, false
	}
	return PortRange{uint16(first), uint16(last)}, true
}

// portPrefix reads the number s begins with, as strtoul(3) does, but none below zero: that
// would wrap around to some port.
func portPrefix(s string) (n uint64, rest string, ok bool) {
	if strings.HasPrefix(strings.TrimLeft(s, blanks), "-") {
		return 0, s, false
	}
	return strtoulPrefix(s, 10)
}

// subtract returns the parts of ranges that are not in exclude, in order.
func subtract(ranges, exclude []PortRange) []PortRange {
	for _, x := range exclude {
		var left []PortRange
		for _, r := range ranges {
			if x.Last < r.First || r.Last < x.First {
				left = append(left, r)
				continue
			}
			if r.First < x.First {
				left = append(left, PortRange{r.First, x.First - 1})
			}
			if x.Last < r.Last {
				left = append(left, PortRange{x.Last + 1, r.Last})
			}
		}
		ranges = left
	}
	return slices.Clip(ranges)
}
