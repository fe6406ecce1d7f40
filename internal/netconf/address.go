package netconf

import (
	"errors"

	"fusilli/autodetect/rtnl"

	"golang.org/x/sys/unix"
)

// keepAddressFlags are the flags of an address that a copy keeps: what a user can set,
// less IFA_F_MANAGETEMPADDR, with which the kernel would make further, temporary ones.
const keepAddressFlags = unix.IFA_F_NOPREFIXROUTE | unix.IFA_F_HOMEADDRESS | unix.IFA_F_MCAUTOJOIN

// addresses gives the tap its addresses of one family, and sets *none if the kernel does
// not have the family.
func (c *configurer) addresses(fam family, f *Family, none *bool) error {
	var firstErr error
	set, refused := 0, 0
	add := func(body []byte, err error) {
		if err == nil {
			err = c.conn.Do(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, body)
		}
		switch {
		case err == nil, errors.Is(err, unix.EEXIST):
			set++
			return
		case firstErr == nil:
			firstErr = err
		}
		refused++
	}

	if f.CopyAddresses {
		for i, m := range f.Addresses {
			if fam == ipv6 { // of a scope, the kernel lists the newest first
				m = f.Addresses[len(f.Addresses)-1-i]
			}
			add(copyAddress(m, fam.af, c.link.Index))
			if set == 0 && c.unsupported(fam, firstErr) {
				break
			}
		}
	}
	// The one address, be it because it is asked for or because no copy was taken.
	if set == 0 && f.Address.IsValid() && !c.unsupported(fam, firstErr) {
		add(newAddress(fam.af, c.link.Index, f), nil)
	}

	switch {
	case refused == 0:
		return nil
	case set == 0 && c.unsupported(fam, firstErr):
		*none = true
		c.warn("%s not supported, disabling", fam.name)
		return nil
	case set == 0:
		return failed("Couldn't set "+fam.name+" address(es) in namespace", firstErr)
	}
	c.warn("Couldn't copy %d %s address(es) to namespace: %v", refused, fam.name, firstErr)
	return nil
}

// newAddress makes the RTM_NEWADDR payload for the plan's one address. Without both
// attributes the kernel would take it for a point-to-point link's.
func newAddress(af uint8, index int, f *Family) []byte {
	b := rtnl.AddressBody(af, index, f.PrefixLen, unix.IFA_F_NODAD, unix.RT_SCOPE_UNIVERSE)
	b = rtnl.AppendAttr(b, unix.IFA_LOCAL, f.Address.AsSlice())
	return rtnl.AppendAttr(b, unix.IFA_ADDRESS, f.Address.AsSlice())
}

// copyAddress makes an RTM_NEWADDR payload for the interface with that index out of a
// dumped one. Gone are what belongs to the old interface (label, counters) and to the
// address's life there (lifetimes: nobody would renew them; state). Duplicates are not
// looked for: the original has been. It returns rtnl.ErrMalformed for a message of
// another family or of wrong lengths.
func copyAddress(msg []byte, af uint8, index int) ([]byte, error) {
	a, err := rtnl.ParseAddress(msg)
	if err != nil {
		return nil, err
	}
	if a.Family != af {
		return nil, rtnl.ErrMalformed
	}
	flags := a.Flags&keepAddressFlags | unix.IFA_F_NODAD
	b := rtnl.AddressBody(af, index, a.PrefixLen, uint8(flags), a.Scope)
	err = rtnl.EachAttr(msg[unix.SizeofIfAddrmsg:], func(typ uint16, val []byte) error {
		switch typ {
		case unix.IFA_LABEL, unix.IFA_CACHEINFO, unix.IFA_FLAGS, unix.IFA_MULTICAST, unix.IFA_ANYCAST, unix.IFA_TARGET_NETNSID:
		default:
			b = rtnl.AppendAttr(b, typ, val)
		}
		return nil
	})
	return rtnl.AppendUint32(b, unix.IFA_FLAGS, flags), err
}

// adoptLinkLocal notes the link-local address that the kernel made when the tap came up,
// and tells the kernel not to look for duplicates of it. Neither is essential.
func (c *configurer) adoptLinkLocal() {
	msgs, err := c.conn.Addresses(unix.AF_INET6, c.link.Index)
	if err != nil {
		c.warn("Couldn't read link-local address in namespace: %v", err)
		return
	}
	for _, m := range msgs {
		a, err := rtnl.ParseAddress(m)
		if err != nil || a.Scope != unix.RT_SCOPE_LINK {
			continue
		}
		if !c.result.LinkLocal.IsValid() {
			c.result.LinkLocal = a.Local
		}
		if err := c.withoutDetection(a, m); err != nil {
			c.warn("Couldn't adjust link-local address %s in namespace: %v", a.Local, err)
		}
	}
}

// withoutDetection makes an address that the tap has already one that is not tested for
// duplicates. Where the kernel has not got round to noticing that it need not test, which
// takes it some 20 ms, the address is made anew: it cannot be used until then, and a
// guest's command starts sooner than that.
func (c *configurer) withoutDetection(a rtnl.Address, msg []byte) error {
	body, err := copyAddress(msg, unix.AF_INET6, c.link.Index)
	if err != nil {
		return err
	}
	if a.Flags&unix.IFA_F_TENTATIVE != 0 {
		if err := c.conn.Do(unix.RTM_DELADDR, 0, body); err != nil {
			return err
		}
	}
	return c.conn.Do(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body)
}
