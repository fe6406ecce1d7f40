package autodetect

import (
	"net/netip"

	"fusilli/autodetect/rtnl"

	"golang.org/x/sys/unix"
)

// loopbackIndex is that of lo in every network namespace.
const loopbackIndex = 1

var linkLocal4 = netip.MustParsePrefix("169.254.0.0/16")
var linkLocal6 = netip.MustParsePrefix("fe80::/10")

// template chooses the interface to take after: the one of the first default route, else that of
// the first route that leads anywhere beyond loopback and link. It returns 0 if there is none, and
// what the user should hear about the choice: several routes of one interface are none.
func template(routes []rtnl.Route, family string) (index int, notice string) {
	var defaults, others int // interfaces of the first ones
	var manyDefaults, manyOthers bool
	for i := range routes {
		r := &routes[i]
		// A multipath route counts for its first hop.
		if len(r.Hops) == 0 || r.Hops[0].Index <= loopbackIndex || linkLocalRoute(r) {
			continue
		}
		via := r.Hops[0].Index
		switch {
		case r.Default() && defaults == 0:
			defaults = via
		case r.Default():
			manyDefaults = true
		case others == 0:
			others = via
		case others != via:
			manyOthers = true
		}
	}
	switch {
	case defaults != 0 && manyDefaults:
		return defaults, "Multiple default " + family + " routes, picked first"
	case defaults != 0:
		return defaults, ""
	case others != 0 && manyOthers:
		return others, "Multiple interfaces with " + family + " routes, picked first"
	case others != 0:
		return others, ""
	}
	return 0, "No interfaces with usable " + family + " routes"
}

func linkLocalRoute(r *rtnl.Route) bool {
	p := linkLocal4
	if r.Family == unix.AF_INET6 {
		p = linkLocal6
	}
	return r.Dst.Bits() >= p.Bits() && p.Contains(r.Dst.Addr())
}

// gateway returns that of the first default route through the interface, of a multipath
// route's hops there the first one of the highest weight. It is invalid if that route
// has none, as on a point-to-point link, or one of the other family (RTA_VIA).
func gateway(routes []rtnl.Route, index int) netip.Addr {
	for i := range routes {
		if !routes[i].Default() {
			continue
		}
		var best rtnl.Hop
		for _, h := range routes[i].Hops {
			if h.Index == index && h.Weight > best.Weight {
				best = h
			}
		}
		if best.Weight > 0 {
			return best.Gateway
		}
	}
	return netip.Addr{}
}

// fromTemplate describes the family as the template interface has it. It reports false
// if that lacks what a guest needs.
func fromTemplate(fam family, o FamilyOptions, link rtnl.Link, addresses, messages [][]byte, routes []rtnl.Route) (Family, bool) {
	f := Family{
		Index:         link.Index,
		Name:          link.Name,
		MTU:           link.MTU,
		MAC:           link.MAC,
		Address:       o.Address,
		Gateway:       o.Gateway,
		CopyAddresses: !o.Address.IsValid(),
		CopyRoutes:    !o.Gateway.IsValid(),
	}
	if !f.Gateway.IsValid() {
		f.Gateway = gateway(routes, link.Index)
	}

	// The most specific addresses, the first of several that are equally so.
	found, foundLinkLocal := -1, -1
	for _, m := range addresses {
		a, err := rtnl.ParseAddress(m)
		if err != nil || a.Flags&unix.IFA_F_DEPRECATED != 0 {
			continue
		}
		switch {
		case fam == ipv6 && a.Scope >= unix.RT_SCOPE_LINK:
			if a.Scope == unix.RT_SCOPE_LINK && a.PrefixLen > foundLinkLocal {
				foundLinkLocal, f.LinkLocal = a.PrefixLen, a.Local
			}
		case a.PrefixLen > found:
			found = a.PrefixLen
			if !o.Address.IsValid() {
				f.Address = a.Local
			}
		}
		if a.Scope != unix.RT_SCOPE_LINK {
			f.Addresses = append(f.Addresses, m)
		}
	}
	f.PrefixLen = prefixLen(fam, o, found)
	if fam == ipv6 && f.Gateway.IsLinkLocalUnicast() && foundLinkLocal >= 0 {
		f.LinkLocal = f.Gateway
	}

	for i, m := range messages {
		if through(&routes[i], link.Index) {
			f.Routes = append(f.Routes, m)
		}
	}
	return f, f.Address.IsValid() && (fam == ipv4 || f.LinkLocal.IsValid())
}

// through tells whether the route leaves by that interface only.
func through(r *rtnl.Route, index int) bool {
	for _, h := range r.Hops {
		if h.Index != index {
			return false
		}
	}
	return len(r.Hops) > 0
}
