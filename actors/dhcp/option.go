package dhcp

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"fusilli/internal/dnsname"
)

// Options (RFC 2132, RFC 3397, RFC 3442, RFC 4039, RFC 4702).
const (
	optPad       = 0
	optMask      = 1
	optRouter    = 3
	optResolvers = 6
	optHostname  = 12
	optMTU       = 26
	optLease     = 51
	optType      = 53
	optServer    = 54
	optRequested = 55
	optRapid     = 80
	optFQDN      = 81
	optSearch    = 119
	optRoutes    = 121
	optEnd       = 255
)

const (
	maxResolvers = 3
	maxData      = 255 // of an option

	// fqdnFlags says that the name is in the form of DNS (E).
	fqdnFlags = 0x04
)

type option struct {
	code uint8
	data []byte
}

// options makes those that every reply has.
func options(c *Config) []option {
	var list []option
	room := maxOptions - 3 - 2 // message type, rapid commit
	add := func(code uint8, data []byte) {
		if len(data) > 0 && len(data) <= min(maxData, room-2) {
			room -= 2 + len(data)
			list = append(list, option{code, data})
		}
	}
	gateway := c.Gateway.AsSlice()
	link, _ := c.Guest.Prefix(c.PrefixLen) // an error leaves it without any address
	add(optMask, binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-c.PrefixLen)))
	add(optRouter, gateway)
	if c.MTU > 0 {
		add(optMTU, binary.BigEndian.AppendUint16(nil, uint16(min(c.MTU, 65535))))
	}
	add(optLease, []byte{0xff, 0xff, 0xff, 0xff})
	add(optServer, gateway)
	if !link.Contains(c.Gateway) {
		add(optRoutes, slices.Concat([]byte{32}, gateway, []byte{0, 0, 0, 0}, []byte{0}, gateway))
	}

	// The others as far as there is room.
	add(optResolvers, addresses(c.Resolvers))
	add(optHostname, []byte(c.Hostname))
	add(optSearch, dnsname.AppendCompressed(nil, c.Search, max(min(maxData, room-2), 0)))
	if name, err := dnsname.Append([]byte{fqdnFlags, 0xff, 0xff}, c.FQDN); err == nil {
		add(optFQDN, name)
	}
	slices.SortFunc(list, func(a, b option) int { return int(a.code) - int(b.code) })
	return list
}

func addresses(list []netip.Addr) []byte {
	var b []byte
	for _, a := range list[:min(len(list), maxResolvers)] {
		b = append(b, a.AsSlice()...)
	}
	return b
}

// parse reads the options b of a request, up to an end option or, without one, to the end.
func parse(b []byte) (q query, err error) {
	for len(b) > 0 && b[0] != optEnd {
		if b[0] == optPad {
			b = b[1:]
			continue
		}
		if len(b) < 2 || len(b) < 2+int(b[1]) {
			return q, ErrMalformed
		}
		data := b[2 : 2+int(b[1])]
		switch b[0] {
		case optType:
			if len(data) != 1 || data[0] == 0 {
				return q, ErrMalformed
			}
			q.kind = data[0]
		case optRequested:
			q.asked = data
		case optRapid:
			q.rapid = true
		}
		b = b[2+len(data):]
	}
	return q, nil
}

// put writes the options of the reply of the given type to q and returns their length. b has room
// for maxOptions and one more.
func (s *Server) put(b []byte, kind uint8, q *query) int {
	var sent [256 / 8]uint8
	n := 0
	put := func(code uint8, data ...byte) {
		if sent[code/8]&(1<<(code%8)) != 0 {
			return
		}
		sent[code/8] |= 1 << (code % 8)
		b[n], b[n+1] = code, uint8(len(data))
		n += 2 + copy(b[n+2:], data)
	}
	rapid := kind == ack && q.kind == discover
	if slices.Index(q.asked, optType) < 0 {
		put(optType, kind)
	}
	for _, code := range q.asked {
		switch {
		case code == optType:
			put(optType, kind)
		case code == optRapid && rapid:
			put(optRapid)
		default:
			if i := s.find(code); i >= 0 {
				put(code, s.options[i].data...)
			}
		}
	}
	for _, o := range s.options {
		if rapid && o.code > optRapid {
			put(optRapid)
		}
		put(o.code, o.data...)
	}
	if rapid {
		put(optRapid)
	}
	b[n] = optEnd
	n++
	if n < minOptions {
		clear(b[n:minOptions])
		n = minOptions
	}
	return n
}

func (s *Server) find(code uint8) int {
	return slices.IndexFunc(s.options, func(o option) bool { return o.code == code })
}
