package autodetect

import (
	"net/netip"
	"slices"
)

// maxResolvers is the number of resolvers announced per family, as many as resolv.conf(5) has.
const maxResolvers = 3

// DNSOptions is what the user has decided about names. The zero value decides nothing.
type DNSOptions struct {
	NoResolvers bool     // resolv.conf is not read for resolvers
	Search      []string // instead of resolv.conf's
	NoSearch    bool     // resolv.conf is not read for the search list
	V4, V6      DNSFamilyOptions
}

// DNSFamilyOptions is the part of DNSOptions for one address family. Addresses that are not
// given are invalid.
type DNSFamilyOptions struct {
	Disabled  bool
	Resolvers []netip.Addr // announced instead of resolv.conf's, as they are
	Forward   netip.Addr   // what the guest sends there on the ports of DNS goes to Host
	Host      netip.Addr   // instead of the first of resolv.conf
	// Loopback is the guest's alias of the host's loopback address; invalid if it has none.
	Loopback netip.Addr
}

// DNS is what a guest is told about names, and where its queries go. It is not changed once it
// is made.
type DNS struct {
	V4, V6 DNSFamily
	Search []string
	// NoneFound tells that resolvers were looked for and there are none.
	NoneFound bool
}

// DNSFamily is the part of DNS for one address family.
type DNSFamily struct {
	// Resolvers are what the guest can be told to use, at most three.
	Resolvers []netip.Addr
	// Match is the guest-side address whose DNS goes to Host. Each may be invalid: then
	// nothing is redirected.
	Match, Host netip.Addr
}

// reading reports whether the family takes resolvers out of resolv.conf: to announce them, or to
// redirect queries to the first of them.
func (o *DNSFamilyOptions) reading() (announce, redirect bool) {
	return !o.Disabled && len(o.Resolvers) == 0,
		!o.Disabled && o.Forward.IsValid() && !o.Host.IsValid()
}

// NeedResolv reports whether resolv.conf has anything to add to o.
func (o *DNSOptions) NeedResolv() bool {
	if !o.NoSearch && len(o.Search) == 0 {
		return true
	}
	for _, f := range []*DNSFamilyOptions{&o.V4, &o.V6} {
		if announce, redirect := f.reading(); !o.NoResolvers && (announce || redirect) {
			return true
		}
	}
	return false
}

// Resolve puts together what o says and what rc, resolv.conf's contents, adds to it.
func (o *DNSOptions) Resolve(rc *Resolv) DNS {
	var d DNS
	switch {
	case len(o.Search) > 0:
		d.Search = o.Search
	case !o.NoSearch:
		d.Search = rc.Search
	}
	v4, v6 := rc.V4, rc.V6
	if o.NoResolvers {
		v4, v6 = nil, nil
	}
	d.V4, d.V6 = o.V4.resolve(v4), o.V6.resolve(v6)
	announce4, _ := o.V4.reading()
	announce6, _ := o.V6.reading()
	d.NoneFound = !o.NoResolvers && (announce4 || announce6) && len(d.V4.Resolvers)+len(d.V6.Resolvers) == 0
	return d
}

// resolve does one family; found are resolv.conf's.
//
// A resolver that the guest cannot reach under its address, since that means the host's loopback
// (as the unspecified address does to a resolver library) or is the alias of it, is announced under
// the address whose DNS is redirected. Without one the alias becomes that: to the guest, DNS there
// is the resolver and everything else the host.
func (o *DNSFamilyOptions) resolve(found []netip.Addr) DNSFamily {
	if o.Disabled {
		return DNSFamily{}
	}
	f := DNSFamily{Resolvers: o.Resolvers, Match: o.Forward, Host: o.Host}
	if !f.Host.IsValid() && len(found) > 0 {
		f.Host = found[0]
	}
	if len(f.Resolvers) > 0 {
		return f
	}
	for _, a := range found {
		if a.IsLoopback() || a.IsUnspecified() || a == o.Loopback {
			if !f.Match.IsValid() {
				f.Match = o.Loopback
			}
			a = f.Match
		}
		if a.IsValid() && len(f.Resolvers) < maxResolvers && !slices.Contains(f.Resolvers, a) {
			f.Resolvers = append(f.Resolvers, a)
		}
	}
	return f
}
