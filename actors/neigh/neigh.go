// Package neigh answers what a guest's network stack asks its link before it sends anything: ARP
// (RFC 826), neighbour solicitation and router solicitation (RFC 4861).
//
// For the guest, every address but its own is behind the translator, so every question is answered,
// whoever is there: a Responder is a few values, and a reply is computed from the question alone.
// Nothing is learned from the guest or cached, and nothing is allocated, so that a flood of
// questions costs no more than its frames.
//
// The answer is our own Ethernet address, or, so that the guest can tell the stations of its link
// apart, the one that the host's neighbour of that address has: a Table of these is kept up to date
// by whoever watches the host. It makes no difference to where frames go.
//
// The guest is asked too: for the addresses that it should have, and whether it has one that it
// uses (Probe, Answer). What follows from the answers is package actors' to say.
package neigh

import (
	"encoding/binary"
	"net/netip"

	"fusilli/tapio/frame"
)

// ReplyLen is the room a reply needs: the longest is a router advertisement.
const ReplyLen = frame.L3Off + frame.IPv6Len + raLen + prefixLen + lladdrLen + mtuLen +
	dnsLen + 16*maxResolvers + dnsLen + MaxSearch

// Malformed is the length of the reply to what is malformed: there is none.
const Malformed = -1

// Lengths in bytes.
const (
	nsLen     = 24 // neighbour solicitation and advertisement without options
	rsLen     = 8
	raLen     = 16
	lladdrLen = 8
	prefixLen = 32
	mtuLen    = 8
	dnsLen    = 8 // RDNSS without addresses, DNSSL without names
)

const (
	maxResolvers = 3
	// MaxSearch is the length of the longest search list that fits a router advertisement at the
	// smallest MTU of IPv6, in bytes.
	MaxSearch = 1104
)

// NDP message types and options (RFC 4861, 4).
const (
	RouterSolicitation    = 133
	routerAdvertisement   = 134
	neighbourSolicitation = 135
	neighbourAdvert       = 136

	solicited = 0x40 // flag of a neighbour advertisement

	optSourceLLAddr = 1
	optTargetLLAddr = 2
	optPrefix       = 3
	optMTU          = 5
	optRDNSS        = 25 // RFC 8106, 5.1
	optDNSSL        = 31 // RFC 8106, 5.2
)

const (
	hopLimit       = 255 // of all NDP messages: nobody further away can send them
	routerLifetime = 65535
	infinite       = 0xffffffff
)

// allNodes is ff02::1.
var (
	allNodes    = frame.Addr{0: 0xff, 1: 0x02, 15: 1}
	allNodesMAC = frame.MAC{0x33, 0x33, 0, 0, 0, 1}
)

// Responder is the other side of the guest's link. Its fields are set before the first use and not
// changed any more; then any number of goroutines may use it, and copies of it.
type Responder struct {
	// MAC is our Ethernet address, the answer to every question that Neighbours knows no other for.
	MAC frame.MAC
	// Neighbours are the stations that have Ethernet addresses of their own; nil: nobody has.
	Neighbours *Table
	// Guest4 is the guest's IPv4 address. ARP requests for it are not ours to answer: they are the
	// guest's own check whether somebody else has it (RFC 5227).
	Guest4 frame.Addr
	// Our4 is our IPv4 address on the link: the guest's gateway. It is the sender of AskARP.
	Our4 frame.Addr
	// LinkLocal is our IPv6 link-local address, the source of NDP messages. If it is the zero
	// address, NDP gets no reply.
	LinkLocal frame.Addr
	// Prefix is the guest's IPv6 address, in the /64 the guest makes itself addresses in. If it is
	// the zero address, router advertisements announce none.
	Prefix frame.Addr
	// MTU of the link in bytes; with 0 router advertisements announce none.
	MTU int
	// Managed is the flag M of router advertisements: addresses by DHCPv6 also.
	Managed bool
	// Resolvers are announced by router advertisements, the first three of them.
	Resolvers []netip.Addr
	// Search is the search list that router advertisements announce: names as DNS has them on the
	// wire, without compression. One of more than MaxSearch bytes is not announced.
	Search []byte
	// NoRA leaves router solicitations without reply.
	NoRA bool
}

// ARP writes the reply to the ARP packet in to out, which has room for ReplyLen bytes, and returns
// its length with virtio_net_hdr and padding; 0 for none, Malformed for a packet that nobody should
// send. Requests are answered for every address but the guest's own, probes (sender 0.0.0.0) among
// them; announcements are not.
func (r *Responder) ARP(in, out []byte) int {
	if len(in) < frame.L3Off+frame.ARPLen || len(out) < ReplyLen {
		return Malformed
	}
	q := in[frame.L3Off:]
	// Hardware type Ethernet, protocol IPv4, their address lengths, operation request.
	switch binary.BigEndian.Uint64(q) {
	case 0x0001_0800_0604_0001:
	case 0x0001_0800_0604_0002:
		return 0
	default:
		return Malformed
	}
	from, to := [4]byte(q[14:18]), [4]byte(q[24:28])
	if from == to && from != [4]byte{} || frame.Addr4(to) == r.Guest4 {
		return 0
	}
	src := frame.Src(in)
	if src[0]&1 != 0 && src != frame.Broadcast {
		// a group does not ask; qrap does so as everybody, to see whether we are there
		return Malformed
	}
	frame.PutVnet(out, frame.Vnet{})
	frame.PutEth(out, src, r.MAC, frame.EtherARP)
	a := out[frame.L3Off:]
	binary.BigEndian.PutUint64(a, 0x0001_0800_0604_0002)
	of := frame.Addr4(to)
	mac := r.macOf(&of)
	copy(a[8:], mac[:])
	copy(a[14:], to[:])
	copy(a[18:28], q[8:18])
	return frame.Pad(out, frame.L3Off+frame.ARPLen)
}

// NDP writes the reply to the message in, parsed as p with kind frame.NDP, to out, which has room
// for ReplyLen bytes, and returns its length with virtio_net_hdr and padding; 0 for none, as for a
// check for duplicate addresses, and Malformed for a message that RFC 4861 has a receiver discard.
// Its checksum is not looked at.
func (r *Responder) NDP(p *frame.Packet, in, out []byte) int {
	if r.LinkLocal == (frame.Addr{}) {
		return 0
	}
	if p.Kind != frame.NDP || p.TTL != hopLimit || p.End > len(in) || len(out) < ReplyLen {
		return Malformed
	}
	m := in[p.L4:p.End]
	src := frame.Src(in)
	if len(m) < rsLen || m[1] != 0 || src[0]&1 != 0 {
		return Malformed
	}
	switch m[0] {
	case neighbourSolicitation:
		return r.advertise(p, m, src, out)
	case RouterSolicitation:
		return r.route(p, m, src, out)
	}
	return 0
}

// advertise replies to the neighbour solicitation m (RFC 4861, 7.1.1 and 7.2.4).
func (r *Responder) advertise(p *frame.Packet, m []byte, src frame.MAC, out []byte) int {
	if len(m) < nsLen {
		return Malformed
	}
	if _, ok := options(m[nsLen:]); !ok {
		return Malformed
	}
	target := frame.Addr(m[8:24])
	if frame.IsMulticast(&target) || target == (frame.Addr{}) {
		return Malformed
	}
	if p.Src == (frame.Addr{}) {
		return 0
	}
	// Router, solicited, override.
	return r.putAdvert(out, 0xe0, &target, r.macOf(&target), src, &p.Src)
}

// putAdvert writes a neighbour advertisement (RFC 4861, 4.4) to out and returns its length.
func (r *Responder) putAdvert(out []byte, flags uint8, target *frame.Addr, of, mac frame.MAC, dst *frame.Addr) int {
	a := out[frame.L3Off+frame.IPv6Len:]
	clear(a[:8])
	a[0], a[4] = neighbourAdvert, flags
	copy(a[8:], target[:])
	putLLAddr(a[nsLen:], optTargetLLAddr, of)
	return r.finish(out, nsLen+lladdrLen, mac, dst)
}

// route replies to the router solicitation m (RFC 4861, 6.1.1 and 6.2.6).
func (r *Responder) route(p *frame.Packet, m []byte, src frame.MAC, out []byte) int {
	lladdr, ok := options(m[rsLen:])
	if !ok || lladdr && p.Src == (frame.Addr{}) {
		return Malformed
	}
	if r.NoRA {
		return 0
	}
	dst := p.Src
	if dst == (frame.Addr{}) {
		dst, src = allNodes, allNodesMAC
	}
	return r.announce(src, &dst, out)
}

// Announce writes a router advertisement to all nodes to out, which has room for ReplyLen bytes,
// and returns its length.
func (r *Responder) Announce(out []byte) int {
	if r.NoRA || r.LinkLocal == (frame.Addr{}) || len(out) < ReplyLen {
		return 0
	}
	return r.announce(allNodesMAC, &allNodes, out)
}

// announce writes a router advertisement (RFC 4861, 4.2).
func (r *Responder) announce(mac frame.MAC, dst *frame.Addr, out []byte) int {
	a := out[frame.L3Off+frame.IPv6Len:]
	clear(a[:raLen])
	a[0], a[4] = routerAdvertisement, hopLimit
	if r.Managed {
		a[5] = 0x80
	}
	binary.BigEndian.PutUint16(a[6:], routerLifetime)
	n := raLen
	if r.Prefix != (frame.Addr{}) {
		o := a[n : n+prefixLen]
		clear(o)
		o[0], o[1], o[2], o[3] = optPrefix, prefixLen/8, 64, 0xc0 // on link, for autoconfiguration
		binary.BigEndian.PutUint32(o[4:], infinite)
		binary.BigEndian.PutUint32(o[8:], infinite)
		copy(o[16:24], r.Prefix[:8]) // and zeros, as a prefix has (RFC 4861, 4.6.2)
		n += prefixLen
	}
	putLLAddr(a[n:], optSourceLLAddr, r.MAC)
	n += lladdrLen
	if r.MTU > 0 {
		o := a[n : n+mtuLen]
		o[0], o[1], o[2], o[3] = optMTU, mtuLen/8, 0, 0
		binary.BigEndian.PutUint32(o[4:], uint32(r.MTU))
		n += mtuLen
	}
	n += r.names(a[n:])
	return r.finish(out, n, mac, dst)
}

// names writes the options about names (RFC 8106) to o and returns their length. The search list
// does not depend on resolvers, as it does not with DHCP: those may be known from elsewhere.
func (r *Responder) names(o []byte) int {
	n := 0
	begin := func(kind uint8, data int) {
		units := (dnsLen + data + 7) / 8
		clear(o[n : n+units*8])
		o[n], o[n+1] = kind, uint8(units)
		binary.BigEndian.PutUint32(o[n+4:], infinite)
		n += dnsLen
	}
	if resolvers := r.Resolvers[:min(len(r.Resolvers), maxResolvers)]; len(resolvers) > 0 {
		begin(optRDNSS, 16*len(resolvers))
		for _, a := range resolvers {
			b := a.As16()
			n += copy(o[n:], b[:])
		}
	}
	if len(r.Search) > 0 && len(r.Search) <= MaxSearch {
		begin(optDNSSL, len(r.Search))
		n += (copy(o[n:], r.Search) + 7) &^ 7
	}
	return n
}

// finish writes what is around a message of n bytes.
func (r *Responder) finish(out []byte, n int, mac frame.MAC, dst *frame.Addr) int {
	frame.PutVnet(out, frame.Vnet{})
	frame.PutEth(out, mac, r.MAC, frame.EtherIPv6)
	frame.PutIPv6(out[frame.L3Off:], &frame.IP{Src: r.LinkLocal, Dst: *dst, Proto: frame.ProtoICMPv6, TTL: hopLimit, Len: n})
	m := out[frame.L3Off+frame.IPv6Len:][:n]
	m[2], m[3] = 0, 0
	sum := frame.Checksum(m, frame.PseudoSum(&r.LinkLocal, dst, frame.ProtoICMPv6, n))
	binary.BigEndian.PutUint16(m[2:], sum)
	return frame.Pad(out, frame.L3Off+frame.IPv6Len+n)
}

func putLLAddr(o []byte, kind uint8, mac frame.MAC) {
	o[0], o[1] = kind, lladdrLen/8
	copy(o[2:8], mac[:])
}

// options checks the options b (RFC 4861, 4.6) and reports whether a source link-layer address is
// among them, and whether all of them are whole.
func options(b []byte) (lladdr, ok bool) {
	for len(b) > 0 {
		if len(b) < 8 {
			return false, false
		}
		n := int(b[1]) * 8
		if n == 0 || n > len(b) {
			return false, false
		}
		lladdr = lladdr || b[0] == optSourceLLAddr
		b = b[n:]
	}
	return lladdr, true
}
