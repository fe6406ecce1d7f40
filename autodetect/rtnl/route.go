package rtnl

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Route is a view of one RTM_NEWROUTE message.
type Route struct {
	Family   uint8 // AF_INET, AF_INET6
	Dst      netip.Prefix
	Table    uint32 // RT_TABLE_*
	Protocol uint8  // RTPROT_*
	Scope    uint8  // RT_SCOPE_*
	Type     uint8  // RTN_*
	Flags    uint32 // RTM_F_*, RTNH_F_*
	Hops     []Hop  // one for a plain route, several for multipath, none without an interface
}

// Hop is one way out of a route.
type Hop struct {
	Index   int        // of the output interface
	Weight  int        // 1 to 256, 1 for a plain route
	Gateway netip.Addr // of the route's own family; invalid if there is none
}

// Default tells whether the route is for every destination.
func (r *Route) Default() bool { return r.Dst.Bits() == 0 }

// RouteHeader is the fixed part of a route message, struct rtmsg.
type RouteHeader struct {
	Family   uint8
	DstLen   int
	Table    uint8
	Protocol uint8
	Scope    uint8
	Type     uint8
	Flags    uint32
}

// Body returns the payload of a request about routes. Attributes may be appended.
func (h RouteHeader) Body() []byte {
	b := make([]byte, unix.SizeofRtMsg, 64)
	b[0], b[1], b[4], b[5], b[6], b[7] = h.Family, uint8(h.DstLen), h.Table, h.Protocol, h.Scope, h.Type
	binary.NativeEndian.PutUint32(b[8:], h.Flags)
	return b
}

// Routes dumps the unicast routes of one family in the main table: the messages and, in
// the same order, their views. The messages are the caller's. Those that make no sense
// are left out, as are cached ones.
func (c *Conn) Routes(family uint8) ([][]byte, []Route, error) {
	body := RouteHeader{Family: family, Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST}.Body()
	msgs, err := c.Dump(unix.RTM_GETROUTE, unix.RTM_NEWROUTE, body)
	if errors.Is(err, unix.ENOENT) { // the table has never held a route
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	kept := msgs[:0]
	routes := make([]Route, 0, len(msgs))
	for _, m := range msgs {
		r, err := ParseRoute(m)
		if err != nil || r.Family != family || r.Table != unix.RT_TABLE_MAIN ||
			r.Type != unix.RTN_UNICAST || r.Flags&unix.RTM_F_CLONED != 0 {
			continue
		}
		kept = append(kept, m)
		routes = append(routes, r)
	}
	return kept, routes, nil
}

// RouteTo asks which route packets to a would take. Errors wrap a unix.Errno: for an address that
// none leads to unix.ENETUNREACH, for one.
func (c *Conn) RouteTo(a netip.Addr) (Route, error) {
	a = a.Unmap()
	family := uint8(unix.AF_INET6)
	if a.Is4() {
		family = unix.AF_INET
	}
	body := RouteHeader{Family: family, DstLen: a.BitLen()}.Body()
	msg, err := c.Get(unix.RTM_GETROUTE, unix.RTM_NEWROUTE, AppendAttr(body, unix.RTA_DST, a.AsSlice()))
	if err != nil {
		return Route{}, err
	}
	return ParseRoute(msg)
}

// ParseRoute reads the payload of an RTM_NEWROUTE message.
func ParseRoute(b []byte) (Route, error) {
	if len(b) < unix.SizeofRtMsg {
		return Route{}, ErrMalformed
	}
	r := Route{
		Family:   b[0],
		Table:    uint32(b[4]),
		Protocol: b[5],
		Scope:    b[6],
		Type:     b[7],
		Flags:    binary.NativeEndian.Uint32(b[8:]),
	}
	var dst netip.Addr
	switch r.Family {
	case unix.AF_INET:
		dst = netip.IPv4Unspecified()
	case unix.AF_INET6:
		dst = netip.IPv6Unspecified()
	default:
		return Route{}, ErrMalformed
	}
	plain := Hop{Weight: 1}
	err := EachAttr(b[unix.SizeofRtMsg:], func(typ uint16, val []byte) (err error) {
		switch typ {
		case unix.RTA_DST:
			dst, err = addrOf(r.Family, val)
		case unix.RTA_TABLE: // all 32 bits; the header holds eight
			r.Table, err = uint32Of(val)
		case unix.RTA_OIF:
			var index uint32
			index, err = uint32Of(val)
			plain.Index = int(int32(index))
		case unix.RTA_GATEWAY:
			plain.Gateway, err = addrOf(r.Family, val)
		case unix.RTA_MULTIPATH:
			return EachHop(val, func(h []byte) error {
				hop, err := parseHop(r.Family, h)
				r.Hops = append(r.Hops, hop)
				return err
			})
		}
		return err
	})
	if err != nil {
		return Route{}, err
	}
	if len(r.Hops) == 0 && plain.Index != 0 {
		r.Hops = []Hop{plain}
	}
	if r.Dst, err = dst.Prefix(int(b[1])); err != nil {
		return Route{}, ErrMalformed
	}
	return r, nil
}

// EachHop calls f with every next hop of an RTA_MULTIPATH value: struct rtnexthop and
// the attributes after it, without the padding. It stops at f's first error and returns
// it, or ErrMalformed at a hop that is longer than what is left of b.
func EachHop(b []byte, f func(hop []byte) error) error {
	for len(b) >= unix.SizeofRtNexthop {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtNexthop || n > len(b) {
			return ErrMalformed
		}
		if err := f(b[:n:n]); err != nil {
			return err
		}
		b = b[min(align(n), len(b)):]
	}
	return nil
}

func parseHop(family uint8, b []byte) (Hop, error) {
	h := Hop{
		Weight: int(b[3]) + 1,
		Index:  int(int32(binary.NativeEndian.Uint32(b[4:]))),
	}
	err := EachAttr(b[unix.SizeofRtNexthop:], func(typ uint16, val []byte) (err error) {
		if typ == unix.RTA_GATEWAY {
			h.Gateway, err = addrOf(family, val)
		}
		return err
	})
	return h, err
}
