package netconf

import (
	"encoding/binary"
	"errors"

	"fusilli/autodetect/rtnl"

	"golang.org/x/sys/unix"
)

// keepRouteFlags is what a copy keeps of a route's and of a hop's flags. The others tell
// a state (dead, link down, offloaded), and the kernel refuses to be told some of them.
const keepRouteFlags = unix.RTNH_F_ONLINK

// rtaNextHopID is RTA_NH_ID of linux/rtnetlink.h (Linux 5.3), which x/sys does not name.
const rtaNextHopID = 30

// maxAttr is the longest value of an attribute, in bytes.
const maxAttr = 1<<16 - 1 - unix.SizeofRtAttr

// routes gives the tap its routes of one family, and sets *none if the kernel does not
// have the family.
func (c *configurer) routes(fam family, f *Family, none *bool) error {
	if !f.CopyRoutes {
		if !f.Gateway.IsValid() {
			return nil
		}
		err := c.defaultRoute(fam, f)
		switch {
		case err == nil:
			return nil
		case c.unsupported(fam, err):
			*none = true
			c.warn("%s not supported, disabling", fam.name)
			return nil
		}
		return failed("Couldn't set "+fam.name+" route(s) in guest", err)
	}

	hasDefault, lost, err := c.copyRoutes(fam, f)
	if !hasDefault && f.Gateway.IsValid() {
		// The template's default route was not taken, or was none of ours to copy: it
		// leads through several interfaces.
		err := c.defaultRoute(fam, f)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return failed("Couldn't set "+fam.name+" route(s) in guest", err)
		}
		c.warn("Couldn't copy %s default route to namespace, using one via %s", fam.name, f.Gateway)
	}
	if lost > 0 {
		c.warn("Couldn't copy %d %s route(s) to namespace: %v", lost, fam.name, err)
	}
	return nil
}

// copyRoutes copies what it can, and returns whether a default route is in place, how
// many other routes are not, and why.
//
// A route is refused while the one that leads to its gateway is missing, and the list has
// no order to rely on. So what is refused is tried again for as long as something else
// gets in.
func (c *configurer) copyRoutes(fam family, f *Family) (hasDefault bool, lost int, lastErr error) {
	type route struct {
		body  []byte
		flags int
		def   bool
	}
	var pending []route
	for _, m := range f.Routes {
		r, err := rtnl.ParseRoute(m)
		if err == nil && r.Family != fam.af {
			err = rtnl.ErrMalformed
		}
		var body []byte
		if err == nil {
			body, err = copyRoute(m, c.link.Index)
		}
		if err != nil {
			lost, lastErr = lost+1, err
			continue
		}
		// Routes that differ in nothing but their gateway keep their order when each is
		// appended. One that the kernel made for an address exists here by now, unless
		// the address asked for none.
		flags := unix.NLM_F_CREATE | unix.NLM_F_APPEND
		if r.Protocol == unix.RTPROT_KERNEL {
			flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
		}
		pending = append(pending, route{body, flags, r.Default()})
	}
	for progress := true; progress; {
		progress = false
		refused := pending[:0]
		for _, r := range pending {
			err := c.conn.Do(unix.RTM_NEWROUTE, r.flags, r.body)
			if err != nil && !errors.Is(err, unix.EEXIST) {
				refused = append(refused, r)
				lastErr = err
				continue
			}
			progress = true
			hasDefault = hasDefault || r.def
		}
		pending = refused
	}
	for _, r := range pending {
		if !r.def || hasDefault {
			lost++
		}
	}
	return hasDefault, lost, lastErr
}

// defaultRoute adds one through the plan's gateway, which need not be in the prefix of
// an address: the tap is the only way, and we answer for everything behind it.
func (c *configurer) defaultRoute(fam family, f *Family) error {
	err := c.conn.Do(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, newDefault(fam.af, c.link.Index, f, 0))
	if err == nil || errors.Is(err, unix.EEXIST) {
		return err
	}
	return c.conn.Do(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, newDefault(fam.af, c.link.Index, f, unix.RTNH_F_ONLINK))
}

func newDefault(af uint8, index int, f *Family, flags uint32) []byte {
	b := rtnl.RouteHeader{
		Family:   af,
		Table:    unix.RT_TABLE_MAIN,
		Protocol: unix.RTPROT_BOOT,
		Scope:    unix.RT_SCOPE_UNIVERSE,
		Type:     unix.RTN_UNICAST,
		Flags:    flags,
	}.Body()
	b = rtnl.AppendAttr(b, unix.RTA_GATEWAY, f.Gateway.AsSlice())
	return rtnl.AppendUint32(b, unix.RTA_OIF, uint32(index))
}

// copyRoute makes an RTM_NEWROUTE payload that leads through the interface with that
// index, in every hop, out of a dumped one. Gone are the preferred source, which is an
// address the guest may not have, the next-hop object, which it does not have (the dump
// spells it out as well), state flags, and the attributes that only a dump has. All else
// stays, in its order. It returns rtnl.ErrMalformed for a message of wrong lengths.
func copyRoute(msg []byte, index int) ([]byte, error) {
	if len(msg) < unix.SizeofRtMsg {
		return nil, rtnl.ErrMalformed
	}
	b := append(make([]byte, 0, len(msg)+8), msg[:unix.SizeofRtMsg]...)
	flags := binary.NativeEndian.Uint32(msg[8:])
	binary.NativeEndian.PutUint32(b[8:], flags&keepRouteFlags)
	err := rtnl.EachAttr(msg[unix.SizeofRtMsg:], func(typ uint16, val []byte) (err error) {
		switch typ {
		case unix.RTA_PREFSRC, rtaNextHopID, unix.RTA_CACHEINFO, unix.RTA_IIF, unix.RTA_EXPIRES:
			return nil
		case unix.RTA_OIF:
			b = rtnl.AppendUint32(b, typ, uint32(index))
			return nil
		case unix.RTA_MULTIPATH:
			if val, err = copyHops(val, index); err != nil {
				return err
			}
		}
		b = rtnl.AppendAttr(b, typ, val)
		return nil
	})
	return b, err
}

// copyHops does for an RTA_MULTIPATH value what copyRoute does for the route.
func copyHops(val []byte, index int) ([]byte, error) {
	b := make([]byte, 0, len(val)+4)
	err := rtnl.EachHop(val, func(hop []byte) error {
		start := len(b)
		b = append(b, hop...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
		if len(b) > maxAttr {
			return rtnl.ErrMalformed
		}
		h := b[start : start+len(hop)]
		h[2] &= keepRouteFlags
		binary.NativeEndian.PutUint32(h[4:], uint32(index))
		return rtnl.EachAttr(h[unix.SizeofRtNexthop:], func(uint16, []byte) error { return nil })
	})
	return b, err
}
